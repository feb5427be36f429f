"""Nobody burns a core while there is nothing to do."""

import os
import time
import unittest

from cluster import Cluster, cpu_seconds, eventually

LIMIT = 0.05  # of one core
WINDOW_S = 3


class IdleCpuTest(unittest.TestCase):
    def assert_idle(self, cluster, group):
        pids = {f"rank {rank}": pid
                for rank, pid in group.rank_pids().items()}
        self.assertEqual(len(pids), group.size)
        pids["coordinator"] = cluster.coordinator.process.pid
        start = time.monotonic()
        before = {name: cpu_seconds(pid) for name, pid in pids.items()}
        # Nothing else to wait for: idle time is what is measured.
        time.sleep(WINDOW_S)
        used = {name: cpu_seconds(pid) - before[name]
                for name, pid in pids.items()}
        seconds = time.monotonic() - start
        for name, cpu in used.items():
            print(f"{name}: {100 * cpu / seconds:.1f}% of a core")
            self.assertLessEqual(cpu / seconds, LIMIT, name)

    def test_four_ranks_on_two_cores(self):
        # The programs inherit it.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
        with Cluster() as cluster:
            cluster.start_coordinator()
            group = cluster.start_group(ranks=4, tp=2)
            cluster.wait_serving()
            self.assert_idle(cluster, group)  # before the first request
            cluster.generate("--prompt", "What is 5345 + 42134?")
            eventually(cluster.nothing_is_held)
            self.assert_idle(cluster, group)  # and after one


if __name__ == "__main__":
    unittest.main(verbosity=2)
