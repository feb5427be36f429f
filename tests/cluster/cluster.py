"""A whole Ringmaster cluster as a test fixture: real processes on loopback.

    with Cluster() as cluster:
        cluster.start_coordinator()
        group = cluster.start_group(ranks=4, tp=2)
        cluster.wait_serving()
        answer = cluster.generate("--raw", "Hello")

Leaving the block stops everything in good order and fails when a process of
the cluster is left. Ports are free ones, files lie in a folder that goes.
The programs come from the folder RING_BIN_DIR, by default build/cpu/bin.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid

import grpc

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
BIN = os.environ.get("RING_BIN_DIR", os.path.join(ROOT, "build/cpu/bin"))
DATA = os.path.join(ROOT, "tests/data")
TINY = os.path.join(DATA, "ring-tiny")

# Longer than anything here takes on a busy machine; no test waits it out.
PATIENCE_S = 90
# How long the design allows a failed group to exist.
FAILURE_S = 15

# A rank needs little memory then, and starts quickly.
SMALL_GROUP = ("--max-sequences", "8", "--kv-tokens", "32768",
               "--max-batch-tokens", "256", "--threads", "1")

# A test that is told to stop unwinds, and with it goes the cluster.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))


def eventually(condition, seconds=PATIENCE_S, what="the condition"):
    """Returns the first true value of condition(), which no event announces."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} does not hold after {seconds} s")
        time.sleep(0.02)


