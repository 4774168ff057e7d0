"""A real Slurm cluster of two nodes on this machine, to try the launcher.

    apt-get install --no-install-recommends slurmctld slurmd slurm-client munge \
        slurmdbd mariadb-server
    python -m tests.launchers.try_slurm --folder=/tmp/slurm start    # then do what it prints
    python -m tests.launchers.try_slurm --folder=/tmp/slurm stop

Everything lives in the folder and on loopback; no system service is touched. Jobs of the partition
`main` are requeued when jobs of the partition `high` need their place. Without slurmdbd and MariaDB
there is no sacct, and Slurm forgets a job some minutes after its end.
"""

import contextlib
import getpass
import os
import pathlib
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence

from absl import flags, logging

from experiments.cli import command_line
from resnet_jax.allowed import check_choice
from resnet_jax.errors import RunError, UserError
from resnet_jax.runs import storage

_FOLDER = flags.DEFINE_string("folder", None, "The cluster's folder; created if it does not exist.")
_CPUS = flags.DEFINE_integer("cpus", 2, "CPUs that each of the two nodes reports.")

NEEDED = ("slurmctld", "slurmd", "sbatch", "munged")
FOR_ACCOUNTING = ("slurmdbd", "mariadbd", "mariadb-install-db")
NODES = ("127.0.0.2", "127.0.0.3")
_START_SECONDS = 60
_DAEMONS = ("slurmctld", "slurmd", "slurmdbd", "slurmstepd", "munged", "mariadbd")
_NODE = "RESNET_JAX_TRY_NODE"

