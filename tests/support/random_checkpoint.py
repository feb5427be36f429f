"""Checkpoints of real dimensions with random weights in every tensor: those of
sparse_checkpoint.py with their holes filled in, so they take as much disk as
the model has bytes. Scales keep activations of order one and spread the
routing.
"""
import math
import os
import struct

import numpy as np

# Values are drawn once and dealt out from random places of a pool whose length
# has no common factor with any dimension: drawing billions of them would take
# longer than anything a test does with them.
POOL = 4194301


def to_bf16(x):
    """float32 -> bits of bf16, to nearest, ties to even."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


class Dealer:
    """The data of tensors by name, dtype and shape."""

    def __init__(self, seed):
        self._rng = np.random.default_rng(seed)
        self._normal = self._rng.standard_normal(POOL, np.float32)
        # Finite codes with values from 2^-3 to 1.75, either sign.
        self._codes = (self._rng.integers(0x20, 0x3F, POOL, np.uint8) |
                       self._rng.integers(0, 2, POOL, np.uint8) << 7)
        self._bf16 = {}  # standard deviation -> pool

    def _pool(self, name, dtype, shape):
        if dtype == "F8_E4M3":
            return self._codes
        if name.endswith("weight_scale_inv"):
            # The codes' mean square is about 0.6.
            return np.abs(self._normal) * np.float32(1 / math.sqrt(
                128 * shape[1]))
        if name.endswith("expert_bias"):
            return self._normal * np.float32(0.05)
        if len(shape) == 1:
            return to_bf16(1 + 0.1 * self._normal)
        deviation = (1.0 if name.endswith("word_embeddings.weight")
                     else 1 / math.sqrt(shape[1]))
        if deviation not in self._bf16:
            self._bf16[deviation] = to_bf16(self._normal * deviation)
        return self._bf16[deviation]

    def write(self, file, name, dtype, shape):
        pool = self._pool(name, dtype, shape)
        left = math.prod(shape)
        begin = int(self._rng.integers(POOL))
        while left > 0:
            count = min(left, POOL - begin)
            file.write(pool[begin:begin + count].tobytes())
            left -= count
            begin = 0


def write_random(checkpoint, folder, seed=1):
    """Writes a SparseCheckpoint into `folder` and fills it."""
    checkpoint.write(folder)
    dealer = Dealer(seed)
    for i, shard in enumerate(checkpoint.shards):
        path = os.path.join(folder, checkpoint.shard_name(i))
        with open(path, "r+b") as file:
            (header,) = struct.unpack("<Q", file.read(8))
            for name, entry in shard.entries.items():
                file.seek(8 + header + entry["data_offsets"][0])
                dealer.write(file, name, entry["dtype"], entry["shape"])
