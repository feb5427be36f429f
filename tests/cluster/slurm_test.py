"""deploy/slurm/serve.sbatch on a real slurmctld with three slurmd."""

import os
import signal
import sys
import time
import unittest

from cluster import BIN, FAILURE_S, ROOT, SMALL_GROUP, TINY, eventually
from slurm_lab import SlurmLab

SKIPPED = 77  # known to CTest
HOSTS = 3
RANKS = 2 * HOSTS


class SlurmTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.lab = cls.enterClassContext(SlurmLab(HOSTS, cpus=2))

    def tearDown(self):
        self.lab.run("scancel", "--user=root")
        eventually(lambda: not self.lab.run("squeue", "-h"),
                   what="all jobs are gone")

    def submit(self, *worker_options, **settings):
        """Job id and address file of a server of ring-tiny on all hosts."""
        job = self.lab.run(
            "sbatch", "--parsable", f"--nodes={HOSTS}",
            os.path.join(ROOT, "deploy/slurm/serve.sbatch"), check=True,
            RING_BIN=BIN, RING_MODEL=TINY, RING_TP="2",
            RING_WORKER_OPTIONS=" ".join([*SMALL_GROUP, *worker_options]),
            OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
            OMPI_MCA_mpi_yield_when_idle="1", OMPI_MCA_btl="self,vader,tcp",
            OMPI_MCA_btl_tcp_if_include="10.77.0.0/24",
            OMPI_MCA_oob_tcp_if_include="10.77.0.0/24", **settings)
        return job, self.lab.folder / f"ringmaster-{job}.address"

    def log(self, job):
        return (self.lab.folder / f"ringmaster-{job}.log").read_text()

    def answer(self, address, host):
        return self.lab.run(
            os.path.join(BIN, "ring"), "generate", "--server", f"@{address}",
            "--prompt", "What is 17 + 25?", "--temperature", "0", host=host)

    def wait_serving(self, address):
        """Processes of the group's ranks."""
        eventually(address.exists, what="the coordinator listens")
        eventually(lambda: "serving" in self.lab.run(
            os.path.join(BIN, "ring"), "status", "--server", f"@{address}"),
            what="a group serves")
        ranks = self.ranks()
        self.assertEqual(len(ranks), RANKS)
        return ranks

    def ranks(self, **variables):
        return {pid for name, pid in self.lab.processes(**variables)
                if name == "ring-worker"}

    def cancel(self, job, address):
        self.lab.run("scancel", job, check=True)
        eventually(lambda: not self.lab.processes(SLURM_JOB_ID=job),
                   what="no process of the job is left")
        self.assertFalse(address.exists())

    def test_serves_outlives_a_rank_and_ends(self):
        job, address = self.submit()
        ranks = self.wait_serving(address)
        # From another host than the coordinator's.
        self.assertIn("42", self.answer(address, "h3"))

        start = time.monotonic()
        os.kill(min(self.ranks(SLURMD_NODENAME="h3")), signal.SIGKILL)
        eventually(lambda: not ranks & self.ranks(), what="the ranks are gone")
        self.assertLess(time.monotonic() - start, FAILURE_S)
        self.assertRegex(self.log(job), "incident rank=[0-9]+ host=h3 ")

        self.wait_serving(address)  # another group
        self.assertIn("42", self.answer(address, "h2"))
        self.cancel(job, address)

    def test_serves_through_mpirun(self):
        job, address = self.submit(RING_LAUNCH="mpirun")
        self.wait_serving(address)
        self.assertIn("42", self.answer(address, "h2"))
        self.cancel(job, address)

    def test_a_mistake_ends_the_job(self):
        job, address = self.submit("--no-such-option")
        eventually(lambda: not self.lab.run("squeue", "-h"),
                   what="the job has ended")
        log = self.log(job)
        self.assertIn("--no-such-option", log)
        self.assertNotIn("a new one starts", log)
        self.assertFalse(address.exists())


if __name__ == "__main__":
    if os.geteuid() != 0:
        print("needs root: the hosts are network namespaces")
        sys.exit(SKIPPED)
    unittest.main()
