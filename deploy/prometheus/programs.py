"""Where `prometheus` and `promtool` are: on the PATH, or where `make prometheus` unpacked them beside this Python."""

import shutil
import sys
from pathlib import Path

UNPACKED = Path(sys.prefix) / "debian" / "usr" / "bin"


class ProgramMissing(Exception):
    """The program is not installed; the text says how to get it."""


def program(name: str) -> str:
    """The path of a program. Raises `ProgramMissing`."""
    if found := shutil.which(name) or shutil.which(name, path=UNPACKED):
        return found
    raise ProgramMissing(
        f"{name} is not installed: `make prometheus` fetches Debian's package (`apt-get install prometheus` does too, "
        "and starts a service), or see https://prometheus.io/download"
    )
