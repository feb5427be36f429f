"""`ring bench` against a real group: what it says it sent is what the server
counts, its files say the same, and it stops when it is told to.
"""

import json
import os
import pty
import signal
import subprocess
import unittest
import xml.etree.ElementTree

from cluster import PATIENCE_S, Cluster, eventually

SVG = "{http://www.w3.org/2000/svg}"


class BenchTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = cls.enterClassContext(Cluster())
        cls.start(cls.cluster)

    @staticmethod
    def start(cluster, *options):
        cluster.start_coordinator(*options)
        cluster.start_group(ranks=1, tp=1)
        cluster.wait_serving()

    def file(self, name):
        return os.path.join(self.cluster.folders.files, name)

    def bench(self, *options, cluster=None, code=0):
        """(standard output, the object of --json)."""
        cluster = cluster or self.cluster
        path = self.file("bench.json")
        result = subprocess.run(
            cluster.ring_command("bench", "--json", path, *options),
            env=cluster.environment, capture_output=True, text=True,
            timeout=PATIENCE_S, check=False)
        self.assertEqual(result.returncode, code, result.stderr)
        self.assertEqual(result.stderr, "")
        with open(path, encoding="utf-8") as file:
            return result.stdout, json.load(file)

    def counts(self):
        status = self.cluster.status()
        return status["finished_requests"], status["generated_tokens"]

    def test_sends_what_it_says(self):
        before = self.counts()
        text, figures = self.bench(
            "--concurrency", "1,4", "--requests", "12", "--warmup", "2",
            "--prompt-tokens", "20", "--output-tokens", "16",
            "--ttft-limit-ms", "1e8", "--itl-limit-ms", "1e8")
        after = self.counts()
        self.assertEqual(after[0] - before[0], 24)
        self.assertEqual(after[1] - before[1], 24 * 16)
        for load, concurrency in zip(figures["loads"], (1, 4)):
            self.assertEqual(load["concurrency"], concurrency)
            self.assertEqual(
                (load["requests"], load["finished"], load["good"]),
                (10, 10, 10))
            self.assertEqual(load["failures"], {})
            self.assertAlmostEqual(load["tokens_per_s"] * load["seconds"],
                                   160, delta=1e-6)
            self.assertAlmostEqual(
                load["prompt_tokens_per_s"] * load["seconds"], 200, delta=1e-6)
            for times in ("ttft_ms", "inter_token_ms", "end_to_end_ms"):
                values = load[times]
                self.assertGreater(values["p50"], 0)
                self.assertLessEqual(values["p50"], values["p90"])
                self.assertLessEqual(values["p90"], values["p99"])
                self.assertLessEqual(values["p99"], values["max"])
            self.assertEqual(load["ttft_ms"]["count"], 10)
            self.assertLessEqual(load["ttft_ms"]["max"],
                                 load["end_to_end_ms"]["max"])
        self.assertIn("4 requests in flight: 10 of 10 requests finished", text)
        self.assertIn("10 of 10 within the limits", text)
        self.assertTrue(self.cluster.nothing_is_held())

    def test_the_plot_shows_the_figures(self):
        path = self.file("bench.svg")
        _, figures = self.bench(
            "--rate", "20,40", "--requests", "8", "--prompt-tokens", "4:30",
            "--output-tokens", "12~4", "--plot", path)
        groups = xml.etree.ElementTree.parse(path).getroot().findall(SVG + "g")
        self.assertEqual(len(groups), 3)
        for group, times in zip(
                groups, ("ttft_ms", "inter_token_ms", "end_to_end_ms")):
            # Ticks: pixels where a number stands.
            texts = group.findall(SVG + "text")
            x_ticks = {float(t.text): float(t.get("x")) for t in texts
                       if t.get("y") == "260"}
            y_ticks = {float(t.text): float(t.get("y")) - 4 for t in texts
                       if t.get("x") == "72"}
            dots = [(float(c.get("cx")), float(c.get("cy")))
                    for c in group.findall(SVG + "circle")]
            expected = [
                (self.between(x_ticks, load["rate"]),
                 self.between(y_ticks, load[times][percentile]))
                for percentile in ("p50", "p90", "p99")
                for load in figures["loads"]]
            self.assertEqual(len(dots), 6)
            for dot, place in zip(dots, expected):
                self.assertAlmostEqual(dot[0], place[0], delta=0.01)
                self.assertAlmostEqual(dot[1], place[1], delta=0.01)

    @staticmethod
    def between(ticks, value):
        """Where a value stands between the first and the last tick."""
        low, high = min(ticks), max(ticks)
        share = (value - low) / (high - low)
        return ticks[low] + share * (ticks[high] - ticks[low])

    def test_a_trace_is_sent_at_its_times(self):
        path = self.file("trace.jsonl")
        with open(path, "w", encoding="utf-8") as file:
            file.write('{"arrival_s": 0, "prompt_tokens": 9, "max_tokens": 3}\n'
                       '{"arrival_s": 0.4, "text": "Hi", "max_tokens": 5}\n')
        before = self.counts()
        _, figures = self.bench("--trace", path)
        after = self.counts()
        self.assertEqual(after[1] - before[1], 8)
        load = figures["loads"][0]
        self.assertEqual((load["requests"], load["finished"]), (2, 2))
        self.assertGreaterEqual(load["seconds"], 0.4)

    def test_failures_are_counted_by_status(self):
        with Cluster() as cluster:
            # 8 run, none waits.
            self.start(cluster, "--max-queued", "0")
            text, figures = self.bench(
                "--rate", "100000", "--requests", "40", "--output-tokens",
                "64", cluster=cluster, code=1)
            load = figures["loads"][0]
            refused = load["failures"]["RESOURCE_EXHAUSTED"]
            self.assertGreater(refused, 0)
            self.assertGreaterEqual(load["finished"], 8)
            self.assertEqual(load["finished"] + refused, 40)
            self.assertEqual(load["end_to_end_ms"]["count"], load["finished"])
            self.assertIn(f"failed: {refused} with RESOURCE_EXHAUSTED, the "
                          "first: the queue is full", text)

    def test_ctrl_c_ends_it_with_what_there_is(self):
        # Standard error is a terminal, so there is a line of progress.
        leader, follower = pty.openpty()
        with subprocess.Popen(
                self.cluster.ring_command(
                    "bench", "--concurrency", "2", "--duration", "3600",
                    "--output-tokens", "200"),
                env=self.cluster.environment, stdout=subprocess.PIPE,
                stderr=follower, text=True) as bench:
            os.close(follower)
            seen = b""
            while b"2 running" not in seen or b" 0 finished" in seen[-200:]:
                seen += os.read(leader, 4096)
            bench.send_signal(signal.SIGINT)
            # A terminal whose other side is closed is at its end.
            try:
                while data := os.read(leader, 4096):
                    seen += data
            except OSError:
                pass
            os.close(leader)
            output = bench.stdout.read()
            code = bench.wait(PATIENCE_S)
        self.assertEqual(code, 1)
        self.assertIn(b"bench was stopped before its end", seen)
        self.assertNotIn(b"3 running", seen)
        self.assertIn("2 requests in flight: ", output)
        self.assertNotIn("failed", output)
        eventually(self.cluster.nothing_is_held, what="nothing is held")


if __name__ == "__main__":
    unittest.main(verbosity=2)
