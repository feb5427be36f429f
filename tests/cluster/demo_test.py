"""deploy/demo.sh answers, and leaves no process however it is ended."""

import contextlib
import os
import signal
import subprocess
import unittest
import uuid

from cluster import PATIENCE_S, ROOT, environment_of, eventually

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Demo:
    """demo.sh as a child; what it starts inherits a mark."""

    def __init__(self, *options):
        self.mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            [os.path.join(ROOT, "deploy/demo.sh"), *options],
            env={**os.environ, "RING_CLUSTER": self.mark}, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for pid in [self.process.pid, *self.running()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.communicate()

    def running(self):
        """Ids and names of the processes of this demo."""
        names = {}
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            if environment_of(pid).get("RING_CLUSTER") == self.mark:
                with contextlib.suppress(OSError):
                    with open(f"/proc/{pid}/cmdline", "rb") as file:
                        program = file.read().partition(b"\0")[0].decode()
                    names[pid] = os.path.basename(program)
        return names

    def wait_for_program(self, name):
        eventually(lambda: name in self.running().values(), what=name)

    def read_until(self, text):
        """What it prints up to the line with `text`, and that line."""
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if text in line:
                break
        return "".join(lines)


class DemoTest(unittest.TestCase):
    def assert_ends_on(self, demo, number):
        demo.process.send_signal(number)
        status = demo.process.wait(PATIENCE_S)
        self.assertEqual(demo.running(), {})
        self.assertEqual(status, STATUS[number])

    def test_answers(self):
        with Demo("What is 5345 + 42134?") as demo:
            output = demo.process.communicate(timeout=PATIENCE_S)[0]
            self.assertEqual(demo.running(), {})
            self.assertEqual(demo.process.returncode, 0)
        self.assertIn("47479\n", output)
        self.assertIn("tokens/s", output)
        self.assertIn("Sort 52", output)

    def test_a_question_without_quotes_is_refused(self):
        with Demo("What", "is", "it?") as demo:
            output = demo.process.communicate(timeout=PATIENCE_S)[0]
        self.assertEqual(demo.process.returncode, 2)
        self.assertEqual(output,
                         'demo.sh: one question, in quotes: "What is ..."\n')

    def test_an_interrupt_ends_what_it_has_started(self):
        for number in STATUS:
            for name in ("cmake", "ring-coordinator", "mpirun", "ring-worker"):
                with self.subTest(signal=number.name, running=name):
                    if name == "cmake":  # runs when its presets are newer
                        os.utime(os.path.join(ROOT, "CMakePresets.json"))
                    with Demo() as demo:
                        demo.wait_for_program(name)
                        self.assert_ends_on(demo, number)

    def test_keep_serves_until_it_is_told_to_stop(self):
        for number in STATUS:
            with self.subTest(signal=number.name), Demo("--keep") as demo:
                self.assertIn("Serving at 127.0.0.1:", demo.read_until("kill "))
                self.assertIn("ring-worker", demo.running().values())
                self.assert_ends_on(demo, number)


if __name__ == "__main__":
    unittest.main(verbosity=2)
