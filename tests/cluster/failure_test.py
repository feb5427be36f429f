"""The failure contract: one rank fails, the whole group is gone in time.

A group of four ranks is brought into a phase, and one of its ranks is killed
or stopped. Then, within 15 s: the launcher has ended with an error, no rank is
left, who reads the launcher's output finds the rank, its host, where it was and
what happened, no line blames another rank, the request that ran ends
UNAVAILABLE and the coordinator says NOT_SERVING. It serves again when the next
group joins.

Every rank, signal and phase is tried. That is mostly waiting, so the turns of
two ranks run side by side, each with a coordinator of its own.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor

import grpc

from cluster import (DATA, FAILURE_S, TINY, Cluster, cpu_seconds,
                     environment_of, eventually)
from proto_client import (endless_request, error_of, generate,
                          ids_request, wait_for_delta)

RANKS = 4
AT_ONCE = 2  # groups; more would starve each other on two cores
STALL_S = 10  # without progress: the design's limit
PHASES = ("loading", "idle", "prefill", "decode")
LONG_PROMPT = [(7 * i) % 800 for i in range(16000)]
INCIDENT = re.compile(
    r'incident rank=(?P<rank>\d+) host=\S+ step=-?\d+ rows=\d+ layer=-?\d+ '
    r'collective=\d+ phase=\w+ what="(?P<what>[^"]+)" reporter=(?P<by>\d+)$')


def write_model(folder):
    """A model whose made-up weights take seconds to load."""
    with open(os.path.join(DATA, "configs/flash-1b.json"),
              encoding="utf-8") as file:
        config = json.load(file)
    config.update(num_hidden_layers=5, vocab_size=8192, eos_token_id=1,
                  pad_token_id=1)
    with open(os.path.join(folder, "config.json"), "w",
              encoding="utf-8") as file:
        json.dump(config, file)
    for name in ("tokenizer.json", "tokenizer_config.json",
                 "generation_config.json"):
        shutil.copy(os.path.join(TINY, name), folder)


@contextlib.contextmanager
def hold_back(pid):
    """Lets a process run now and then, so that it seems slow, not stopped."""
    done = threading.Event()

    def pace():
        while not done.is_set():
            os.kill(pid, signal.SIGSTOP)
            done.wait(1.4)
            enough = cpu_seconds(pid) + 0.02
            os.kill(pid, signal.SIGCONT)
            while cpu_seconds(pid) < enough and not done.wait(0.01):
                pass

    pacer = threading.Thread(target=pace)
    pacer.start()
    try:
        yield
    finally:
        done.set()
        pacer.join()


class RankFailures:
    """Makes one rank of groups fail, with a coordinator that stays."""

    def __init__(self, cluster, rank, loading_model):
        self.cluster = cluster
        self.rank = rank
        self.loading_model = loading_model
        cluster.start_coordinator()

    # Each brings a new group into a phase; returns it and a call that runs.

    def loading(self):
        # The coordinator has another model, so the group names one that is not
        # there: it may come while the group loads.
        group = self.cluster.start_group("--load", "dummy", ranks=RANKS, tp=2,
                                         model=self.loading_model,
                                         coordinator="127.0.0.1:1")
        group.wait_for_lines("rank starts", RANKS)
        return group, None

    def idle(self):
        group = self.cluster.start_group(ranks=RANKS, tp=2)
        self.cluster.wait_serving()
        return group, None

    def prefill(self):
        group, _ = self.idle()
        call = generate(self.cluster.channel, ids_request(LONG_PROMPT, 1))
        eventually(lambda: any(g["running"]
                               for g in self.cluster.status()["groups"]))
        return group, call

    def decode(self):
        group, _ = self.idle()
        call = generate(self.cluster.channel, endless_request())
        wait_for_delta(call)
        return group, call

    def check(self, phase, number):
        group, call = getattr(self, phase)()
        try:
            self.fail_one(group, call, phase, number)
        except Exception as error:
            error.add_note(f"{number.name} of rank {self.rank} in {phase}")
            raise
        finally:
            group.kill()

    def fail_one(self, group, call, phase, number):
        pids = group.rank_pids()
        assert sorted(pids) == list(range(RANKS)), pids
        start = time.monotonic()
        os.kill(pids[self.rank], number)
        code = group.wait()
        eventually(lambda: not any(map(environment_of, pids.values())))
        gone = time.monotonic() - start
        if call is not None:
            status = error_of(call).code()
            assert status == grpc.StatusCode.UNAVAILABLE, status
        self.cluster.health().wait_for("NOT_SERVING")
        known = time.monotonic() - start
        said = [line for line in group.lines if " incident " in line]
        print(f"{number.name} of rank {self.rank} in {phase}: mpirun returned"
              f" {code}, group gone after {gone:.1f} s, clients know after"
              f" {known:.1f} s, {len(said)} incident lines", flush=True)

        assert code != 0
        assert known < FAILURE_S, known
        self.check_incidents(said, number)
        self.check_incidents(group.incidents(), number)

    def check_incidents(self, lines, number):
        assert lines, "no incident line"
        incidents = [INCIDENT.search(line) for line in lines]
        assert all(incidents), lines
        assert {int(i["rank"]) for i in incidents} == {self.rank}, lines
        # Who fails like this reports nothing.
        assert self.rank not in {int(i["by"]) for i in incidents}, lines
        # Who hears of a silent rank too late finds it killed.
        cause = {signal.SIGKILL: "connection closed",
                 signal.SIGSTOP: "silent for "}[number]
        assert any(i["what"].startswith(cause) for i in incidents), lines

    def check_serves_again(self):
        group, call = self.decode()
        call.cancel()
        eventually(self.cluster.nothing_is_held)
        group.stop()


class FailureTest(unittest.TestCase):
    def setUp(self):
        self.model = self.enterContext(tempfile.TemporaryDirectory())
        write_model(self.model)

    def test_every_rank_signal_and_phase(self):
        def fail(rank):
            with Cluster() as cluster:
                failures = RankFailures(cluster, rank, self.model)
                # Not all load at once.
                for phase in PHASES[rank:] + PHASES[:rank]:
                    for number in (signal.SIGKILL, signal.SIGSTOP):
                        failures.check(phase, number)
                failures.check_serves_again()

        with ThreadPoolExecutor(AT_ONCE) as side_by_side:
            turns = [side_by_side.submit(fail, rank) for rank in range(RANKS)]
        for rank, turn in enumerate(turns):
            with self.subTest(rank=rank):
                turn.result()

    def test_a_slow_rank_is_no_failure(self):
        """Three ranks wait for the fourth for longer than ranks may stand."""
        with Cluster() as cluster:
            cluster.start_coordinator(model=self.model)
            group = cluster.start_group("--load", "dummy", ranks=RANKS, tp=2,
                                        model=self.model)
            group.wait_for_lines("rank starts", RANKS)
            with hold_back(group.rank_pids()[RANKS - 1]):
                group.wait_for_lines("rank ready", RANKS - 1)
                with self.assertRaises(subprocess.TimeoutExpired):
                    group.process.wait(STALL_S + 2)
            ready = [line for line in group.lines if "rank ready" in line]
            self.assertEqual(len(ready), RANKS - 1, "no rank was slow")
            cluster.wait_serving()
            with self.assertRaises(subprocess.TimeoutExpired):
                group.process.wait(1)  # two heartbeats
            self.assertEqual(group.incidents(), [])
            group.stop()


if __name__ == "__main__":
    unittest.main(verbosity=2)
