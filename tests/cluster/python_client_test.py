"""A Python client generated from proto/ talks to a whole cluster."""

import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

from cluster import PATIENCE_S, ROOT, Cluster
from proto_client import pb, rpc

QUESTION = "What is 5345 + 42134?"


class PythonClientTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = cls.enterClassContext(Cluster())
        cls.cluster.start_coordinator()
        cls.cluster.start_group(ranks=2, tp=1)
        cls.cluster.wait_serving()
        cls.inference = rpc.InferenceStub(cls.cluster.channel)
        cls.control = rpc.ControlStub(cls.cluster.channel)

    def test_streams_a_chat(self):
        chat = pb.Chat(messages=[pb.ChatMessage(role="user",
                                                content=QUESTION)])
        events = list(self.inference.Generate(
            pb.GenerateRequest(chat=chat), timeout=PATIENCE_S))
        self.assertTrue(events[0].HasField("accepted"))
        self.assertTrue(events[-1].HasField("finished"))
        deltas = [event.delta for event in events[1:-1]]
        self.assertEqual("".join(d.text for d in deltas), str(5345 + 42134))
        self.assertIn("5+4+0=9", "".join(d.reasoning for d in deltas))
        self.assertGreater(len(deltas), 10, "the tokens came in one heap")
        # No token is missing or comes twice.
        count = 0
        for delta in deltas:
            if delta.token_ids:
                self.assertEqual(delta.start_index, count)
            count += len(delta.token_ids)
        finished = events[-1].finished
        self.assertEqual(finished.reason, pb.FINISH_REASON_EOS)
        self.assertEqual(finished.usage.completion_tokens, count)
        self.assertEqual(finished.usage.prompt_tokens,
                         events[0].accepted.prompt_tokens)
        self.assertGreater(finished.timings.ttft_us, 0)
        self.assertGreater(finished.timings.total_us,
                           finished.timings.ttft_us)

    def test_a_chat_is_its_tokens(self):
        chat = pb.Chat(messages=[pb.ChatMessage(role="user",
                                                content=QUESTION)])
        tokenized = self.inference.Tokenize(pb.TokenizeRequest(chat=chat))
        answers = []
        for prompt in ({"chat": chat}, {"text": tokenized.text}, {
                "token_ids": pb.TokenIds(ids=tokenized.token_ids)}):
            events = self.inference.Generate(pb.GenerateRequest(**prompt),
                                             timeout=PATIENCE_S)
            answers.append([token for event in events
                            for token in event.delta.token_ids])
        self.assertEqual(answers[0], answers[1])
        self.assertEqual(answers[0], answers[2])

    def test_the_readme_s_client_runs(self):
        readme = pathlib.Path(ROOT, "README.md").read_text()
        code = dict(re.findall(r"^```(sh|python)\n(.*?)^```$",
                               readme, re.MULTILINE | re.DOTALL))
        with tempfile.TemporaryDirectory() as folder:
            os.symlink(os.path.join(ROOT, "proto"), folder + "/proto")
            pathlib.Path(folder, "client.py").write_text(code["python"])
            commands = (code["sh"].replace("127.0.0.1:7000",
                                           self.cluster.address)
                        .replace("python3 ", sys.executable + " "))
            result = subprocess.run(
                ["bash", "-ec", commands], cwd=folder, capture_output=True,
                text=True, timeout=PATIENCE_S, check=False)
        self.assertEqual(result.stderr, "")
        self.assertEqual(result.stdout, f"{5345 + 42134}\n")

    def test_choices_are_completions_of_their_own_seeds(self):
        def run(choices, seed):
            events = self.inference.Generate(
                pb.GenerateRequest(
                    text="1 2 3 4 5 6 7 8 9 " * 20,
                    sampling=pb.Sampling(temperature=1.5, seed=seed),
                    stopping=pb.Stopping(max_tokens=20),
                    output=pb.Output(choices=choices, top_logprobs=4,
                                     logprobs=True)),
                timeout=PATIENCE_S)
            ids = [[] for _ in range(choices)]
            top = [[] for _ in range(choices)]
            ends = []
            for event in events:
                ids[event.delta.choice] += event.delta.token_ids
                top[event.delta.choice] += event.delta.top_logprobs
                if event.HasField("finished"):
                    ends.append(event.finished.choice)
            self.assertEqual(sorted(ends), list(range(choices)))
            return ids, top

        ids, top = run(3, 77)
        self.assertEqual(len(set(map(tuple, ids))), 3)
        for choice in range(3):
            seed = (77 + choice * 0x9E3779B97F4A7C15) % 2**64
            self.assertEqual(run(1, seed)[0], [ids[choice]])
            self.assertEqual(len(top[choice]), len(ids[choice]))
            for place in top[choice]:
                self.assertEqual(len(place.token_ids), 4)
                self.assertEqual(sorted(place.logprobs, reverse=True),
                                 list(place.logprobs))

    def test_prompt_logprobs_come_first_and_complete(self):
        ids = self.inference.Tokenize(pb.TokenizeRequest(
            text="1 2 3 4 5 6 7 8 9 " * 20)).token_ids
        events = list(self.inference.Generate(
            pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids),
                               stopping=pb.Stopping(max_tokens=2),
                               output=pb.Output(prompt_logprobs=2)),
            timeout=PATIENCE_S))
        kinds = [event.WhichOneof("event") for event in events]
        self.assertEqual(kinds, ["accepted"] +
                         ["prompt_logprobs"] * kinds.count("prompt_logprobs") +
                         ["delta"] * kinds.count("delta") + ["finished"])
        places = 0
        for event in events:
            prompt = event.prompt_logprobs
            if prompt.logprobs:
                self.assertEqual(prompt.start_index, 1 + places)
            places += len(prompt.logprobs)
            for top, logprob in zip(prompt.top_logprobs, prompt.logprobs):
                self.assertEqual(len(top.token_ids), 2)
                self.assertLessEqual(logprob, top.logprobs[0])
        self.assertEqual(places, len(ids) - 1)

    def test_tells_model_and_load(self):
        model = self.inference.GetModel(pb.GetModelRequest())
        self.assertEqual(model.name, "ring-tiny")
        self.assertEqual(model.context_length, 16384)
        load = self.control.GetLoad(pb.GetLoadRequest())
        self.assertEqual([(group.dp, group.tp) for group in load.groups],
                         [(2, 1)])


if __name__ == "__main__":
    unittest.main(verbosity=2)
