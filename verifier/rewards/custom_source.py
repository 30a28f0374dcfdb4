"""A user's reward function by dotted path, found without importing it."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MOST_BYTES = 8 * 2**20  # of a package's source
_DOTTED = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class CustomFunction:
    """Function `name` of `module`, which lies in `folder`. `packages` are folders that it may import from besides."""

    module: str
    name: str
    folder: str
    trusted: bool
    packages: tuple[str, ...] = ()
    memory_bytes: int = 2**30  # of a sandboxed one

    @property
    def option(self) -> str:
        """As the configuration names it."""
        return f"custom.function={self.module}:{self.name}"

    @property
    def place(self) -> Path:
        """What must be readable: the file of the module, or the folder of its outermost package."""
        top, *inner = self.module.split(".")
        folder = Path(self.folder, top)
        return folder if inner or folder.is_dir() else folder.with_suffix(".py")

    def files(self) -> dict[str, bytes]:
        """The sources of the module and of the package that it belongs to, by their path in `folder`.

        Raises `ValueError` when there is too much of it.
        """
        place = self.place
        paths = [place] if place.is_file() else sorted(place.rglob("*.py"))
        found = {str(path.relative_to(self.folder)): path.read_bytes() for path in paths}
        if (size := sum(map(len, found.values()))) > MOST_BYTES:
            raise ValueError(f"{self.option}: {place} holds {size} bytes of Python, more than {MOST_BYTES}")
        return found


def find(
    function: str, folders: Sequence[str], *, trusted: bool, packages: Sequence[str] = (), memory_bytes: int = 2**30
) -> CustomFunction:
    """The function that `package.module:name` means, in `folders` or on Python's path. Raises `ValueError`."""
    if not (match := _DOTTED.fullmatch(function)):
        raise ValueError(f"custom.function={function}: must be written package.module:name")
    module, name = match.groups()
    for folder in [*folders, *(path or "." for path in sys.path)]:
        base = Path(folder, *module.split("."))
        if base.with_suffix(".py").is_file() or (base / "__init__.py").is_file():
            home = str(Path(folder).resolve())
            return CustomFunction(module, name, home, trusted, tuple(packages), memory_bytes)
    where = f"in {', '.join(folders)} or " if folders else ""
    raise ValueError(
        f"custom.function={function}: there is no module {module} {where}on Python's path; set custom.path"
    )
