"""The failure contract: one rank fails, the whole group is gone in time.

Every case starts a group of four ranks, brings it into a phase, and kills or
stops one of its ranks. Then, within 15 s: the launcher has ended with an
error, no rank is left, every survivor that wrote an incident line names the
culprit, the request that ran ends UNAVAILABLE and the coordinator says
NOT_SERVING. It serves again when the next case's group joins.

  failure_test.py FailureTest         a few cases
  failure_test.py FailureMatrixTest   every rank, signal and phase; minutes
"""

import os
import re
import shutil
import signal
import tempfile
import time
import unittest

import grpc

from cluster import (DATA, FAILURE_S, TINY, Cluster, environment_of,
                     eventually)
from proto_client import (endless_request, error_of, generate,
                          ids_request, wait_for_delta)

RANKS = 4
LONG_PROMPT = [(7 * i) % 800 for i in range(12000)]


def write_long_loading_model(folder):
    """A model of 1.2 billion parameters whose weights are made up."""
    shutil.copy(os.path.join(DATA, "configs/flash-1b.json"),
                os.path.join(folder, "config.json"))
    for name in ("tokenizer.json", "tokenizer_config.json",
                 "generation_config.json"):
        shutil.copy(os.path.join(TINY, name), folder)


class FailureCases:
    """What both tests share; a test class derives from it."""

    @classmethod
    def setUpClass(cls):
        cls.cluster = cls.enterClassContext(Cluster())
        cls.cluster.start_coordinator()
        cls.big_model = cls.enterClassContext(tempfile.TemporaryDirectory())
        write_long_loading_model(cls.big_model)

    # Each brings a new group into a phase; returns it and a call that runs.

    def loading(self):
        group = self.cluster.start_group("--load", "dummy", ranks=RANKS, tp=2,
                                         model=self.big_model)
        group.wait_for_lines("rank starts", RANKS)
        return group, None

    def idle(self):
        group = self.cluster.start_group(ranks=RANKS, tp=2)
        self.cluster.wait_serving()
        return group, None

    def prefill(self):
        group, _ = self.idle()
        call = generate(self.cluster.channel, ids_request(LONG_PROMPT, 1))
        eventually(lambda: any(g["running"]
                               for g in self.cluster.status()["groups"]))
        return group, call

    def decode(self):
        group, _ = self.idle()
        call = generate(self.cluster.channel, endless_request())
        wait_for_delta(call)
        return group, call

    def check(self, phase, number, rank):
        with self.subTest(phase=phase, signal=number.name, rank=rank):
            group, call = getattr(self, phase)()
            try:
                self.fail_one(group, call, number, rank)
            finally:
                group.kill()

    def fail_one(self, group, call, number, rank):
        pids = group.rank_pids()
        self.assertEqual(sorted(pids), list(range(RANKS)))
        os.kill(pids[rank], number)
        start = time.monotonic()
        code = group.wait()
        eventually(lambda: not any(map(environment_of, pids.values())))
        gone = time.monotonic() - start
        if call is not None:
            self.assertEqual(error_of(call).code(),
                             grpc.StatusCode.UNAVAILABLE)
        self.cluster.health().wait_for("NOT_SERVING")
        total = time.monotonic() - start
        print(f"{number.name} of rank {rank}: mpirun returned {code}, group"
              f" gone after {gone:.1f} s, clients know after {total:.1f} s,"
              f" {len(group.incidents())} incident lines", flush=True)

        self.assertNotEqual(code, 0)
        self.assertLess(total, FAILURE_S)
        named = [re.search(r"incident rank=(\d+) .* reporter=(\d+)$", line)
                 for line in group.incidents()]
        self.assertTrue(named, "no incident line")
        self.assertEqual({int(m[1]) for m in named}, {rank})
        # Who fails like this reports nothing.
        self.assertNotIn(rank, {int(m[2]) for m in named})

    def check_serves_again(self):
        group, call = self.decode()
        call.cancel()
        eventually(self.cluster.nothing_is_held)
        group.stop()


class FailureTest(FailureCases, unittest.TestCase):
    def test_kill(self):
        for phase in ("decode", "idle"):
            for rank in (0, 3):
                self.check(phase, signal.SIGKILL, rank)
        self.check_serves_again()

    def test_stop(self):
        for phase in ("decode", "idle"):
            for rank in (0, 3):
                self.check(phase, signal.SIGSTOP, rank)


class FailureMatrixTest(FailureCases, unittest.TestCase):
    def test_every_rank_signal_and_phase(self):
        for phase in ("loading", "idle", "prefill", "decode"):
            for number in (signal.SIGKILL, signal.SIGSTOP):
                for rank in range(RANKS):
                    self.check(phase, number, rank)
        self.check_serves_again()

    def test_slow_loading_is_no_failure(self):
        """A rank may load for longer than it may stand still."""
        group, _ = self.loading()
        group.wait_for_lines("making up weights", RANKS)  # after 10 s
        time.sleep(5)  # a watchdog that misjudges acts meanwhile
        self.assertEqual(group.incidents(), [])
        self.assertEqual(len(group.rank_pids()), RANKS)
        group.kill()


if __name__ == "__main__":
    unittest.main(verbosity=2)
