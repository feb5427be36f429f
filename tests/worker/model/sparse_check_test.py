#!/usr/bin/env python3
"""`ring-worker --check` on full-size sparse checkpoints: it accepts sound ones on
every mesh and refuses broken ones by name, quickly and without reading data.

    sparse_check_test.py RING_WORKER DATA_DIR
"""
import json
import os
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../../support"))
from sparse_checkpoint import SparseCheckpoint  # noqa: E402

RING_WORKER, DATA_DIR = sys.argv[1:3]
MAX_SECONDS = 10
EXPERT = "model.layers.5.mlp.experts.17.up_proj.weight"
G_NORM = "model.layers.2.attention.g_norm.weight"


def config_of(name):
    with open(os.path.join(DATA_DIR, "configs", name + ".json")) as file:
        return json.load(file)


def sparse(name, **options):
    return SparseCheckpoint(config_of(name),
                            text_from=os.path.join(DATA_DIR, "ring-tiny"),
                            **options)


def check(folder, tp, dp=1, *options):
    """(exit code, report, seconds)"""
    start = time.monotonic()
    done = subprocess.run([RING_WORKER, "--check", "--model", folder,
                           "--tp", str(tp), "--dp", str(dp), *options],
                          capture_output=True, text=True, timeout=60,
                          check=False)
    return done.returncode, done.stdout + done.stderr, time.monotonic() - start


