"""A real Slurm of virtual nodes on this host: munged, slurmctld, and a slurmd a node; all of it in one folder."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
PLACES = ("/usr/sbin", "/usr/local/sbin", "/sbin")
NODE = "OFFBEAT_TEST_NODE"  # which slurmd, and every slurmstepd that it starts, has in its environment
CPUS = 8
SECONDS = 60.0  # within which daemons start and end
REQUEUED_SECONDS = 2.0  # that a requeued job waits at least
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
SlurmdTimeout=6
KillWait=30
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP LLN=YES
"""
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random")  # in the place of GPUs: counted, and kept from nobody
PREEMPTION = """
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""


def missing() -> str:
    """Which programs of Slurm this host lacks, or why it cannot run them; empty if it can."""
    lacking = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if lacking:
        return f"{', '.join(lacking)} not installed (Debian: slurmctld slurmd slurm-client munge)"
    return "" if os.getuid() == 0 else "slurmd starts jobs as root only"


def _path() -> str:
    return os.pathsep.join([os.environ["PATH"], *PLACES])


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports: list[int] = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class SlurmCluster:
    """Nodes n1, n2, … under `folder`. Use as a context manager: nothing of it is alive afterwards."""

    def __init__(self, folder: Path, nodes: int = 3, *, grace: int | None = None, gpus: int = 0) -> None:
        """With `grace` seconds jobs of a second partition, `urgent`, take nodes from those of `main`."""
        self.folder, self.grace, self.gpus = folder, grace, gpus
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        self.configuration = folder / "slurm.conf"
        self.environment = {**os.environ, "SLURM_CONF": str(self.configuration), "PATH": _path()}
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._requeued: dict[str, float] = {}  # jobs that wait to begin again, and since when

    def __enter__(self) -> "SlurmCluster":
        for name in ("munge", "state", "spool"):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)
        (self.folder / "munge").chmod(0o700)
        key = self.folder / "munge" / "key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(1024))
        self._configure()
        munge = [f"--{name}-file={self.folder / 'munge' / name}" for name in ("key", "pid", "log", "seed")]
        try:
            self._start("munged", "munged", "--foreground", "--force", *munge, f"--socket={self.folder}/munge/socket")
            self.until((self.folder / "munge" / "socket").exists, SECONDS, "munged listens")
            self._start("slurmctld", "slurmctld", "-D", "-c")
            for node in self.nodes:
                self.start_node(node)
            self.until(lambda: self.states() == {node: "idle" for node in self.nodes}, SECONDS, "all nodes are idle")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _configure(self) -> None:
        host, (port, *ports) = socket.gethostname(), _free_ports(len(self.nodes) + 1)
        gpus = f" Gres=gpu:{self.gpus}" if self.gpus else ""
        lines = [
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={own} CPUs={CPUS}{gpus}"
            for node, own in zip(self.nodes, ports, strict=True)
        ]
        if gpus:
            lines.insert(0, "GresTypes=gpu")
            (self.folder / "gres.conf").write_text("".join(f"Name=gpu File={path}\n" for path in DEVICES[: self.gpus]))
        # a node is known before the partition that it is in
        head, found, partition = CONFIGURATION.format(host=host, port=port, folder=self.folder, user="root").rpartition(
            "PartitionName"
        )
        partitions = found + partition if self.grace is None else PREEMPTION.format(grace=self.grace)
        self.configuration.write_text(head + "\n".join(lines) + "\n" + partitions)

    def _start(self, name: str, *command: str, **more: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as output:
            self.daemons[name] = subprocess.Popen(
                command,
                env={**self.environment, **more},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def start_node(self, node: str) -> None:
        """Switch a node on."""
        self._start(node, "slurmd", "-D", "-N", node, **{NODE: node})

    def kill_node(self, node: str) -> None:
        """Pull its plug: the daemon and everything that it has started are gone at once."""
        self.daemons[node].kill()
        self.daemons.pop(node).wait()
        _kill_all(lambda: self._of(f"{NODE}={node}", f"SLURMD_NODENAME={node}"))

    def _of(self, *marks: str) -> list[int]:
        """The processes of this cluster with one of these in their environment."""
        own = f"SLURM_CONF={self.configuration}".encode()
        return [pid for pid, words in _environments() if own in words and any(mark.encode() in words for mark in marks)]

    def states(self) -> dict[str, str]:
        """What Slurm says of each node."""
        try:
            lines = self.ask("sinfo", "--noheader", "--Node", "--format=%N %T").split("\n")
        except AssertionError:
            return {}  # it is not up yet
        return dict(line.split() for line in lines if line)

    def ask(self, *command: str) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(command, env=self.environment, text=True, capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def hurry(self) -> None:
        """Let requeued jobs start soon, and not two minutes later.

        Not at once: a node refuses to start what it ended in the same second, and Slurm then gives the job up.
        """
        lines = self.ask("squeue", "--noheader", "--states=PENDING", "--format=%A %r").splitlines()
        waiting = {number for number, reason in (line.split(" ", 1) for line in lines) if reason == "BeginTime"}
        self._requeued = {number: self._requeued.get(number, time.monotonic()) for number in waiting}
        for number, since in self._requeued.items():
            if time.monotonic() - since >= REQUEUED_SECONDS:
                subprocess.run(
                    ["scontrol", "update", f"jobid={number}", "StartTime=now"],
                    env=self.environment,
                    capture_output=True,  # it may have started meanwhile
                    check=False,
                )

    def until(self, true: Callable[[], bool], seconds: float, what: str, shown: Callable[[], str] = str) -> None:
        """Wait for a condition; fails when it does not come in time."""
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, f"not within {seconds} s: {what}\n{shown()}"
            time.sleep(0.2)

    def close(self) -> None:
        """End all of it, jobs first."""
        for daemon in reversed(self.daemons.values()):
            daemon.kill()
            daemon.wait()
        self.daemons.clear()
        _kill_all(lambda: [pid for pid, words in _environments() if self._marked(words)])

    def _marked(self, words: list[bytes]) -> bool:
        return f"SLURM_CONF={self.configuration}".encode() in words


def _environments() -> Iterator[tuple[int, list[bytes]]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                yield int(entry.name), (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue  # it has ended meanwhile


def _kill_all(found: Callable[[], list[int]]) -> None:
    """SIGKILL until nothing is found any more."""
    end = time.monotonic() + SECONDS
    while left := found():
        assert time.monotonic() < end, f"processes {left} do not end"
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)