_SLURM = """\
ClusterName=try
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
SlurmdTimeout=8
KillWait=20
NodeName=127.0.0.[2-3] NodeHostname={host} Port=[{ports}] CPUs={cpus} RealMemory=8000
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""
_ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd_port}
AccountingStoragePass={folder}/munge.socket
JobAcctGatherType=jobacct_gather/none
"""
_SLURMDBD = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={dbd_port}
SlurmUser={user}
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={db_port}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
"""


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    if len(argv) != 2:
        raise UserError("Give start or stop; see --help.")
    check_choice("the command", argv[1], ("start", "stop"))
    cluster = Cluster(storage.on_disk(command_line.required(_FOLDER), "--folder").absolute())
    if argv[1] == "stop":
        cluster.stop()
        return 0
    cluster.start(_CPUS.value)
    print(f"export SLURM_CONF={cluster.conf}")
    print(
        "python -m experiments.sweep --config=configs/degradation_digits.py:one_rate "
        "--workdir=runs/slurm --launcher=slurm"
    )
    return 0


class Cluster:
    """The daemons of a Slurm cluster, with all their files in one folder."""

    def __init__(self, folder: pathlib.Path):
        """Starts nothing yet."""
        self.folder = folder
        self._children: list[subprocess.Popen[bytes]] = []

    @property
    def conf(self) -> pathlib.Path:
        """The value for SLURM_CONF."""
        return self.folder / "slurm.conf"

    @property
    def _mark(self) -> str:
        """The variable in the environments of this cluster's daemons and tasks."""
        return f"SLURM_CONF={self.conf}"

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which Slurm's commands reach this cluster."""
        return os.environ | {"SLURM_CONF": str(self.conf)}

    def start(self, cpus: int) -> None:
        """Starts everything and waits until both nodes are idle.

        Raises:
          UserError: a program is missing, or a cluster already runs in the folder.
          RunError: the cluster did not start.
        """
        absent = [name for name in NEEDED if shutil.which(name) is None]
        if absent:
            raise UserError(f"{', '.join(absent)} cannot be found; see --help for what to install.")
        if any(self._pids()):
            raise UserError(f"A cluster runs in {self.folder}; stop it first.")
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "state").mkdir(exist_ok=True)
        first = _free_ports(5)
        values = {
            "folder": self.folder,
            "host": socket.gethostname().split(".")[0],
            "user": getpass.getuser(),
            "cpus": cpus,
            "port": first,
            "dbd_port": first + 1,
            "db_port": first + 2,
            "ports": f"{first + 3}-{first + 4}",
        }
        accounting = all(shutil.which(name) for name in FOR_ACCOUNTING)
        self.conf.write_text((_SLURM + _ACCOUNTING * accounting).format(**values), encoding="utf-8")
        self._munge()
        if accounting:
            self._database(first + 2)
            conf = self.folder / "slurmdbd.conf"
            conf.write_text(_SLURMDBD.format(**values), encoding="utf-8")
            conf.chmod(0o600)
            self._daemon("slurmdbd", "-D")
            self._until(lambda: _listens(first + 1), "slurmdbd")
        self._daemon("slurmctld", "-D", "-c")
        for node in NODES:
            self.start_node(node)
        self._until(lambda: self.run("sinfo", "-h", "-N", "-t", "idle").count("\n") >= 4, "Slurm")
        logging.info("Slurm runs in %s, %s sacct.", self.folder, "with" if accounting else "no")

    def start_node(self, node: str) -> None:
        """Starts a node's daemon; it returns to service by itself."""
        (self.folder / f"spool.{node}").mkdir(exist_ok=True)
        self._daemon("slurmd", "-D", "-N", node, mark=node)

    def lose_node(self, node: str) -> None:
        """Kills a node's daemon and everything it started, like a power failure."""
        marks = {f"SLURMD_NODENAME={node}", f"{_NODE}={node}"}
        for pid, name in _processes():
            environment = _environment(pid)
            is_marked = self._mark in environment and marks & environment
            if is_marked or (name == "slurmstepd" and self._uses_spool(node, pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _uses_spool(self, node: str, pid: int) -> bool:
        """Whether a process has a node's spool folder, or a file in it, open."""
        links = [pathlib.Path(f"/proc/{pid}/cwd"), *pathlib.Path(f"/proc/{pid}/fd").glob("*")]
        for link in links:
            with contextlib.suppress(OSError):
                if str(link.readlink()).startswith(f"{self.folder}/spool.{node}"):
                    return True
        return False

    def run(self, *command: str) -> str:
        """Returns the output of one of Slurm's commands, empty if it fails."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, encoding="utf-8", errors="replace"
        )
        return done.stdout if done.returncode == 0 else ""

    def stop(self) -> None:
        """Cancels all jobs and ends every daemon."""
        if self.conf.is_file():
            self.run("scancel", "--state=PENDING", f"--user={getpass.getuser()}")
            self.run("scancel", "--signal=KILL", "--full", f"--user={getpass.getuser()}")
        for number, seconds in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
            for pid in self._pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            give_up = time.monotonic() + seconds
            while any(self._pids()) and time.monotonic() < give_up:
                time.sleep(0.1)
        for child in self._children:
            child.wait()

    def _pids(self) -> list[int]:
        return [
            pid
            for pid, name in _processes()
            if name in _DAEMONS and self._mark in _environment(pid)
        ]

    def _munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(64))
        key.chmod(0o400)
        self._daemon(
            "munged", "--foreground", "--force", f"--key-file={key}",
            f"--socket={self.folder}/munge.socket", f"--pid-file={self.folder}/munge.pid",
            f"--log-file={self.folder}/munge.log", f"--seed-file={self.folder}/munge.seed",
        )  # fmt: skip
        self._until((self.folder / "munge.socket").exists, "munged")

    def _database(self, port: int) -> None:
        data = self.folder / "mariadb"
        user = f"--user={getpass.getuser()}"
        if not data.is_dir():
            subprocess.run(
                ["mariadb-install-db", "--no-defaults", f"--datadir={data}", user,
                 "--auth-root-authentication-method=normal", "--skip-test-db"],
                check=True, capture_output=True,
            )  # fmt: skip
        create = self.folder / "create.sql"
        create.write_text(
            "CREATE DATABASE IF NOT EXISTS slurm;\n"
            "CREATE USER IF NOT EXISTS slurm@'127.0.0.1' IDENTIFIED BY 'slurm';\n"
            "GRANT ALL ON slurm.* TO slurm@'127.0.0.1';\n",
            encoding="utf-8",
        )
        self._daemon(
            "mariadbd", "--no-defaults", f"--datadir={data}", user, "--bind-address=127.0.0.1",
            f"--port={port}", f"--socket={self.folder}/mariadb.socket", f"--init-file={create}",
            "--skip-name-resolve", "--innodb-buffer-pool-size=64M",
            f"--pid-file={self.folder}/mariadb.pid",
        )  # fmt: skip
        self._until(lambda: _listens(port), "mariadbd")

    def _daemon(self, *command: str, mark: str = "") -> None:
        environment = self.environment | ({_NODE: mark} if mark else {})
        with open(self.folder / f"{command[0]}.out", "ab") as out:
            self._children.append(
                subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment,
                    start_new_session=True,
                )
            )  # fmt: skip

    def _until(self, ready: Callable[[], bool], program: str) -> None:
        give_up = time.monotonic() + _START_SECONDS
        while not ready():
            if time.monotonic() > give_up:
                self.stop()
                raise RunError(f"{program} did not start; see the logs in {self.folder}.")
            time.sleep(0.2)


def _environment(pid: int) -> set[str]:
    """Returns a process's variables as KEY=VALUE; empty if they cannot be read."""
    with contextlib.suppress(OSError):
        return set(
            pathlib.Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
        )
    return set()


def _processes() -> Iterator[tuple[int, str]]:
    """Yields the number and name of every process that is not a zombie."""
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            stat = (folder / "stat").read_text(encoding="utf-8", errors="replace")
            name, rest = stat.split("(", 1)[1].rsplit(")", 1)
            if rest.split()[0] != "Z":
                yield int(folder.name), name


def _free_ports(count: int) -> int:
    """Returns the first of `count` free ports in a row."""
    for first in range(26800 + os.getpid() % 500 * 10, 60000, count):
        if not any(_listens(port) for port in range(first, first + count)):
            return first
    raise RunError("No free ports were found.")


def _listens(port: int) -> bool:
    hosts = ("127.0.0.1", *NODES)
    for host in hosts:
        with socket.socket() as s:
            s.settimeout(0.2)
            if s.connect_ex((host, port)) == 0:
                return True
    return False


if __name__ == "__main__":
    command_line.run(main)