class SparseCheckTest(unittest.TestCase):

    def accept(self, checkpoint, meshes, *texts):
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.write(folder)
            for tp, dp in meshes:
                code, report, seconds = check(folder, tp, dp)
                self.assertEqual(code, 0, report)
                self.assertLess(seconds, MAX_SECONDS)
                for text in texts:
                    self.assertIn(text, report)
            print(f"  {texts[0]}: {seconds:.2f} s", file=sys.stderr)

    def test_accepts_ring_tiny_and_shows_every_field(self):
        folder = os.path.join(DATA_DIR, "ring-tiny")
        with open(os.path.join(folder, "config.json")) as file:
            config = json.load(file)
        for tp in (1, 2, 4):
            code, report, _ = check(folder, tp)
            self.assertEqual(code, 0, report)
            shown = {line.split()[0] for line in report.splitlines()
                     if line.startswith("  ")}
            self.assertEqual(set(config) - shown, set())
            for text in ("437 in 2 files", "BPE, ids up to 812 of 1024",
                         "bytes of Jinja, all of it supported",
                         f"rank {tp - 1} (tp_rank {tp - 1} of {tp})",
                         "verdict: ok"):
                self.assertIn(text, report)
        code, report, _ = check(folder, 8)  # 4 query heads
        self.assertEqual(code, 1, report)
        self.assertIn("tp=8 does not divide 4 query heads", report)

    def test_memory_of_a_rank_follows_the_flags(self):
        """KV pages and state slots as the config's sizes give them."""
        def held(*options):
            _, report, _ = check(folder, 2, 1, *options)
            line = next(line for line in report.splitlines()
                        if line.startswith("  rank 0"))
            parts = line.split("): ")[1].split(", ")
            self.assertEqual([part.rsplit(" ", 1)[0] for part in parts],
                             ["weights", "KV pages", "state slots",
                              "workspace"])
            numbers = [int(part.rsplit(" ", 1)[1]) for part in parts]
            self.assertIn(f" holds {sum(numbers)} (", line)
            return numbers

        folder = os.path.join(DATA_DIR, "ring-tiny")
        # Of 8 layers, 2 are softmax; heads of 64 channels, a rank of 2 has 2 of
        # them and one of the KV heads.
        weights, pages, slots, workspace = held(
            "--kv-tokens", "6400", "--max-sequences", "10")
        self.assertEqual(pages, 6400 * 2 * 2 * 64 * 2)
        self.assertEqual(slots, 10 * 6 * 2 * 64 * 64 * 4)
        # A row has at least its residual, fp32, and the logits of a sampled
        # one; and the steps of 2,048 rows are the largest.
        self.assertGreater(workspace, 2048 * 128 * 4)
        self.assertEqual(
            held("--kv-tokens", "12800", "--max-sequences", "10")[:3],
            [weights, 2 * pages, slots])
        self.assertEqual(
            held("--kv-tokens", "6400", "--max-sequences", "10",
                 "--activations", "fp32")[:3], [weights, 2 * pages, slots])
        self.assertLess(
            held("--kv-tokens", "6400", "--max-sequences", "10",
                 "--max-batch-tokens", "256")[3], workspace / 4)

    def test_folder_that_is_not_there(self):
        code, report, _ = check("/nonexistent", 1)
        self.assertEqual(code, 1)
        self.assertIn("cannot open /nonexistent/config.json", report)

    def test_accepts_flash(self):
        self.accept(sparse("flash"), [(1, 1), (2, 1), (4, 1), (8, 1), (4, 2)],
                    "24217 in 20 files", "104181665536",
                    "every tensor and every expert is owned as designed")

    def test_accepts_mini(self):
        self.accept(sparse("mini"), [(1, 1), (2, 1), (4, 1), (8, 1), (2, 4)],
                    "14845 in 4 files", "16423448320")

    def test_accepts_block_fp8(self):
        self.accept(sparse("mini", fp8=True), [(1, 1), (8, 1)],
                    "14845 in 2 files", "14708 tensors")

    def test_bytes_of_a_rank_add_up(self):
        """At tp 1 the rank reads every byte; more ranks add what they share."""
        with tempfile.TemporaryDirectory() as folder:
            mini = sparse("mini")
            mini.write(folder)
            total = sum(s.data_bytes for s in mini.shards)
            reads = {}
            for tp in (1, 4):
                _, report, _ = check(folder, tp)
                reads[tp] = [int(line.split(" reads ")[1].split()[0])
                             for line in report.splitlines()
                             if " reads " in line]
            self.assertEqual(reads[1], [total])
            # Held by all ranks: norms, router, bias, shared experts.
            shared = sum(
                e["data_offsets"][1] - e["data_offsets"][0]
                for s in mini.shards for n, e in s.entries.items()
                if "layernorm" in n or n == "model.norm.weight"
                or ".mlp.gate." in n or ".shared_experts." in n)
            self.assertEqual(sum(reads[4]), total + 3 * shared)

    def refuse(self, checkpoint, *texts, tp=2, after=None):
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.write(folder)
            if after:
                after(folder)
            code, report, seconds = check(folder, tp)
            self.assertEqual(code, 1, report)
            self.assertLess(seconds, MAX_SECONDS)
            self.assertIn("REFUSED", report)
            for text in texts:
                self.assertIn(text, report)

    # What the tensors are.

    def test_missing_tensor(self):
        mini = sparse("mini")
        # The last of its shard, so that no gap is left behind.
        shard = mini.shards[0]
        name = list(shard.entries)[-1]
        begin, end = shard.entries.pop(name)["data_offsets"]
        shard.data_bytes -= end - begin
        del mini.weight_map[name]
        self.refuse(mini, name, "is missing")

    def test_extra_tensor(self):
        mini = sparse("mini")
        name = "model.layers.2.attention.query_key_value.bias"
        mini.shards[1].add(name, "BF16", [6144])
        mini.weight_map[name] = mini.shard_name(1)
        self.refuse(mini, name + " is not expected")

    def test_wrong_shape(self):
        mini = sparse("mini")
        mini.shard_of(EXPERT).entries[EXPERT]["shape"] = [2048, 512]
        self.refuse(mini,
                    EXPERT + " has shape [2048, 512], expected [512, 2048]")

    def test_wrong_dtype(self):
        mini = sparse("mini")
        mini.shard_of(EXPERT).entries[EXPERT]["dtype"] = "F16"
        self.refuse(mini, EXPERT + " has dtype F16, supported: BF16, F32")

    def test_fp8_without_a_config_that_says_so(self):
        mini = sparse("mini", fp8=True)
        del mini.config["quantization_config"]
        self.refuse(mini, "has dtype F8_E4M3", "more problems")

    def test_fp8_without_scales(self):
        mini = sparse("mini", fp8=True)
        shard = mini.shards[0]
        name = EXPERT + "_scale_inv"
        entry = shard.entries.pop(name)
        shard.entries["model.layers.5.slope"] = entry
        mini.weight_map["model.layers.5.slope"] = mini.weight_map.pop(name)
        self.refuse(mini, name + " [4, 16] is missing")

    def test_next_token_layer_that_the_config_denies(self):
        mini = sparse("mini")
        name = "model.layers.20.enorm.weight"
        mini.shards[-1].add(name, "BF16", [2048])
        mini.weight_map[name] = mini.shard_name(len(mini.shards) - 1)
        self.refuse(mini, name + " is not expected")
        mini.config["num_nextn_predict_layers"] = 1
        self.accept(mini, [(1, 1)], "next-token   1 tensors")

    def test_layer_schedule_that_the_tensors_deny(self):
        mini = sparse("mini")
        mini.config["layer_group_size"] = 4
        self.refuse(mini, "model.layers.3.attention.query_key_value.weight "
                    "has shape [6144, 2048], expected [3072, 2048]")

    # Where the tensors are.

    def test_overlap(self):
        mini = sparse("mini")
        shard = mini.shard_of(G_NORM)
        entry = shard.entries[G_NORM]
        entry["data_offsets"] = [at - 2 for at in entry["data_offsets"]]
        self.refuse(mini, "tensor " + G_NORM + ": overlaps", "by 2 bytes")

    def test_gap(self):
        mini = sparse("mini")
        shard = mini.shards[0]
        name = list(shard.entries)[-1]
        entry = shard.entries[name]
        entry["data_offsets"] = [at + 16 for at in entry["data_offsets"]]
        shard.data_bytes += 16
        self.refuse(mini, "tensor " + name, "leaves a gap of 16 bytes")

    def test_bytes_that_do_not_fit_the_shape(self):
        mini = sparse("mini")
        mini.shard_of(EXPERT).entries[EXPERT]["shape"] = [512, 2047]
        self.refuse(mini, "tensor " + EXPERT, "BF16 [512, 2047] takes 2096128")

    def test_offsets_backwards(self):
        mini = sparse("mini")
        entry = mini.shard_of(EXPERT).entries[EXPERT]
        entry["data_offsets"].reverse()
        self.refuse(mini, "tensor " + EXPERT, "data_offsets is not")

    def test_offsets_past_the_end(self):
        for end, text in ((1 << 40, f"ends at data byte {1 << 40}, but the"),
                          ((1 << 63) - 1, f"ends at data byte {(1 << 63) - 1}"),
                          (1 << 63, "data_offsets is not [begin, end]"),
                          (1 << 64, "data_offsets is not [begin, end]")):
            mini = sparse("mini")
            mini.shard_of(EXPERT).entries[EXPERT]["data_offsets"][1] = end
            with self.subTest(end=end):
                self.refuse(mini, "tensor " + EXPERT, text)

    def test_huge_shape(self):
        mini = sparse("mini")
        entry = mini.shard_of(EXPERT).entries[EXPERT]
        entry["shape"] = [1 << 62, 1 << 62]
        self.refuse(mini, "tensor " + EXPERT, "more than 2^63 bytes")

    def test_shape_beyond_64_bits(self):
        mini = sparse("mini")
        mini.shard_of(EXPERT).entries[EXPERT]["shape"] = [(1 << 64) - 1, 1]
        self.refuse(mini, "tensor " + EXPERT, "no size")

    def test_negative_shape(self):
        mini = sparse("mini")
        mini.shard_of(EXPERT).entries[EXPERT]["shape"] = [-512, -2048]
        self.refuse(mini, "tensor " + EXPERT, "no size")

    def test_unknown_dtype(self):
        mini = sparse("mini")
        mini.shard_of(EXPERT).entries[EXPERT]["dtype"] = "Q4"
        self.refuse(mini, "tensor " + EXPERT, 'unknown dtype "Q4"')

    def test_entry_that_is_no_object(self):
        mini = sparse("mini")
        mini.shard_of(EXPERT).entries[EXPERT] = [1, 2]
        self.refuse(mini, "tensor " + EXPERT, "not an object of dtype")

    def test_truncated_file(self):
        mini = sparse("mini")
        mini.shards[1].extra_bytes = -100
        self.refuse(mini, mini.shard_name(1), "truncated")

    def test_bytes_after_the_last_tensor(self):
        mini = sparse("mini")
        mini.shards[1].extra_bytes = 100
        self.refuse(mini, mini.shard_name(1),
                    "100 bytes at the end belong to no tensor")

    def test_empty_file(self):
        mini = sparse("mini")
        self.refuse(mini, mini.shard_name(2), "0 bytes are too few",
                    after=lambda folder: os.truncate(
                        os.path.join(folder, mini.shard_name(2)), 0))

    def test_header_longer_than_the_file(self):
        for length in 1 << 60, 1 << 63, (1 << 64) - 1:
            mini = sparse("mini")
            mini.shards[0].claimed_length = length
            with self.subTest(length=length):
                self.refuse(mini, mini.shard_name(0),
                            f"claims a header of {length} bytes")

    def test_header_shorter_than_its_json(self):
        mini = sparse("mini")
        mini.shards[0].claimed_length = 1000
        self.refuse(mini, mini.shard_name(0), "not JSON at byte")

    def test_header_that_is_deep(self):
        mini = sparse("mini")
        mini.shards[0].header_text = '{"a":' * 100000
        self.refuse(mini, mini.shard_name(0), "nested deeper than 64")

    def test_duplicate_name_in_a_header(self):
        mini = sparse("mini")
        text = json.dumps(mini.shards[0].entries)
        entry = json.dumps(mini.shards[0].entries[EXPERT])
        mini.shards[0].header_text = f'{text[:-1]}, "{EXPERT}": {entry}}}'
        self.refuse(mini, f'the key "{EXPERT}" occurs twice')

    def test_tensor_in_two_shards(self):
        mini = sparse("mini")
        mini.shards[1].add(G_NORM, "BF16", [2048])
        self.refuse(mini, f"tensor {G_NORM} is in two shards",
                    mini.shard_name(0), mini.shard_name(1))

    # The index.

    def test_index_names_a_missing_shard(self):
        mini = sparse("mini")
        self.refuse(mini, mini.shard_name(3), "which is missing",
                    after=lambda folder: os.remove(
                        os.path.join(folder, mini.shard_name(3))))

    def test_index_names_the_wrong_shard(self):
        mini = sparse("mini")
        mini.weight_map[EXPERT] = mini.shard_name(3)
        self.refuse(mini, f"tensor {EXPERT} should be in "
                    + mini.shard_name(3))

    def test_index_names_a_tensor_that_no_shard_has(self):
        mini = sparse("mini")
        mini.weight_map["model.x"] = mini.shard_name(0)
        self.refuse(mini, "tensor model.x", "no shard has it")

    def test_index_forgets_a_tensor(self):
        mini = sparse("mini")
        del mini.weight_map[EXPERT]
        self.refuse(mini, f"tensor {EXPERT}", "is not in the index")

    def test_index_leads_out_of_the_folder(self):
        mini = sparse("mini")
        mini.weight_map[EXPERT] = "../other.safetensors"
        self.refuse(mini, EXPERT, "not the plain name")

    def test_index_that_is_no_json(self):
        mini = sparse("mini")
        mini.index_text = '{"weight_map": {'
        self.refuse(mini, "model.safetensors.index.json: not JSON")

    # Config, tokenizer and mesh.

    def test_config_without_a_field(self):
        mini = sparse("mini")
        del mini.config["group_norm_size"]
        self.refuse(mini, "group_norm_size is missing")

    def test_gptq(self):
        mini = sparse("mini")
        mini.config["quantization_config"] = {"quant_method": "gptq",
                                              "bits": 4}
        self.refuse(mini, 'quantization_config.quant_method = "gptq" is not '
                    "supported")

    def test_tokenizer_ids_beyond_the_vocabulary(self):
        mini = sparse("mini")
        mini.tokenizer["added_tokens"][0]["id"] = 157184
        self.refuse(mini, "the largest id is 157184", "vocab_size = 157184")

    def test_tokenizer_without_the_eos_token(self):
        mini = sparse("mini")
        mini.tokenizer["added_tokens"].pop()
        self.refuse(mini, "has no token ",
                    "which config.json names as eos_token_id")

    def test_tokenizer_and_template_as_the_coordinator_judges_them(self):
        def verdict(name, change):
            """Of ring-tiny with one file changed."""
            with tempfile.TemporaryDirectory() as folder:
                tiny = os.path.abspath(os.path.join(DATA_DIR, "ring-tiny"))
                for file in os.listdir(tiny):
                    os.symlink(os.path.join(tiny, file),
                               os.path.join(folder, file))
                path = os.path.join(folder, name)
                with open(path) as file:
                    content = json.load(file)
                change(content)
                os.remove(path)
                with open(path, "w") as file:
                    json.dump(content, file)
                return check(folder, 1)[:2]

        def template(text):
            return lambda config: config.update(chat_template=text)

        for name, change, words in (
                ("tokenizer.json",
                 lambda tokenizer: tokenizer.update(
                     normalizer={"type": "NFKC"}), "normalizer"),
                ("tokenizer.json",
                 lambda tokenizer: tokenizer.update(
                     pre_tokenizer={"type": "Metaspace"}), "Metaspace"),
                ("tokenizer_config.json", template("{% if messages %}"),
                 "line 1"),
                ("tokenizer_config.json", template("{{ messages | shuffle }}"),
                 "shuffle")):
            code, report = verdict(name, change)
            self.assertEqual(code, 1, report)
            self.assertIn(words, report)
        code, report = verdict("tokenizer_config.json", template(
            [{"name": "default", "template": "{{ messages[0].content }}"}]))
        self.assertEqual(code, 0, report)
        self.assertIn("25 bytes of Jinja", report)

    def test_context_that_yarn_extends(self):
        mini = sparse("mini")
        mini.config["rope_scaling"] = {
            "rope_type": "yarn", "factor": 4.0,
            "original_max_position_embeddings":
                mini.config["max_position_embeddings"]}
        longest = 4 * mini.config["max_position_embeddings"]
        with tempfile.TemporaryDirectory() as folder:
            mini.write(folder)
            code, report, _ = check(folder, 1, 1, "--max-context",
                                    str(longest))
            self.assertEqual(code, 0, report)
            code, report, _ = check(folder, 1, 1, "--max-context",
                                    str(longest + 1))
            self.assertEqual(code, 1, report)
            self.assertIn(f"--max-context = {longest + 1} is above the "
                          f"{longest} tokens", report)

    def test_mesh_that_does_not_fit(self):
        self.refuse(sparse("mini"),
                    "tp=3 does not divide 16 query heads", tp=3)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=1)
