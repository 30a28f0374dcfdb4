"""Slurm's commands as small shell scripts, which note how they were called and do what a test wants."""

import os
import subprocess
import time
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from deploy.slurm.config import SlurmRoot

CONF = Path(__file__).parents[2] / "deploy" / "conf"
ROOT = Path(__file__).parents[2]
SECONDS = 30.0  # within which a script must have ended

COMMANDS = {
    "sinfo": "echo main; echo gpu",
    "squeue": 'cat "$FAKE_SLURM/queue"',
    "sbatch": """
        case "$*" in
            *--test-only*) [[ ! -e $FAKE_SLURM/refusal ]] || { cat "$FAKE_SLURM/refusal" >&2; exit 1; } ;;
            *) echo $(($(grep -c '^sbatch --parsable' "$FAKE_SLURM/calls") + 10)) ;;
        esac""",
    "scontrol": """
        case "$*" in
            "show step "*) [[ -e $FAKE_SLURM/steps/${3#*.} ]] ;;
            "show job "*) echo "   PreemptEligibleTime=2026-01-01 PreemptTime=$(cat "$FAKE_SLURM/preempted")" ;;
            "show node "*) echo "   NodeAddr=127.0.0.1 NodeHostName=here" ;;
            "requeue "*) cat "$FAKE_SLURM"/steps/? 2>/dev/null | xargs --no-run-if-empty kill 2>/dev/null ;;
        esac""",
    "scancel": """
        for word; do
            case $word in
                --signal=*) signal=${word#--signal=} ;;
                *.*) step=${word#*.} ;;
            esac
        done
        if [[ -n ${step:-} && -n ${signal:-} ]]; then
            echo "$signal" >"$FAKE_SLURM/steps/$step.signal"
            kill -TERM "$(cat "$FAKE_SLURM/steps/$step")"
        fi""",
    # what a step does is in files: of the broker, and of all other roles
    "srun": """
        number=$(($(ls "$FAKE_SLURM/steps" | grep -vc signal)))
        echo $$ >"$FAKE_SLURM/steps/$number"
        case "$*" in
            *learner.broker*) source "$FAKE_SLURM/broker" ;;
            *) source "$FAKE_SLURM/role" ;;
        esac""",
}
GOOD_BROKER = """
    echo '{"broker": "tcp://127.0.0.1:1"}' >"$FAKE_RUN/broker.json"
    trap 'exit 0' TERM
    while [[ ! -e $FAKE_RUN/summary.json ]]; do sleep 0.05; done"""
PEERS = ("actor.sbatch", "verifier.sbatch")  # arrays
UNTIL_TOLD = "trap 'exit 0' TERM; while true; do sleep 0.05; done"


def tree(*overrides: str) -> DictConfig:
    """The options of a run, as `python -m deploy.slurm up` composes them."""
    ConfigStore.instance().store(name="slurm_schema", node=SlurmRoot)
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose("slurm", list(overrides))


class FakeSlurm:
    """The commands in `directory`/bin, and what they noted."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.bin = directory / "bin"
        self.bin.mkdir(parents=True)
        (directory / "steps").mkdir()
        for name in ("calls", "queue"):
            (directory / name).touch()
        for name, body in COMMANDS.items():
            path = self.bin / name
            path.write_text(f'#!/bin/bash\necho "{name} $*" >>"$FAKE_SLURM/calls"\n{body}\n')
            path.chmod(0o755)
        (directory / "preempted").write_text("None\n")
        self.roles(role="exit 0", broker=GOOD_BROKER)

    @property
    def environment(self) -> dict[str, str]:
        """That of a process that finds these commands first."""
        return {
            **os.environ,
            "FAKE_SLURM": str(self.directory),
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
        }

    def roles(self, *, role: str, broker: str = GOOD_BROKER) -> None:
        """What the steps do from now on, in bash."""
        (self.directory / "role").write_text(role)
        (self.directory / "broker").write_text(broker)

    def queue(self, *lines: str) -> None:
        """What squeue says from now on."""
        (self.directory / "queue").write_text("".join(f"{line}\n" for line in lines))

    def calls(self, command: str) -> list[str]:
        """How a command was called, in order."""
        lines = (self.directory / "calls").read_text().splitlines()
        return [line.removeprefix(f"{command} ") for line in lines if line.startswith(f"{command} ")]

    def requeued(self) -> list[str]:
        """What was put back into the queue, in order."""
        return [words[1] for words in map(str.split, self.calls("scontrol")) if words[0] == "requeue"]

    def preempt(self) -> None:
        """From now on Slurm says that the jobs are preempted and may end by themselves."""
        (self.directory / "preempted").write_text("2026-01-01T00:00:00\n")

    def told(self, step: int) -> str:
        """The last signal that a step got; empty if it got none."""
        path = self.directory / "steps" / f"{step}.signal"
        return path.read_text().strip() if path.exists() else ""

    def start(self, run: Path, script: str, **more: str) -> "subprocess.Popen[str]":
        """Begin a job: the script on a node, in a session of its own."""
        for step in (self.directory / "steps").iterdir():
            step.unlink()
        slurm = {
            "SLURM_JOB_ID": "7",
            "SLURMD_NODENAME": "n1",
            "SLURM_CPUS_PER_TASK": "1",
            "SLURM_NNODES": "1",
        }
        array = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "3"} if script in PEERS else {}
        return subprocess.Popen(
            ["bash", str(run / "slurm" / script)],
            env={**self.environment, **slurm, **array, "FAKE_RUN": str(run), **more},
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def until_stepping(self, step: int) -> None:
        """Wait until a step has begun."""
        end = time.monotonic() + SECONDS
        while not (self.directory / "steps" / str(step)).exists():
            assert time.monotonic() < end, f"step {step} does not begin"
            time.sleep(0.02)
        time.sleep(0.2)  # for its traps


def line(number: str, name: str, state: str = "RUNNING", index: str = "N/A") -> str:
    """A line of squeue's, in the launcher's format."""
    return f"{number}|{number.partition('_')[0]}|{index}|{name}|{state}|1:00|n1|None"
