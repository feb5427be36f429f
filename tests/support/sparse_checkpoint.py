#!/usr/bin/env python3
"""Writes checkpoints of any size as sparse files: real headers, data that is
one hole of zeros.

    sparse_checkpoint.py tests/data/configs/flash.json OUT_DIR
        [--text-from tests/data/ring-tiny] [--layers 2 --group 2] [--fp8]

A full-size Ring-flash-linear-2.0 then takes a few megabytes of disk and looks
like the published folder: config.json, shards of about 10 GiB with an index,
tokenizer, template. Needs a file system with holes and the Python standard
library only. Tests import SparseCheckpoint and break it on purpose.
"""
import argparse
import json
import os
import shutil
import struct

ELEMENT_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F8_E4M3": 1}
SHARD_BYTES = 10 << 30


def is_softmax_layer(config, layer):
    group = config["layer_group_size"]
    full = config["num_hidden_layers"] // group * group
    return (layer + 1) % group == 0 or layer >= full


def expected_tensors(config, fp8=False):
    """(name, dtype, shape) of every tensor, in file order."""
    hidden, dim = config["hidden_size"], config["head_dim"]
    query = config["num_attention_heads"] * dim
    kv = config["num_key_value_heads"] * dim
    tensors = []

    def plain(name, *shape):
        tensors.append([name, "BF16", list(shape)])

    def matrix(name, rows, cols):
        tensors.append([name, "F8_E4M3" if fp8 else "BF16", [rows, cols]])
        if fp8:
            blocks = [-(-rows // 128), -(-cols // 128)]
            tensors.append([name + "_scale_inv", "F32", blocks])

    def mlp(prefix, inner):
        matrix(prefix + "gate_proj.weight", inner, hidden)
        matrix(prefix + "up_proj.weight", inner, hidden)
        matrix(prefix + "down_proj.weight", hidden, inner)

    plain("model.word_embeddings.weight", config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        attention = prefix + "attention."
        softmax = is_softmax_layer(config, layer)
        plain(prefix + "input_layernorm.weight", hidden)
        plain(prefix + "post_attention_layernorm.weight", hidden)
        matrix(attention + "query_key_value.weight",
               query + 2 * kv if softmax else 3 * query, hidden)
        plain(attention + "query_layernorm.weight", dim)
        plain(attention + "key_layernorm.weight", dim)
        matrix(attention + "dense.weight", hidden, query)
        if not softmax:
            matrix(attention + "g_proj.weight", query, hidden)
            plain(attention + "g_norm.weight", query)
        if layer < config["first_k_dense_replace"]:
            mlp(prefix + "mlp.", config["intermediate_size"])
            continue
        tensors.append([prefix + "mlp.gate.weight", "BF16",
                        [config["num_experts"], hidden]])
        tensors.append([prefix + "mlp.gate.expert_bias", "F32",
                        [config["num_experts"]]])
        for expert in range(config["num_experts"]):
            mlp(f"{prefix}mlp.experts.{expert}.",
                config["moe_intermediate_size"])
        mlp(prefix + "mlp.shared_experts.",
            config["moe_intermediate_size"] * config["num_shared_experts"])
    plain("model.norm.weight", hidden)
    plain("lm_head.weight", config["vocab_size"], hidden)
    return tensors


def tensor_bytes(dtype, shape):
    count = ELEMENT_BYTES[dtype]
    for size in shape:
        count *= size
    return count


class Shard:
    """One file. Entries may be changed before write(); so may the length that
    the first 8 bytes claim and the size of the file."""

    def __init__(self):
        self.entries = {}  # name -> {"dtype", "shape", "data_offsets"}
        self.data_bytes = 0
        self.header_text = None  # instead of the entries as JSON
        self.claimed_length = None
        self.extra_bytes = 0

    def add(self, name, dtype, shape):
        end = self.data_bytes + tensor_bytes(dtype, shape)
        self.entries[name] = {"dtype": dtype, "shape": shape,
                              "data_offsets": [self.data_bytes, end]}
        self.data_bytes = end

    def write(self, path):
        text = self.header_text
        if text is None:
            header = {"__metadata__": {"format": "pt"}}
            header.update(self.entries)
            text = json.dumps(header)
        raw = text.encode()
        length = (len(raw) if self.claimed_length is None
                  else self.claimed_length)
        with open(path, "wb") as file:
            file.write(struct.pack("<Q", length))
            file.write(raw)
            size = 8 + len(raw) + self.data_bytes + self.extra_bytes
            file.truncate(max(size, 0))


class SparseCheckpoint:
    """A folder in memory: change it, then write() it."""

    def __init__(self, config, fp8=False, text_from=None):
        self.config = dict(config)
        if fp8:
            self.config["quantization_config"] = {
                "quant_method": "fp8", "fmt": "e4m3",
                "activation_scheme": "dynamic",
                "weight_block_size": [128, 128]}
        self.text_from = text_from
        self.tokenizer = None
        if text_from:
            with open(os.path.join(text_from, "tokenizer.json")) as file:
                self.tokenizer = json.load(file)
            # A tokenizer of a small model learns this model's eos id.
            self.tokenizer["added_tokens"].append(
                {"id": config["eos_token_id"], "content": "<|eos|>",
                 "special": True, "single_word": False, "lstrip": False,
                 "rstrip": False, "normalized": False})
        self.shards = [Shard()]
        for name, dtype, shape in expected_tensors(config, fp8):
            end = self.shards[-1].data_bytes + tensor_bytes(dtype, shape)
            if end > SHARD_BYTES:
                self.shards.append(Shard())
            self.shards[-1].add(name, dtype, shape)
        self.weight_map = {name: self.shard_name(i)
                           for i, shard in enumerate(self.shards)
                           for name in shard.entries}
        self.index_text = None  # instead of the weight map as JSON

    def shard_name(self, i):
        return f"model-{i + 1:05d}-of-{len(self.shards):05d}.safetensors"

    def shard_of(self, tensor):
        return next(s for s in self.shards if tensor in s.entries)

    def write(self, out_dir):
        os.makedirs(out_dir, exist_ok=True)

        def dump(name, value):
            with open(os.path.join(out_dir, name), "w") as file:
                json.dump(value, file)

        dump("config.json", self.config)
        if self.tokenizer is not None:
            dump("tokenizer.json", self.tokenizer)
            shutil.copy(os.path.join(self.text_from, "tokenizer_config.json"),
                        out_dir)
            dump("generation_config.json",
                 {"eos_token_id": [self.config.get("eos_token_id", 0)]})
        for i, shard in enumerate(self.shards):
            shard.write(os.path.join(out_dir, self.shard_name(i)))
        index = self.index_text
        if index is None:
            index = json.dumps({"metadata": {}, "weight_map": self.weight_map})
        with open(os.path.join(out_dir, "model.safetensors.index.json"),
                  "w") as file:
            file.write(index)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("config", help="a config.json")
    parser.add_argument("out_dir")
    parser.add_argument("--text-from", metavar="DIR",
                        help="folder to take tokenizer and template from")
    parser.add_argument("--layers", type=int, help="num_hidden_layers instead")
    parser.add_argument("--group", type=int, help="layer_group_size instead")
    parser.add_argument("--fp8", action="store_true",
                        help="block FP8 with weight_scale_inv")
    args = parser.parse_args()
    with open(args.config) as file:
        config = json.load(file)
    if args.layers:
        config["num_hidden_layers"] = args.layers
    if args.group:
        config["layer_group_size"] = args.group
    checkpoint = SparseCheckpoint(config, args.fp8, args.text_from)
    checkpoint.write(args.out_dir)
    total = sum(shard.data_bytes for shard in checkpoint.shards)
    print(f"{args.out_dir}: {len(checkpoint.weight_map)} tensors, "
          f"{total} bytes in {len(checkpoint.shards)} shards, all holes")


if __name__ == "__main__":
    main()
