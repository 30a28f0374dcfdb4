"""Stands in for every role: what each does is in FAKE_ROLES, a JSON object from its name to words, one for each start
of it, of which the last holds for all further ones.

good: end well once the run is over · finish: end the run, as the learner does · obey: the same, once RUN/finish is
there · obey_and_die: the same, but be killed when the broker has left · leave: end well at once · fail: say why and
exit 3 · fail_later: the same after `LATER` seconds · die: be killed at once · deaf: ignore SIGTERM · mother: be good,
with a deaf daughter in a session of her own · mother_of_two: the second one has no environment either · mute (broker):
never say where it listens · stay: good, but never leave · depend: exit 1 when the broker is gone · leave_with_broker:
leave well then

Each start is noted in RUN/starts/<name>.jsonl: pid, command, clock, and which daughters of the name are alive.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

LATER = 0.5  # seconds that `fail_later` lives


def main() -> None:
    """Behave."""
    run = Path(sys.argv[sys.argv.index("--config-dir") + 1]).parent
    role = sys.argv[sys.argv.index("--config-name") + 1].removeprefix("run_")
    name = next((word.partition("=")[2] for word in sys.argv if ".name=" in word), f"{role}-{os.getenv('RANK', '0')}")
    words = json.loads(os.environ["FAKE_ROLES"]).get(name, "good").split()
    starts = note(run, name)
    what = words[min(starts, len(words)) - 1]
    print(f"{name} is {what}", flush=True)
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "broker-0" and what != "mute":
        listen(run)
    if what == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if what.startswith("mother"):
        bear(f"{name}-daughter", dict(os.environ))
    if what == "mother_of_two":
        bear(f"{name}-naked", {})
    if what == "leave":
        return
    if what == "fail_later":
        time.sleep(LATER)
    if what.startswith("fail"):
        print("2026-01-01 00:00:00,000 actor ERROR the engine has no memory left", file=sys.stderr)
        print("a farewell of no interest", file=sys.stderr)
        sys.exit(3)
    if what in ("finish", "obey", "obey_and_die"):
        wait_for(run / "pids" / "actor-0", run / "pids" / "verifier-0", *([run / "finish"] if what != "finish" else []))
        finish(run)
        if what == "obey_and_die":
            wait_for(run / "broker_left")
            os.kill(os.getpid(), signal.SIGKILL)
        return
    while what in ("stay", "mute") or not (run / "summary.json").exists():
        time.sleep(0.02)
        if what in ("depend", "leave_with_broker") and not alive(int((run / "pids" / "broker-0").read_text())):
            sys.exit("actor: the broker was silent for 30 s" if what == "depend" else 0)
    if name == "broker-0":
        (run / "broker_left").touch()


def note(run: Path, name: str) -> int:
    """Leave word of this start where the test finds it, and the process id, whole or not at all; returns how many."""
    for folder in ("pids", "starts"):
        (run / folder).mkdir(exist_ok=True)
    daughters = [file for file in (run / "pids").glob(f"{name}-*") if alive(int(file.read_text()))]
    start = {
        "pid": os.getpid(),
        "command": sys.argv,
        "clock": time.monotonic(),
        "daughters": [file.name for file in daughters],
    }
    with (run / "starts" / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(start) + "\n")
    write(run / "pids" / name, str(os.getpid()))
    return len((run / "starts" / f"{name}.jsonl").read_text().splitlines())


def listen(run: Path) -> None:
    """Say where, as the broker does: the configured address and port, or ones that another start would not get."""
    text = (run / "config" / "run_broker.yaml").read_text()
    config = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line and not line.startswith(" "))
    free = 20000 + os.getpid() % 40000
    http = f"http://127.0.0.1:{int(config['metrics_port']) or free}"
    here = {"broker": config["broker"].replace("*", str(free)), "http": http, "pid": os.getpid()}
    write(run / "broker.json", json.dumps(here))


def bear(daughter: str, environment: dict[str, str]) -> None:
    """Start a daughter."""
    command = [word for word in sys.argv[1:] if ".name=" not in word]
    subprocess.Popen(
        [sys.executable, __file__, *command, f"daughter.name={daughter}"],
        start_new_session=True,
        env={**environment, "FAKE_ROLES": json.dumps({daughter: "deaf"})},
    )


def finish(run: Path) -> None:
    """Write what the learner writes last."""
    summary = {"reward_start": 0.25, "reward_end": 0.95, "steps": 3, "seconds": 61.0, "stopped_because": "enough"}
    write(run / "summary.json", json.dumps(summary))


def write(path: Path, text: str) -> None:
    """So that a reader sees all of it or nothing."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)


def wait_for(*paths: Path) -> None:
    """Until all of them are there."""
    while not all(path.exists() for path in paths):
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


if __name__ == "__main__":
    main()
