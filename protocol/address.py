"""Where the broker listens: an address, or a file that names one and is read again whenever the broker is missed.

A broker that a batch system starts again may come back on another host. It writes where it listens into its run's
broker.json, whole or not at all; a peer on the same shared file system that was given `file:/…/broker.json` instead of
an address finds it there.
"""

import json
from pathlib import Path

from protocol.clock import Deadline, pause
from protocol.errors import PeerSilent, Refused

FILE = "file:"
LOOK_SECONDS = 0.5  # between two looks at a file that is not there yet


def current(broker: str) -> str:
    """The address for which `broker` stands now: itself, or what its file says; empty while there is no such file.

    Raises `Refused` when the file says no address.
    """
    if not broker.startswith(FILE):
        return broker
    path = Path(broker.removeprefix(FILE))
    try:
        text = path.read_text()
    except OSError:  # not there yet, or the file system is away for a moment: its reader asks again
        return ""
    try:
        return str(json.loads(text)["broker"])
    except (ValueError, KeyError, TypeError):
        raise Refused(f"{path}: must be a broker.json as a broker writes it; give broker=tcp://host:port") from None


def awaited(broker: str, seconds: float) -> str:
    """`current`, once there is one. Raises `PeerSilent` when its file does not appear within `seconds`."""
    deadline = Deadline(seconds)
    while not (address := current(broker)):
        if deadline.passed:
            path = broker.removeprefix(FILE)
            raise PeerSilent(
                f"{path} is not there after {seconds:g} s: check the path, that this host sees the same directory, and "
                "that the broker runs"
            )
        pause(min(LOOK_SECONDS, deadline.remaining))
    return address
