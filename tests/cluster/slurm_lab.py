"""A Slurm cluster on one machine: slurmctld and a slurmd for each of its hosts.

A host is a network namespace with an address of 10.77.0.0/24, which nothing
outside of it can reach, and has process ids, host name and shared memory of its
own. Needs root, and the packages of the group slurm in deploy/packages.sh.
"""

import contextlib
import os
import pathlib
import secrets
import shutil
import subprocess
import tempfile
import uuid

from cluster import PATIENCE_S, environment_of, eventually

# Runs as the first process of a host; when that ends, so do all others there.
FIRST_PROCESS = """
hostname "$0"
for folder in /dev/shm "$NODE_TMP"; do mount -t tmpfs tmpfs "$folder"; done
"$@" &
wait
"""

CONFIG = """
ClusterName=lab
SlurmctldHost=h1(10.77.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={lab}/munge/socket
CredType=cred/munge
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MailProg=/bin/true
ReturnToService=2
SlurmctldPidFile={lab}/slurmctld.pid
SlurmctldLogFile={lab}/slurmctld.log
SlurmdPidFile={lab}/%n.pid
SlurmdLogFile={lab}/%n.log
SlurmdSpoolDir={lab}/spool-%n
StateSaveLocation={lab}/state
KillWait=5
SlurmdParameters=config_overrides
TmpFS={lab}/tmp
NodeName=h[1-{hosts}] NodeAddr=10.77.0.[1-{hosts}] CPUs={cpus} RealMemory=2000
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class SlurmLab:
    """Context manager; hosts are h1 (with slurmctld), h2, ..."""

    def __init__(self, hosts, cpus):
        self.hosts = [f"h{i + 1}" for i in range(hosts)]
        self.cpus = cpus
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="ring-slurm."))
        self.name = self.folder.name.replace(".", "-")
        self.mark = uuid.uuid4().hex
        self.environment = {**os.environ, "RING_CLUSTER": self.mark,
                            "SLURM_CONF": str(self.folder / "slurm.conf"),
                            "NODE_TMP": str(self.folder / "tmp")}
        self.daemons = []

    def __enter__(self):
        try:
            self._start()
        except BaseException:
            self.__exit__(True)
            raise
        return self

    def __exit__(self, error, *_):
        if error:
            self.print_logs()
        for daemon in reversed(self.daemons):
            daemon.kill()
            daemon.wait()
        for host in [*self.hosts, "hub"]:
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", self._namespace(host))
        shutil.rmtree(self.folder, ignore_errors=True)

    def _namespace(self, host):
        return f"{self.name}-{host}"

    def _connect(self):
        hub = self._namespace("hub")
        ip("netns", "add", hub)
        ip("-n", hub, "link", "add", "bridge", "type", "bridge")
        ip("-n", hub, "link", "set", "bridge", "up")
        for i, host in enumerate(self.hosts, 1):
            own = self._namespace(host)
            ip("netns", "add", own)
            ip("-n", own, "link", "set", "lo", "up")
            ip("link", "add", "net", "netns", own, "type", "veth", "peer",
               "name", host, "netns", hub)
            ip("-n", own, "addr", "add", f"10.77.0.{i}/24", "dev", "net")
            ip("-n", own, "link", "set", "net", "up")
            ip("-n", hub, "link", "set", host, "master", "bridge")
            ip("-n", hub, "link", "set", host, "up")

    def _start(self):
        for name in ("munge", "state", "tmp",
                     *(f"spool-{host}" for host in self.hosts)):
            (self.folder / name).mkdir()
        os.chmod(self.folder, 0o755)
        munge = self.folder / "munge"
        munge.chmod(0o755)
        key = munge / "key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        (self.folder / "slurm.conf").write_text(CONFIG.format(
            lab=self.folder, hosts=len(self.hosts), cpus=self.cpus))
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        self._daemon(
            "munged", "--foreground", f"--key-file={key}",
            *(f"--{name}={munge / name.split('-')[0]}"
              for name in ("socket", "pid-file", "seed-file", "log-file")))
        eventually((munge / "socket").exists, what="munged")
        self._connect()
        self._on(self.hosts[0], "slurmctld", "-D")
        for host in self.hosts:
            self._on(host, "slurmd", "-D", "-N", host)
        eventually(lambda: self.run("sinfo", "-h", "-t", "idle", "-o", "%D")
                   == str(len(self.hosts)), what="all nodes are idle")

    def _inside(self, host):
        # Not `ip netns exec`, which hides the control groups from slurmd.
        return ["nsenter", f"--net=/run/netns/{self._namespace(host)}"]

    def _on(self, host, *daemon):
        self._daemon(*self._inside(host), "unshare", "--uts", "--mount",
                     "--pid", "--fork", "--kill-child", "--mount-proc", "bash",
                     "-c", FIRST_PROCESS, host, *daemon)

    def _daemon(self, *command):
        with open(self.folder / "daemons.log", "ab") as log:
            self.daemons.append(subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log))

    def run(self, *command, host="h1", check=False, **variables):
        """What a command prints on a host, without blanks at its ends."""
        result = subprocess.run(
            [*self._inside(host), *command], cwd=self.folder, check=False,
            env={**self.environment, **variables}, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=PATIENCE_S)
        if check and result.returncode != 0:
            raise AssertionError(f"{command}: {result.stdout}")
        return result.stdout.strip()

    def processes(self, **variables):
        """Name and id, as this process sees it, of the cluster's processes with
        these environment variables."""
        wanted = {"RING_CLUSTER": self.mark, **variables}
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            if wanted.items() <= environment_of(pid).items():
                with contextlib.suppress(OSError):
                    name = pathlib.Path(f"/proc/{pid}/comm").read_text().strip()
                    found.append((name, int(pid)))
        return found

    def print_logs(self):
        for log in sorted(self.folder.glob("*.log")):
            print(f"--- {log.name}", *log.read_text(errors="replace")
                  .splitlines()[-30:], sep="\n", flush=True)
