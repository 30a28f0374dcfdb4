"""Outside the walls: makes what only the host can make, starts the zygote inside, waits for its end, and cleans up.

`python -m verifier.sandbox.keeper SETTINGS CONTROL LIFELINE`. The zygote's end of the control socket passes through
unread. The lifeline is a pipe whose other end the owner holds: when it ends, so does the zygote, and the keeper after
it. The keeper keeps the rights of whoever started it and reads nothing that is hostile.
"""

import contextlib
import importlib
import json
import os
import select
import signal
import sys
from dataclasses import dataclass
from typing import Any, NoReturn

from verifier.sandbox import cgroups, root
from verifier.sandbox.capabilities import hold_all_permitted
from verifier.sandbox.enclosure import Enclosure
from verifier.sandbox.identity import Identities, identities, write_maps
from verifier.sandbox.kernel import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    PR_SET_KEEPCAPS,
    PR_SET_PDEATHSIG,
    clone,
    prctl,
)
from verifier.sandbox.program import Limits
from verifier.sandbox.walls import ESSENTIAL, WALLS, WallError, Walls, said

_NAMESPACES = CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWCGROUP


@dataclass(frozen=True, slots=True)
class Settings:
    """What the owner wants; JSON on the command line, nothing secret."""

    module: str  # whose `main(enclosure, control)` is the zygote
    slots: int  # checks at the same time
    readable: tuple[str, ...]  # files and folders of the root besides the interpreter's
    most: dict[str, Any]  # widest `Limits` of a check
    without: tuple[str, ...] = ()  # walls not to put up, for tests of what happens without
    strict: bool = True  # rather no zygote than one that lacks an essential wall


def main(settings: Settings, control: int, lifeline: int) -> None:
    """Keep one zygote."""
    os.setsid()
    os.environ.clear()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    ids = identities(settings.slots, os.getpid())
    walls = Walls(dict.fromkeys(settings.without, "left out by option"))
    wanted = [controller for controller in cgroups.CONTROLLERS if f"{controller}_cgroup" in walls]
    groups = cgroups.make(settings.slots, wanted)
    for controller, why in groups.missing.items():
        walls.missing[f"{controller}_cgroup"] = why
    if ids.first is None:
        walls.missing["unique_uid"] = "only root can hand out user ids"
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    enclosure = Enclosure(walls, ids, groups.slots, proc)
    try:
        zygote, pidfd = _start(enclosure, settings, control, lifeline)
        os.close(control)
        _wait(pidfd, lifeline)
        os.waitpid(zygote, 0)
    except WallError as error:
        with contextlib.suppress(BrokenPipeError):  # an owner that is gone need not be told
            os.write(control, json.dumps(["refused", str(error)]).encode())
    finally:
        groups.remove()