def environment_of(pid):
    """The environment of a process; {} when it is gone, or a zombie."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            entries = file.read().split(b"\0")
    except OSError:
        return {}
    return dict(entry.decode(errors="replace").split("=", 1)
                for entry in entries if b"=" in entry)


def cpu_seconds(pid):
    """Processor time that a process has used, all threads."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Program:
    """A child process; its standard error is read line by line."""

    def __init__(self, command, environment):
        self.lines = []
        self._ended = False
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(line.decode(errors="replace").rstrip())
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait_for_lines(self, text, count=1):
        """The first `count` log lines with `text`; waits for them."""
        def found():
            return [line for line in self.lines if text in line][:count]
        with self._changed:
            self._changed.wait_for(
                lambda: len(found()) == count or self._ended, PATIENCE_S)
            if len(found()) != count:
                raise AssertionError(f"{len(found())} lines with {text!r}")
            return found()

    def wait(self, seconds=PATIENCE_S):
        """The exit code; every line has been read then."""
        code = self.process.wait(seconds)
        self._reader.join(seconds)
        return code

    def close(self):
        self._reader.join()
        self.process.stderr.close()

    def stop(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait()


class Coordinator(Program):
    """ring-coordinator, listening."""

    def __init__(self, address, model, options, environment):
        super().__init__([os.path.join(BIN, "ring-coordinator"), "--model",
                          model, "--listen", address, *options], environment)
        line = self.wait_for_lines("listening")[0]
        self.address = line.split("address=")[1].split()[0]


class Group(Program):
    """mpirun and the ranks of one worker group."""

    def __init__(self, coordinator, ranks, tp, model, options, folders,
                 environment):
        self.size = ranks
        self.id = uuid.uuid4().hex
        self.incident_file = os.path.join(folders.files, self.id + ".incident")
        super().__init__(
            ["mpirun", "--oversubscribe", "-np", str(ranks),
             os.path.join(BIN, "ring-worker"), "--coordinator", coordinator,
             "--model", model, "--tp", str(tp), "--incident-file",
             self.incident_file, *options],
            {**environment, "RING_GROUP": self.id,
             "OMPI_MCA_btl": "self,vader",
             "OMPI_MCA_btl_vader_backing_directory": folders.shared_memory,
             "OMPI_MCA_btl_sm_backing_directory": folders.shared_memory,
             "OMPI_MCA_orte_tmpdir_base": folders.files,
             "PRTE_MCA_prte_tmpdir_base": folders.files,
             "OMPI_MCA_oob_tcp_if_include": "lo"})

    def rank_pids(self):
        """Rank -> process id of the ranks that exist."""
        pids = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            variables = environment_of(pid)
            rank = variables.get("OMPI_COMM_WORLD_RANK")
            if variables.get("RING_GROUP") == self.id and rank:
                pids[int(rank)] = int(pid)
        return pids

    def wait_joined(self):
        self.wait_for_lines("joined the coordinator")

    def kill(self):
        """Ends what is left of a group, in whatever state it is."""
        for pid in [self.process.pid, *self.rank_pids().values()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.wait()

    def incidents(self):
        """Lines that the ranks wrote about the failure of one of them."""
        if not os.path.exists(self.incident_file):
            return []
        with open(self.incident_file, encoding="utf-8") as file:
            return file.read().splitlines()


class Folders:
    """Where a cluster keeps files; both go with everything left in them."""

    def __init__(self):
        self.files = tempfile.mkdtemp(prefix="ring-cluster.")
        self.shared_memory = tempfile.mkdtemp(prefix="ring-cluster.",
                                              dir="/dev/shm")

    def remove(self):
        # Ranks that are killed cannot remove their vader_segment files.
        shutil.rmtree(self.files, ignore_errors=True)
        shutil.rmtree(self.shared_memory, ignore_errors=True)


class Cluster:
    """One coordinator at a time and any number of groups."""

    def __init__(self):
        self.folders = Folders()
        self.mark = uuid.uuid4().hex
        self.environment = {
            **os.environ, "RING_CLUSTER": self.mark,
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "OMPI_MCA_mpi_yield_when_idle": "1"}
        self.coordinator = None
        self.groups = []
        self.channel = None

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        left = []
        try:
            if self.channel is not None:
                self.channel.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                for program in self.programs():
                    program.stop()
            left = self.processes()
        finally:
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for program in self.programs():
                program.close()
            if error is not None or left:
                self.print_logs()
            self.folders.remove()
        if error is None and left:
            raise AssertionError(f"processes outlive the cluster: {left}")

    def programs(self):
        return [*self.groups, *filter(None, [self.coordinator])]

    def processes(self):
        """Ids of the processes of this cluster, orphans included."""
        return [int(pid) for pid in filter(str.isdigit, os.listdir("/proc"))
                if environment_of(pid).get("RING_CLUSTER") == self.mark]

    def print_logs(self):
        for program in self.programs():
            print(f"--- {program.process.args[0]}", *program.lines[-25:],
                  sep="\n", file=sys.stderr)

    def start_coordinator(self, *options, address="127.0.0.1:0", model=TINY):
        self.coordinator = Coordinator(address, model, options,
                                       self.environment)
        if self.channel is not None:
            self.channel.close()
        # Connections of its own: a restarted coordinator has the same address.
        self.channel = grpc.insecure_channel(
            self.address, options=[("grpc.use_local_subchannel_pool", 1)])
        return self.coordinator

    @property
    def address(self):
        return self.coordinator.address

    def start_group(self, *options, ranks=4, tp=2, model=TINY,
                    limits=SMALL_GROUP, coordinator=None):
        """Does not wait: see wait_serving and Group.wait_joined."""
        group = Group(coordinator or self.address, ranks, tp, model,
                      [*limits, *options], self.folders, self.environment)
        self.groups.append(group)
        return group

    def health(self):
        return HealthWatch(self.channel)

    def wait_serving(self):
        self.health().wait_for("SERVING")

    def ring_command(self, command, *options):
        return [os.path.join(BIN, "ring"), command, "--server", self.address,
                *options]

    def start_ring(self, command, *options):
        """The `ring` client in the background, output as text."""
        return subprocess.Popen(
            self.ring_command(command, *options), env=self.environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True)

    def generate(self, *options):
        """What `ring generate --json` prints."""
        result = subprocess.run(
            self.ring_command("generate", "--json", *options),
            env=self.environment, capture_output=True, text=True,
            timeout=PATIENCE_S, check=False)
        if result.returncode != 0:
            raise AssertionError(result.stderr)
        return json.loads(result.stdout)

    def status(self):
        """What `ring status --json` prints, whatever its exit code."""
        result = subprocess.run(
            self.ring_command("status", "--json"), env=self.environment,
            capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        return json.loads(result.stdout)

    def nothing_is_held(self):
        """Every slot, page and token of all groups is free, nothing waits."""
        status = self.status()
        return status["queued"] == status["running"] == 0 and all(
            group["assigned_requests"] == group["running"] == 0 and
            group["queued"] == 0 and
            group["free_slots"] == group["max_sequences"] and
            group["free_tokens"] == group["kv_tokens"]
            for group in status["groups"])


class HealthWatch:
    """grpc.health.v1.Health/Watch of the whole server, as raw messages."""

    STATUS = {b"": "UNKNOWN", b"\x08\x01": "SERVING",
              b"\x08\x02": "NOT_SERVING", b"\x08\x03": "SERVICE_UNKNOWN"}

    def __init__(self, channel):
        self._watch = channel.unary_stream("/grpc.health.v1.Health/Watch")
        self._start()

    def _start(self):
        self._call = self._watch(b"", timeout=PATIENCE_S, wait_for_ready=True)

    def wait_for(self, status):
        """Reads changes until `status` comes."""
        while self._next() != status:
            pass

    def _next(self):
        try:
            return self.STATUS[next(self._call)]
        except grpc.RpcError as error:
            # The coordinator drops clients that do not run for 3 s, which
            # happens to this one on a busy machine.
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                raise
            self._start()
            return None
