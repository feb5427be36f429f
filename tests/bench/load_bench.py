#!/usr/bin/env python3
"""How fast ring-worker loads a checkpoint, beside how fast this machine reads.

    load_bench.py CONFIG.json [--dir DIR] [--device cpu|cuda] [--worker FILE]

Writes a checkpoint of random weights with the config's dimensions (16B
parameters take 33 GB), reads it with several threads that do nothing else, loads
it with one rank, both from the page cache and, as root, from the disk.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/support"))
from random_checkpoint import write_random  # noqa: E402
from sparse_checkpoint import SparseCheckpoint  # noqa: E402

CHUNK = 16 << 20


def read_all(paths, threads):
    """GB/s of reading all files, large pieces at a time."""
    pieces = [(path, offset) for path in paths
              for offset in range(0, path.stat().st_size, CHUNK)]
    files = {path: os.open(path, os.O_RDONLY) for path in paths}
    buffers = [bytearray(CHUNK) for _ in range(threads)]

    def read(thread):
        return sum(os.preadv(files[path], [buffers[thread]], offset)
                   for path, offset in pieces[thread::threads])

    start = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        total = sum(pool.map(read, range(threads)))
    seconds = time.monotonic() - start
    for file in files.values():
        os.close(file)
    return total / seconds / 1e9


def load(worker, folder, device, threads):
    """GB/s, as the rank logs them."""
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1",
                   "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    with subprocess.Popen(
            ["mpirun", "--oversubscribe", "--bind-to", "none", "--mca", "btl",
             "self,vader", "-np", "1", worker, "--model", folder, "--device",
             device, "--threads", str(threads), "--bench", "--bench-batches",
             "1"],
            env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True) as rank:
        lines = []
        for line in rank.stdout:
            lines.append(line)
            found = re.search(r"weights loaded .*gb_per_s=([\d.]+)", line)
            if found:
                rank.terminate()
                rank.communicate()
                return float(found[1])
    sys.exit("".join(lines))


def drop_caches():
    os.sync()
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("config", type=pathlib.Path)
    parser.add_argument("--dir", help="where the checkpoint is put")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--worker", default=ROOT / "build/cpu/bin/ring-worker")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        folder = pathlib.Path(folder)
        checkpoint = SparseCheckpoint(json.loads(args.config.read_text()))
        start = time.monotonic()
        write_random(checkpoint, folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(ROOT / "tests/data/ring-tiny" / name, folder)
        paths = sorted(folder.glob("*.safetensors"))
        total = sum(path.stat().st_size for path in paths)
        print(f"{total / 1e9:.1f} GB written in "
              f"{time.monotonic() - start:.0f} s; {args.threads} threads",
              flush=True)
        for name, before in (("page cache", lambda: None),
                             ("disk", drop_caches)):
            if before is drop_caches and os.geteuid() != 0:
                continue
            rates = {"read": [], "load": []}
            for _ in range(args.repeat):
                before()
                rates["read"].append(read_all(paths, args.threads))
                before()
                rates["load"].append(
                    load(args.worker, folder, args.device, args.threads))
            read, loaded = map(statistics.median, rates.values())
            print(f"{name}: reading {read:.2f} GB/s, loading {loaded:.2f} GB/s "
                  f"({loaded / read:.0%}); all loads "
                  + ", ".join(f"{rate:.2f}" for rate in rates["load"]),
                  flush=True)


if __name__ == "__main__":
    main()