def _wait(pidfd: int, lifeline: int) -> None:
    """Until the zygote has ended; end it when the owner has."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(lifeline, select.POLLHUP)
    while pidfd not in (ready := dict(poll.poll())):
        if lifeline in ready:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            poll.unregister(lifeline)


def _start(enclosure: Enclosure, settings: Settings, control: int, lifeline: int) -> tuple[int, int]:
    """A zygote inside namespaces or, where there are none to be had, outside: its pid and pidfd. Raises `WallError`."""
    if "namespaces" in enclosure.walls:
        try:
            return _attempt(enclosure, settings, control, lifeline)
        except WallError as error:
            if error.wall != "namespaces" or settings.strict:
                raise
            enclosure.walls.missing["namespaces"] = error.why
    if settings.strict:
        raise WallError("namespaces", enclosure.walls.missing["namespaces"])
    return _attempt(enclosure, settings, control, lifeline)


def _attempt(enclosure: Enclosure, settings: Settings, control: int, lifeline: int) -> tuple[int, int]:
    """Start the zygote and wait until its walls stand. Raises `WallError` if they do not."""
    namespaced = "namespaces" in enclosure.walls
    (told, tell), (go, let_go) = os.pipe(), os.pipe()
    try:
        child, pidfd = clone(_NAMESPACES if namespaced else 0)
    except OSError as error:
        for descriptor in (told, tell, go, let_go):
            os.close(descriptor)
        raise WallError("namespaces", error) from None
    if child == 0:
        for descriptor in (told, let_go, lifeline):
            os.close(descriptor)
        _be_zygote(enclosure, settings, control, go, tell)
    os.close(tell)
    os.close(go)
    try:
        if namespaced:
            _map_zygote(enclosure.proc, child, enclosure.identities)
        os.write(let_go, b"!")
        failure = None
    except OSError as error:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        failure = WallError("namespaces", error)
    finally:
        os.close(let_go)
    with open(told, "rb") as answer:
        wall, why, missing = json.loads(answer.read() or b'["namespaces", "the zygote ended", {}]')
    if failure or wall:
        os.waitpid(child, 0)
        os.close(pidfd)
        raise failure or WallError(wall, why)
    enclosure.walls.missing.update(missing)
    return child, pidfd


def _map_zygote(proc: int, child: int, ids: Identities) -> None:
    uid_map, gid_map = ids.maps(os.geteuid()), ids.maps(os.getegid())
    if ids.first is None:
        write_maps(proc, str(child), uid_map, gid_map)
        return
    for name, text in (("uid_map", uid_map), ("gid_map", gid_map)):  # root's zygote still sets its groups
        descriptor = os.open(f"{child}/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
        os.write(descriptor, text.encode())
        os.close(descriptor)


def _be_zygote(enclosure: Enclosure, settings: Settings, control: int, go: int, tell: int) -> NoReturn:
    """The child's life."""
    try:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        if not os.read(go, 1):
            os._exit(1)  # the keeper could not map
        os.close(go)
        zygote = importlib.import_module(settings.module)
        if "namespaces" in enclosure.walls:
            _go_inside(enclosure, settings)
        enclosure.prepare()
        _test(enclosure, Limits(**settings.most))
        missing = enclosure.walls.missing
        if settings.strict and (gap := [wall for wall in ESSENTIAL if wall in missing]):
            raise WallError(gap[0], missing[gap[0]])
    except (OSError, WallError) as error:
        wall, why = (error.wall, error.why) if isinstance(error, WallError) else ("namespaces", said(error))
        os.write(tell, json.dumps([wall, why, {}]).encode())
        os._exit(1)
    os.write(tell, json.dumps(["", "", missing]).encode())
    os.close(tell)
    zygote.main(enclosure, control, Limits(**settings.most))
    os._exit(0)


def _go_inside(enclosure: Enclosure, settings: Settings) -> None:
    root.build([*root.interpreter(), *settings.readable])
    ids = enclosure.identities
    if ids.first is not None:
        os.setgroups([])
        prctl(PR_SET_KEEPCAPS, 1)
        os.setresgid(ids.zygote, ids.zygote, ids.zygote)
        os.setresuid(ids.zygote, ids.zygote, ids.zygote)
        hold_all_permitted()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # the change of user has cleared it


def _test(enclosure: Enclosure, limits: Limits) -> None:
    """Lock a child in, again with one wall less until it succeeds. Raises `WallError` without namespaces."""
    for _ in WALLS:
        wall, why = _tried(enclosure, limits)
        if not wall:
            return
        if wall == "namespaces" or wall in enclosure.walls.missing:
            raise WallError(wall, why)
        enclosure.walls.missing[wall] = why


def _tried(enclosure: Enclosure, limits: Limits) -> tuple[str, str]:
    """The wall that could not be put up, and why; empty if all stand."""
    told, tell = os.pipe()
    enclosure.groups[0].limit(limits)
    child, pidfd = enclosure.fork()
    if child == 0:
        try:
            enclosure.confine(0, limits, "source", {tell})
            os.write(tell, json.dumps(["", ""]).encode())
        except WallError as error:
            os.write(tell, json.dumps([error.wall, error.why]).encode())
        os._exit(0)
    os.close(tell)
    os.waitpid(child, 0)
    os.close(pidfd)
    with open(told, "rb") as answer:
        wall, why = json.loads(answer.read() or b'["namespaces", "a child died while it put up its walls"]')
    return wall, why


if __name__ == "__main__":
    main(Settings(**json.loads(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]))
