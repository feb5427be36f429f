"""Groups that cannot run as they were started: one message, exit code 2.

The message says what, where and what to do; it comes before any weight is read,
no rank stays, and nothing of it looks like the failure of a rank.
"""

import concurrent.futures
import json
import os
import shutil
import tempfile
import unittest

from cluster import TINY, Cluster

AT_ONCE = 3  # groups that start side by side: most of their time they wait


class MistakesTest(unittest.TestCase):
    def assert_one_message(self, group, *texts):
        """The group ends by itself and says one thing."""
        code = group.wait()
        said = [line for line in group.lines if "ring-worker: " in line]
        self.assertEqual(code, 2, group.lines)
        self.assertEqual(len(said), 1, group.lines)
        for text in texts:
            self.assertIn(text, said[0])
        for trace in ("incident", "loading weights", "terminate called"):
            self.assertEqual(
                [line for line in group.lines if trace in line], [])
        self.assertEqual(group.incidents(), [])
        self.assertEqual(group.rank_pids(), {})

    def test_flags_that_do_not_fit(self):
        def check(options, ranks, tp, model, texts):
            group = cluster.start_group(*options, ranks=ranks, tp=tp,
                                        model=model, limits=())
            self.assert_one_message(group, *texts)

        cases = (
            (["--threads", "many"], 2, 1, TINY,
             ["--threads", "many", "0 to 4096"]),
            (["--max-sequences", "4000"], 1, 1, TINY,
             ["--max-batch-tokens", "2048", "--max-sequences + 64", "4064"]),
            ([], 2, 3, TINY, ["--tp 3 does not divide the 2 ranks"]),
            (["--dp", "3"], 2, 1, TINY, ["dp=3 needs 3 ranks, but 2"]),
            ([], 8, 8, TINY, ["tp=8 does not divide 4 query heads"]),
            ([], 1, 1, "/nonexistent",
             ["--model /nonexistent", "cannot open", "config.json"]),
            (["--device", "tpu"], 1, 1, TINY,
             ["--device", '"tpu" is no device', "use cpu, cuda or cuda:N"]),
            (["--device", "cuda:77"], 1, 1, TINY, ["--device cuda:77: "]),
            (["--kv-tokens", "60000000000"], 2, 2, TINY,
             ["not enough memory", "of KV pages", "the other ranks",
              "lower --kv-tokens 60000000000"]),
            (["--max-batch-tokens", "1048576", "--max-sequences", "60000"], 1,
             1, TINY, ["not enough memory", "are available", "lower --max-"]),
            (["--bench", "--bench-batches", "1", "--bench-prompts", "16384"],
             2, 1, TINY, ["--bench-prompts 16384", "--max-context", "16384"]),
            (["--bench", "--bench-batches", "1,17", "--kv-tokens", "131072"],
             1, 1, TINY, ["--bench-batches 17", "there are 131072 and 16"]),
            (["--bench", "--bench-context", "16384"], 1, 1, TINY,
             ["--bench-context 16384", "allows: 16384"]),
            (["--tls-cert", TINY + "/config.json"], 1, 1, TINY,
             ["--tls-cert and --tls-key need --tls-ca"]),
        )
        with Cluster() as cluster:
            cluster.start_coordinator()
            with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
                turns = [(case, pool.submit(check, *case)) for case in cases]
            for case, turn in turns:
                with self.subTest(case=case):
                    turn.result()

    def test_address_that_is_none(self):
        with Cluster() as cluster:
            group = cluster.start_group(ranks=2, tp=1, limits=(),
                                        coordinator="localhost:99999")
            self.assert_one_message(group, "--coordinator",
                                    '"99999" is no number in [1, 65535]')

    def test_mistake_of_one_rank_names_it(self):
        """Two ranks whose folders are not the same."""
        with Cluster() as cluster:
            cluster.start_coordinator()
            group = cluster.start_group(
                # The options of the first program end here.
                ":", "-np", "1", os.path.join(
                    os.environ.get("RING_BIN_DIR", "build/cpu/bin"),
                    "ring-worker"),
                "--coordinator", cluster.address, "--model", "/nonexistent",
                ranks=1, tp=1, limits=())
            self.assert_one_message(group, "rank 1 on ", "/nonexistent")

    def test_other_model_than_the_coordinator(self):
        with Cluster() as cluster, tempfile.TemporaryDirectory() as folder:
            other = self.other_model(folder)
            coordinator = cluster.start_coordinator()
            group = cluster.start_group(ranks=2, model=other)
            self.assert_one_message(group, f"--coordinator {cluster.address}",
                                    "another model", "digest",
                                    "give both the same --model")
            self.assertEqual(cluster.status()["groups"], [])

            # A coordinator that comes back with another model.
            address = cluster.address
            group = cluster.start_group(ranks=2)
            group.wait_joined()
            coordinator.stop()
            coordinator.close()
            cluster.start_coordinator(address=address, model=other)
            self.assertEqual(group.wait(), 2)
            said = [line for line in group.lines if "ring-worker: " in line]
            self.assertEqual(len(said), 1, group.lines)
            self.assertIn("refused this group", said[0])
            self.assertIn("another model", said[0])
            self.assertEqual(group.incidents(), [])

    def other_model(self, folder):
        """ring-tiny with another config, so with another digest."""
        other = os.path.join(folder, "other")
        shutil.copytree(TINY, other)
        path = os.path.join(other, "config.json")
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        config["rope_theta"] *= 2
        with open(path, "w", encoding="utf-8") as file:
            json.dump(config, file)
        return other


if __name__ == "__main__":
    unittest.main(verbosity=2)
