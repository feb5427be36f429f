"""What a client gets from a whole cluster: the reference's tokens.

Oracle: the float64 goldens in tests/data/golden.
"""

import concurrent.futures
import json
import os
import unittest

from cluster import DATA, Cluster

with open(os.path.join(DATA, "golden/golden_public.json"),
          encoding="utf-8") as golden_file:
    GOLDENS = json.load(golden_file)["prompts"]

# Prompts short enough to be asked again and again.
SHORT = [golden for golden in GOLDENS if len(golden["prompt_ids"]) < 50]


def ids_option(golden):
    return ["--ids", ",".join(map(str, golden["prompt_ids"]))]


def raw_option(golden):
    return ["--raw", golden["prompt"]]


class EndToEndTest(unittest.TestCase):
    """Each test method starts the cluster that it is about."""

    def start(self, *options, ranks=4, tp=2):
        cluster = self.enterContext(Cluster())
        cluster.start_coordinator()
        cluster.start_group(*options, ranks=ranks, tp=tp)
        cluster.wait_serving()
        return cluster

    def generate_all(self, cluster, commands):
        """Answers of `ring generate`, 16 at a time, in order."""
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            return list(pool.map(
                lambda options: cluster.generate(*options), commands))

    def assert_goldens(self, cluster, goldens, prompt_option):
        answers = self.generate_all(
            cluster, [prompt_option(golden) for golden in goldens])
        for golden, answer in zip(goldens, answers):
            with self.subTest(prompt=golden["prompt"][:80]):
                self.assertEqual(answer["token_ids"],
                                 golden["completion_ids"])
                self.assertEqual(answer["finish_reason"], "EOS")
                self.assertEqual(answer["usage"]["prompt_tokens"],
                                 len(golden["prompt_ids"]))
                self.assertEqual(answer["usage"]["completion_tokens"],
                                 len(golden["completion_ids"]))

    def test_all_goldens_on_four_ranks(self):
        cluster = self.start()
        self.assert_goldens(cluster, GOLDENS, raw_option)
        self.assert_goldens(cluster, GOLDENS, ids_option)
        self.assertTrue(cluster.nothing_is_held())

    def test_log_probabilities_with_each_exchange(self):
        for experts, tp in ((("--moe-exchange", "alltoall"), 2),
                            (("--moe-exchange", "replicated"), 2),
                            (("--experts", "sliced"), 4),
                            (("--deterministic",), 2)):
            cluster = self.start(*experts, "--activations", "fp32", tp=tp)
            goldens = SHORT[::4]
            answers = self.generate_all(
                cluster,
                [[*ids_option(golden), "--logprobs"] for golden in goldens])
            for golden, answer in zip(goldens, answers):
                self.assertEqual(answer["token_ids"], golden["completion_ids"])
                self.assertEqual(len(answer["logprobs"]),
                                 len(golden["top5_logprobs"]))
                for got, top5 in zip(answer["logprobs"],
                                     golden["top5_logprobs"]):
                    self.assertAlmostEqual(got, top5[0][1], delta=1e-3)

    def test_a_seed_gives_the_same_tokens_on_any_mesh(self):
        # Hot enough that the seeds part ways; no two candidates are so close
        # that fp32 rounding could swap them.
        commands = [[*ids_option(golden), "--temperature", "3", "--top-p",
                     "0.95", "--top-k", "200", "--max-tokens", "40", "--seed",
                     str(seed)]
                    for golden in SHORT[:3] for seed in (1, 2, 3)]
        seen = []
        for ranks, tp in ((1, 1), (4, 2)):
            cluster = self.start("--activations", "fp32", ranks=ranks, tp=tp)
            for _ in range(2):
                seen.append([answer["token_ids"] for answer in
                             self.generate_all(cluster, commands)])
        for other in seen[1:]:
            self.assertEqual(other, seen[0])
        self.assertEqual(len({tuple(ids) for ids in seen[0]}), len(commands))

    def test_where_a_completion_ends(self):
        cluster = self.start(ranks=2)
        golden = GOLDENS[0]
        ids = golden["completion_ids"]
        answer = golden["expected_answer"].split("</think>\n")[1][:5]

        cut = cluster.generate(*ids_option(golden), "--max-tokens", "5")
        self.assertEqual(cut["token_ids"], ids[:5])
        self.assertEqual(cut["finish_reason"], "LENGTH")

        stopped = cluster.generate(*ids_option(golden), "--stop", "no such",
                                   "--stop", answer[1:4])
        self.assertEqual(stopped["finish_reason"], "STOP_STRING")
        self.assertEqual(stopped["stop_string"], answer[1:4])
        self.assertEqual(stopped["text"], answer[:1])
        length = len(stopped["token_ids"])
        self.assertEqual(stopped["token_ids"], ids[:length])
        self.assertLess(length, len(ids) - 1)

        token = cluster.generate(*ids_option(golden), "--stop-ids",
                                 str(ids[3]))
        self.assertEqual(token["finish_reason"], "STOP_TOKEN")
        self.assertEqual(token["token_ids"], ids[:ids.index(ids[3]) + 1])


if __name__ == "__main__":
    unittest.main(verbosity=2)
