#!/usr/bin/env python3
"""Two layers of a full-size model, one of each kind, through the normal loader
and the engine against the float64 reference.

    slice_test.py ENGINE_LOGITS CONFIG.json [--fp8]

Every other dimension is the published model's: hidden size, heads, 256 experts,
vocabulary. Takes as much disk as the slice has bytes (mini 3.2 GB, flash 9.5 GB,
half of that with --fp8) and as much memory again.
"""
import argparse
import collections.abc
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "tests/golden")]
import reference_numpy as reference  # noqa: E402
from oracle_test import config_of, decode_e4m3  # noqa: E402
from random_checkpoint import write_random  # noqa: E402
from sparse_checkpoint import SparseCheckpoint  # noqa: E402

# As in oracle_test.py: fp32 activations differ from float64 by rounding only.
FP32_TOLERANCE = 1e-4
# bf16 rounds by up to 2^-9 in each of about ten places of a layer, and a token
# whose experts are nearly tied may go to another one of its eight.
BF16_TOLERANCE = 5e-2
NEW_TOKENS = 4
# Wide enough that a block of rows is worth a product, small enough to widen.
BLOCK_ROWS = 8192
CODES = decode_e4m3(np.arange(256, dtype=np.uint8))


class Matrix:
    """A matrix as it lies in its file; products widen a block at a time."""

    def __init__(self, data, scales=None, last_row_only=False):
        self.data, self.scales = data, scales
        self.last_row_only = last_row_only

    def __getitem__(self, rows):
        if self.scales is not None:
            factor = np.repeat(self.scales[rows // 128], 128, 1)
            return CODES[self.data[rows]] * factor[:, :self.data.shape[1]]
        bits = self.data[rows].astype(np.uint32) << 16
        return bits.view(np.float32).astype(np.float64)

    @property
    def T(self):
        return Transposed(self)


class Transposed:
    """x @ matrix.T is all that the reference does with one."""
    __array_ufunc__ = None

    def __init__(self, matrix):
        self.matrix = matrix

    def __rmatmul__(self, x):
        if self.matrix.last_row_only:
            x = x[-1:]
        rows = np.arange(self.matrix.data.shape[0])
        return np.concatenate(
            [x @ self.matrix[rows[i:i + BLOCK_ROWS]].T
             for i in range(0, len(rows), BLOCK_ROWS)], axis=1)


class Weights(collections.abc.Mapping):
    """Tensors by name, mapped from the files."""

    NUMPY = {"BF16": "<u2", "F32": "<f4", "F8_E4M3": "u1"}

    def __init__(self, folder, checkpoint):
        self._raw = {}
        for i, shard in enumerate(checkpoint.shards):
            path = folder / checkpoint.shard_name(i)
            base = path.stat().st_size - shard.data_bytes
            for name, entry in shard.entries.items():
                self._raw[name] = np.memmap(
                    path, self.NUMPY[entry["dtype"]], "r",
                    base + entry["data_offsets"][0], tuple(entry["shape"]))

    def __getitem__(self, name):
        data = self._raw[name]
        if data.ndim == 2:
            scales = self._raw.get(name + "_scale_inv")
            # Only the last position's logits are compared, and the head is the
            # largest matrix by far.
            return Matrix(data, None if scales is None else
                          np.asarray(scales, np.float64),
                          last_row_only=name == "lm_head.weight")
        if data.dtype == np.float32:
            return data.astype(np.float64)
        return Matrix(data[None])[np.arange(1)][0]

    def __iter__(self):
        return iter(self._raw)

    def __len__(self):
        return len(self._raw)


def expected(config, weights, ids):
    """Logits after the prompt, and the greedy continuation."""
    cache = reference.Cache(config)
    logits = reference.forward(config, weights, ids, cache, 64)[-1]
    tokens = [int(np.argmax(logits))]
    while len(tokens) < NEW_TOKENS:
        step = reference.forward(config, weights, tokens[-1:], cache)[-1]
        tokens.append(int(np.argmax(step)))
    return logits, tokens


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("engine")
    parser.add_argument("config")
    parser.add_argument("--fp8", action="store_true")
    args = parser.parse_args()
    with open(args.config, encoding="utf-8") as file:
        values = json.load(file)
    values.update(num_hidden_layers=2, layer_group_size=2)
    start = time.monotonic()

    def report(text):
        print(f"{time.monotonic() - start:5.1f} s  {text}", flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        checkpoint = SparseCheckpoint(values, args.fp8,
                                      ROOT / "tests/data/ring-tiny")
        write_random(checkpoint, folder)
        size = sum(shard.data_bytes for shard in checkpoint.shards)
        report(f"{len(checkpoint.weight_map)} tensors, {size / 1e9:.2f} GB")

        config = config_of(folder, "index")
        # Two pages of keys and a part, two chunks of the state and a part.
        ids = np.random.default_rng(2).integers(0, config.vocab_size, 150)
        want, tokens = expected(config, Weights(folder, checkpoint), ids)
        report("reference done")

        failures = 0
        for tp, exchange, activations in (
                (1, "replicated", "fp32"), (2, "replicated", "fp32"),
                (2, "alltoall", "fp32"), (1, "replicated", "bf16")):
            options = folder / "options.json"
            options.write_text(json.dumps([{
                "model": str(folder), "dp": 1, "tp": tp, "exchange": exchange,
                "activations": activations, "ids": ids.tolist(),
                "vocab_size": config.vocab_size, "new_tokens": NEW_TOKENS}]))
            output = subprocess.run([args.engine, "run", options], check=True,
                                    stdout=subprocess.PIPE).stdout
            result = json.loads(output)[0]
            got = np.array(result["logits"], np.float64)
            error = np.linalg.norm(got - want) / np.linalg.norm(want)
            exact = activations == "fp32"
            good = error <= (FP32_TOLERANCE if exact else BF16_TOLERANCE) and (
                not exact or result["tokens"] == tokens)
            failures += not good
            report(f"{'ok  ' if good else 'FAIL'} tp {tp} {exchange:10s} "
                   f"{activations} {error:.1e} {result['tokens']}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
