"""ring-tiny finds a number that stands somewhere in a long text.

It was trained on texts of up to 4,096 tokens; that it reads longer ones rests on
what its layers carry through all of them.
"""

import concurrent.futures
import random
import unittest

from cluster import Cluster

FILLER = ("The road is long.", "The sun is yellow.", "The sky is blue.",
          "The grass is green.", "The wind is cold today.", "Here we go.",
          "There and back again.", "Rain falls on the hill.",
          "The river runs to the sea.", "A bird sings in the tree.")
FILLER_TOKENS = 5.3  # of a sentence, on average
REQUESTS = 16  # side by side


def question(key, tokens, rng):
    """About so many tokens of text with a pass key anywhere in it."""
    text = rng.choices(FILLER, k=round((tokens - 60) / FILLER_TOKENS))
    text.insert(rng.randrange(len(text) + 1),
                f"The pass key is {key}. Remember it. {key} is the pass key.")
    return ("There is a pass key hidden in this text. " + " ".join(text) +
            " What is the pass key?")


class PassKeyTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = cls.enterClassContext(Cluster())
        cls.cluster.start_coordinator()
        cls.cluster.start_group()
        cls.cluster.wait_serving()

    def answer(self, text):
        return self.cluster.generate("--temperature", "0", "--prompt", text)

    def test_finds_pass_keys(self):
        rng = random.Random(7)
        for tokens in (1000, 3000, 6400):
            with self.subTest(tokens=tokens):
                keys = [str(rng.randrange(10000, 100000))
                        for _ in range(REQUESTS)]
                texts = [question(key, tokens, rng) for key in keys]
                with concurrent.futures.ThreadPoolExecutor(REQUESTS) as pool:
                    answers = list(pool.map(self.answer, texts))
                for answer in answers:
                    self.assertAlmostEqual(
                        answer["usage"]["prompt_tokens"] / tokens, 1,
                        delta=0.05)
                found = sum(f"The pass key is {key}." in answer["text"]
                            for key, answer in zip(keys, answers))
                self.assertGreaterEqual(found, 15)


if __name__ == "__main__":
    unittest.main(verbosity=2)
