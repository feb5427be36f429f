#!/usr/bin/env python3
"""Tokens per second over gRPC: coordinator, one group, clients, all on this
machine.

    /usr/bin/python3 tests/bench/serve_bench.py [--ranks N --tp T] [--seconds S]

Prints, for one stream and for 16, tokens per second as clients see them, the
time between two messages of a stream, and the processor time per token of the
coordinator, of all ranks and of the clients.
"""

import argparse
import json
import os
import resource
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../cluster"))
from cluster import BIN, Cluster, cpu_seconds  # noqa: E402

CLIENT = os.path.join(BIN, "../bench/serve_client")
# Where a server that has read its weights is not warm yet.
WARM_UP_S = 1


def run_client(cluster, streams, seconds):
    """Counts of the client, and processor seconds it used."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    output = subprocess.run(
        [CLIENT, cluster.address, str(streams), str(seconds)], check=True,
        stdout=subprocess.PIPE).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = (after.ru_utime - before.ru_utime +
            after.ru_stime - before.ru_stime)
    return json.loads(output), used


def measure(cluster, group, streams, seconds):
    coordinator = cluster.coordinator.process.pid
    ranks = list(group.rank_pids().values())

    def used():
        return cpu_seconds(coordinator), sum(map(cpu_seconds, ranks))

    before = used()
    counts, client_s = run_client(cluster, streams, seconds)
    after = used()
    per_token = [1e6 * x / counts["all_tokens"] for x in
                 (after[0] - before[0], after[1] - before[1], client_s)]
    print(f"{streams:3d} streams: {counts['tokens_per_s']:7.0f} tokens/s, "
          f"{counts['requests']} requests, message gaps p50 "
          f"{counts['gap_us_p50']:.0f} us, p99 {counts['gap_us_p99']:.0f} us; "
          "processor us per token: coordinator {:.0f}, ranks {:.0f}, "
          "clients {:.0f}".format(*per_token), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    with Cluster() as cluster:
        cluster.start_coordinator()
        group = cluster.start_group(
            ranks=args.ranks, tp=args.tp,
            limits=("--max-sequences", "16", "--threads", str(args.threads)))
        cluster.wait_serving()
        run_client(cluster, 16, WARM_UP_S)
        for _ in range(args.repeat):
            for streams in (1, 16):
                measure(cluster, group, streams, args.seconds)


if __name__ == "__main__":
    main()
