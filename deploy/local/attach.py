"""`python -m deploy.local --attach RUN`: the live view of a run that another terminal, or another user, has started.

It reads the run's directory and the broker's /status, and nothing of the run depends on it: Ctrl-C takes the view away
and the run goes on. It ends by itself, with the run's result, when neither a launcher nor a broker is at work there.
"""

import json
import sys
import time
from pathlib import Path
from typing import NoReturn

from deploy.local import layout, presence
from deploy.local.live import LOOK_SECONDS, View, view
from deploy.local.plain import result

USAGE = "give the directory of a run, as in `python -m deploy.local --attach runs/quickstart`"


def attach(directory: Path, watching: View) -> str:
    """Show the run until it ends; returns what came of it, in one line. Raises `ValueError` on garbled files."""
    while alive(directory):
        watching.show()
        time.sleep(LOOK_SECONDS)
    watching.close()
    summary = directory / "summary.json"
    if not summary.is_file():
        return f"{directory}: nobody is at work there, and the run did not come to its end (resume=true goes on)"
    return result(json.loads(summary.read_text()))


def alive(directory: Path) -> bool:
    """Whether the run goes on: under its launcher, or with a broker that was started by hand on this host."""
    return presence.at_work(directory) or layout.running_broker(directory) is not None


def main(words: list[str]) -> NoReturn:
    """The command."""
    if len(words) != 1 or not Path(words[0]).is_dir():
        sys.exit(f"attach: {USAGE}")
    watching = view("auto", Path(words[0]))
    try:
        print(attach(Path(words[0]), watching))
    except KeyboardInterrupt:
        watching.close()
    except ValueError as error:
        sys.exit(f"attach: {error}")
    sys.exit(0)
