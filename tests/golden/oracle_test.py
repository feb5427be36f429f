#!/usr/bin/env python3
"""The engine on random small models against the float64 reference.

The models have what the bundled one has not: tail layers, head counts that are
no power of two, eight ranks over four KV heads and four norm groups, YaRN,
block FP8 weights, both decay modes.

    oracle_test.py ENGINE_LOGITS
"""
import dataclasses
import json
import pathlib
import struct
import subprocess
import sys
import tempfile

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import reference_numpy as reference  # noqa: E402

# fp32 through seven layers; bf16 roundings would let nearly tied experts swap,
# which says nothing about the code.
TOLERANCE = 1e-4


def read_safetensors(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + length])
    base = 8 + length
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = (base + x for x in entry["data_offsets"])
        yield name, entry["dtype"], entry["shape"], data[begin:end]


def decode_e4m3(codes):
    """OCP e4m3fn: bias 7, no infinities."""
    sign = np.where(codes & 0x80, -1.0, 1.0)
    exponent = (codes >> 3) & 15
    mantissa = (codes & 7).astype(np.float64)
    value = np.where(exponent == 0, mantissa * 2.0**-9,
                     (1 + mantissa / 8) * 2.0**(exponent.astype(float) - 7))
    return sign * value


def read_weights(folder):
    """All tensors as float64; FP8 ones times their block's scale."""
    raw = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, dtype, shape, data in read_safetensors(path):
            if dtype == "F32":
                x = np.frombuffer(data, "<f4").astype(np.float64)
            elif dtype == "BF16":
                bits = np.frombuffer(data, "<u2").astype(np.uint32) << 16
                x = bits.view(np.float32).astype(np.float64)
            elif dtype == "F8_E4M3":
                x = decode_e4m3(np.frombuffer(data, np.uint8))
            else:
                raise ValueError(f"{name}: {dtype}")
            raw[name] = x.reshape(shape)
    weights = {}
    for name, x in raw.items():
        if name.endswith("_scale_inv"):
            continue
        scale = raw.get(name + "_scale_inv")
        if scale is not None:
            full = np.repeat(np.repeat(scale, 128, 0), 128, 1)
            x = x * full[:x.shape[0], :x.shape[1]]
        weights[name] = x
    return weights


def config_of(folder, decay):
    values = json.loads((folder / "config.json").read_text())
    names = {f.name for f in dataclasses.fields(reference.Config)}
    known = {k: v for k, v in values.items() if k in names}
    return reference.Config(**known, slope_mode=decay)


# name, changed config fields, checkpoint options, meshes as (dp, tp), decay
CASES = [
    ("tail", {}, {}, [(1, 1), (1, 2), (2, 2), (4, 1)], "index"),
    ("decay_index_m1", {}, {}, [(1, 2)], "index_m1"),
    ("no_power_of_two",
     {"num_attention_heads": 6, "num_key_value_heads": 3, "group_norm_size": 3,
      "head_dim": 24, "intermediate_size": 96}, {},
     [(1, 1), (1, 3), (2, 3)], "index"),
    ("replicated_kv_tp8",
     {"num_attention_heads": 8, "num_key_value_heads": 4,
      "group_norm_size": 4, "head_dim": 16, "intermediate_size": 96,
      "moe_intermediate_size": 32}, {}, [(1, 8), (1, 4)], "index"),
    ("yarn",
     {"rope_scaling": {"rope_type": "yarn", "factor": 4.0,
                       "original_max_position_embeddings": 64}}, {},
     [(1, 1), (1, 2)], "index"),
    ("linear_silu", {"linear_silu": True}, {}, [(1, 2)], "index"),
    ("block_fp8",
     {"hidden_size": 192, "num_attention_heads": 4, "head_dim": 40,
      "intermediate_size": 160, "moe_intermediate_size": 144},
     {"block_fp8": True}, [(1, 1), (1, 2), (1, 4)], "index"),
]


def main():
    engine = sys.argv[1]
    failures = runs = 0
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        for index, (name, fields, checkpoint, meshes, decay) in enumerate(CASES):
            folder = scratch / name
            options = scratch / "options.json"
            options.write_text(json.dumps(
                {"config": fields, "seed": index + 1, **checkpoint}))
            subprocess.run([engine, "write", folder, options], check=True)
            config = config_of(folder, decay)
            rng = np.random.default_rng(index)
            ids = rng.integers(0, config.vocab_size, 90).tolist()
            want = reference.forward(config, read_weights(folder), ids,
                                     reference.Cache(config), 64)[-1]

            requests = [
                {"model": str(folder), "dp": dp, "tp": tp, "exchange": exchange,
                 "activations": "fp32", "decay": decay, "ids": ids,
                 "vocab_size": config.vocab_size,
                 # Cuts the prompt at 64 as well.
                 "max_batch_tokens": 80}
                for dp, tp in meshes
                for exchange in ("replicated", "alltoall")
            ]
            options.write_text(json.dumps(requests))
            output = subprocess.run([engine, "run", options], check=True,
                                    stdout=subprocess.PIPE).stdout
            for request, result in zip(requests, json.loads(output)):
                got = np.array(result["logits"], np.float64)
                error = np.linalg.norm(got - want) / np.linalg.norm(want)
                good = (error <= TOLERANCE and
                        result["tokens"][0] == int(np.argmax(want)))
                runs += 1
                failures += not good
                print(f"{'ok  ' if good else 'FAIL'} {name:20s} dp {request['dp']} "
                      f"tp {request['tp']} {request['exchange']:10s} {error:.1e}")
    print(f"{runs} runs, {failures} failed")
    return 1 if failures or runs == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
