"""`python -m deploy.local scale RUN actors=4 verifiers=2`: more or fewer processes of a run that goes on.

The wish is a file in the run's directory. The launcher looks for it as often as for the processes, takes it by removing
it, starts what is missing and asks what is too many to leave; so the command knows that it was heard when the file is
gone. It waits `HEARD_SECONDS` at most.
"""

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import NoReturn

from deploy.local import presence

FILE = "scale.json"
ROLES = {"actors": "actor", "verifiers": "verifier"}  # what the command calls them → the role's name
HEARD_SECONDS = 10.0
POLL_SECONDS = 0.05
USAGE = "give a run and how many of what, as in `python -m deploy.local scale runs/quickstart actors=4 verifiers=2`"

Wish = dict[str, int]  # role → the number of its processes


def parse(words: list[str]) -> Wish:
    """`["actors=4"]` as a wish. Raises `ValueError`."""
    wish: Wish = {}
    for word in words:
        found = re.fullmatch(r"(\w+)=(\d+)", word)
        if not found or found[1] not in ROLES:
            raise ValueError(f"{word!r}: must be one of {', '.join(f'{name}=N' for name in ROLES)} with N of 0 or more")
        wish[ROLES[found[1]]] = int(found[2])
    if not wish:
        raise ValueError(USAGE)
    return wish


def ask(directory: Path, wish: Wish, seconds: float = HEARD_SECONDS) -> None:
    """Have the launcher of `directory` run so many of each; returns when it has heard.

    Raises `ValueError` when nobody does.
    """
    path = directory / FILE
    if presence.at_work(directory):
        partial = directory / f".{FILE}.{os.getpid()}"
        partial.write_text(json.dumps(wish))
        partial.replace(path)
    deadline = time.monotonic() + seconds
    while presence.at_work(directory):
        if not path.exists():
            return
        if time.monotonic() > deadline:
            path.unlink(missing_ok=True)
            raise ValueError(f"{directory}: its launcher has not taken {FILE} in {seconds:g} s: is it stopped?")
        time.sleep(POLL_SECONDS)
    path.unlink(missing_ok=True)
    raise ValueError(f"{directory}: no launcher is at work there; a run begins with as many as `actors=` says")


def heard(directory: Path) -> Wish:
    """Take the wish that lies in `directory`; empty if there is none. Raises `ValueError` on what is none."""
    path = directory / FILE
    try:
        text = path.read_text()
    except FileNotFoundError:
        return {}
    path.unlink(missing_ok=True)
    try:
        wish = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    known = isinstance(wish, dict) and set(wish) <= set(ROLES.values())
    if not known or not all(type(number) is int and number >= 0 for number in wish.values()):
        raise ValueError(f"{path} must give a number of 0 or more to {' and '.join(ROLES.values())}, holds {text:.80}")
    return dict(wish)


def plural(role: str) -> str:
    """What the command calls the processes of `role`."""
    return next(name for name, known in ROLES.items() if known == role)


def main(words: list[str]) -> NoReturn:
    """The command."""
    try:
        if not words or not Path(words[0]).is_dir():
            raise ValueError(USAGE)
        directory, wish = Path(words[0]), parse(words[1:])
        ask(directory, wish)
    except (ValueError, OSError) as error:
        sys.exit(f"scale: {error}")
    numbers = ", ".join(f"{number} {role}{'' if number == 1 else 's'}" for role, number in wish.items())
    print(f"{directory}: {numbers} from now on; those that are too many finish what they have begun")
    sys.exit(0)
