"""Stands in for every role: what each does is in FAKE_ROLES, a JSON object from its name to one word.

good: end well once the run is over · finish: end the run, as the learner does · leave: end well at once ·
fail: say why and exit 3 · deaf: ignore SIGTERM · mother: be good, with a deaf daughter in a session of her own ·
mute (broker): never say where it listens · stay: good, but never leave
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    """Behave."""
    run = Path(sys.argv[sys.argv.index("--config-dir") + 1]).parent
    role = sys.argv[sys.argv.index("--config-name") + 1].removeprefix("run_")
    name = next((word.partition("=")[2] for word in sys.argv if ".name=" in word), f"{role}-0")
    what = json.loads(os.environ["FAKE_ROLES"]).get(name, "good")
    note(run, name, os.getpid())
    if role == "broker" and what != "mute":
        (run / "broker.json").write_text(json.dumps({"broker": "tcp://127.0.0.1:1", "http": "", "pid": os.getpid()}))
    if what == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if what == "mother":
        daughter = [sys.executable, __file__, *sys.argv[1:], f"daughter.name={name}-daughter"]
        command = [word for word in daughter if not word.startswith(("actor.name", "verifier.name"))]
        roles = json.dumps({f"{name}-daughter": "deaf"})
        subprocess.Popen(command, start_new_session=True, env={**os.environ, "FAKE_ROLES": roles})
    if what == "leave":
        return
    if what == "fail":
        print("2026-01-01 00:00:00,000 actor ERROR the engine has no memory left", file=sys.stderr)
        print("a farewell of no interest", file=sys.stderr)
        sys.exit(3)
    if what == "finish":
        wait_for(run / "pids" / "actor-0", run / "pids" / "verifier-0")
        summary = {"reward_start": 0.25, "reward_end": 0.95, "steps": 3, "seconds": 61.0, "stopped_because": "enough"}
        (run / "summary.json").write_text(json.dumps(summary))
        return
    while what != "good" or not (run / "summary.json").exists():
        time.sleep(0.02)


def note(run: Path, name: str, pid: int) -> None:
    """Leave the process id where the test finds it, whole or not at all."""
    (run / "pids").mkdir(exist_ok=True)
    partial = run / "pids" / f".{name}"
    partial.write_text(str(pid))
    partial.replace(run / "pids" / name)


def wait_for(*paths: Path) -> None:
    """Until all of them are there."""
    while not all(path.exists() for path in paths):
        time.sleep(0.02)


if __name__ == "__main__":
    main()
