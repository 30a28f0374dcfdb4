"""The root that a check sees: a tmpfs with the interpreter, its libraries and five devices, all of it read-only."""

import os
import sys
import sysconfig
import tempfile
from collections.abc import Collection
from pathlib import Path

from verifier.sandbox import kernel
from verifier.sandbox.kernel import (
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_BIND,
    MS_NODEV,
    MS_NOSUID,
    MS_PRIVATE,
    MS_REC,
)

FOLDER = "/box"  # a check's own, and the only one that it can write to; /tmp leads there
_DEVICES = ("null", "zero", "full", "random", "urandom")
_STAGE = "/tmp"  # where the new root is put together; out of sight of all but this mount namespace
_LINKS = ("/lib", "/lib32", "/lib64")  # that the loader's paths go through


def interpreter() -> list[str]:
    """Files and folders that this interpreter needs to run and to import its standard library."""
    base, version = Path(sys.base_prefix), f"python{sys.version_info.major}.{sys.version_info.minor}"
    here = {"installed_base": sys.base_prefix, "platbase": sys.base_exec_prefix}  # not a virtual environment's
    wanted = [
        Path(sysconfig.get_path("stdlib", vars=here)),
        Path(sysconfig.get_path("platstdlib", vars=here)),
        base / "bin" / version,
        base / "lib" / f"lib{version}.so.1.0",
        Path("/etc/ld.so.cache"),
        Path("/lib64"),
        *_library_folders(),
    ]
    return [str(path) for path in wanted if path.exists()]


def _library_folders() -> set[Path]:
    """Where the shared libraries of this process come from."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    names = {line.split(maxsplit=5)[5] for line in lines if line.endswith(".so") or ".so." in line}
    folders = {Path(name).parent for name in names}
    return {folder for folder in folders if not str(folder).startswith(sys.base_prefix) or sys.base_prefix == "/usr"}


def build(readable: Collection[str]) -> None:
    """Replace the root of this process's mount namespace; each of `readable` lies where it lay. Raises `OSError`."""
    kernel.mount("", "/", flags=MS_REC | MS_PRIVATE)
    sources = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in _targets(readable)}
    devices = {f"/dev/{name}": os.open(f"/dev/{name}", os.O_PATH | os.O_CLOEXEC) for name in _DEVICES}
    links = {path: os.readlink(path) for path in {*_LINKS, *map(_top, readable)} if os.path.islink(path)}
    kernel.mount("tmpfs", _STAGE, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    if not any(path.startswith("/tmp/") for path in sources):  # a checkout may lie there, which must not be hidden
        links["/tmp"] = FOLDER
    for path, target in links.items():
        os.symlink(target, _STAGE + path)
    for path, source in {**sources, **devices}.items():
        _bind(source, _STAGE + path)
    os.makedirs(_STAGE + FOLDER, exist_ok=True)
    kernel.make_root(_STAGE)
    kernel.lock_mounts("/", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID)
    kernel.mount("tmpfs", FOLDER, "tmpfs", MS_NOSUID | MS_NODEV, "size=16m,mode=1777")  # the zygote's own
    tempfile.tempdir = FOLDER  # of this process and its children, wherever /tmp leads
    for descriptor in (*sources.values(), *devices.values()):
        os.close(descriptor)


def _targets(readable: Collection[str]) -> list[str]:
    """Where things must lie: under the names given and under their real ones; what lies in another is not repeated."""
    names = {name for path in readable for name in (os.path.abspath(path), os.path.realpath(path))}
    names = {os.path.join(os.path.realpath(_top(name)), os.path.relpath(name, _top(name))) for name in names}
    names = {os.path.normpath(name) for name in names}
    return sorted(name for name in names if not any(name.startswith(other + "/") for other in names))


def _top(path: str) -> str:
    """The first folder of a path: those are links on many systems, and are made as links here."""
    return "/" + path.split("/")[1]


def _bind(source: int, target: str) -> None:
    path = f"/proc/self/fd/{source}"
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC))
    kernel.mount(path, target, flags=MS_BIND | MS_REC)
