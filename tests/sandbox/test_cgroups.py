"""Where control groups are made, in both layouts, and that none stay: on texts, and on folders that play the kernel."""

import fcntl
import os
from pathlib import Path

import pytest

from verifier.sandbox import cgroups
from verifier.sandbox.cgroups import Group, Place, places
from verifier.sandbox.program import Limits

HYBRID = """\
30 24 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
31 24 0:27 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
32 24 0:28 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
UNIFIED = "30 24 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec - cgroup2 cgroup rw,nsdelegate\n"
CONTAINER = "30 24 0:26 /docker/abc /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw\n"


def test_version_1_puts_groups_below_the_processs_own() -> None:
    found = places("8:pids:/a\n4:memory:/a/b\n0::/u\n", HYBRID)
    assert found["memory"][0] == Place("memory", 1, Path("/sys/fs/cgroup/memory/a/b"))
    assert found["pids"][0] == Place("pids", 1, Path("/sys/fs/cgroup/pids/a"))
    assert found["pids"][1] == Place("pids", 2, Path("/sys/fs/cgroup/unified/u"))


def test_version_2_tries_the_processs_own_and_those_above() -> None:
    found = places("0::/user.slice/user-7.slice/session.scope\n", UNIFIED)
    assert [str(place.parent) for place in found["memory"]] == [
        "/sys/fs/cgroup/user.slice/user-7.slice/session.scope",
        "/sys/fs/cgroup/user.slice/user-7.slice",
        "/sys/fs/cgroup/user.slice",
        "/sys/fs/cgroup",
    ]
    assert {place.version for place in found["memory"]} == {2}


def test_a_container_sees_its_own_as_the_top() -> None:
    assert [str(place.parent) for place in places("0::/docker/abc\n", CONTAINER)["pids"]] == ["/sys/fs/cgroup"]
    assert [str(place.parent) for place in places("0::/\n", CONTAINER)["pids"]] == ["/sys/fs/cgroup"]


def test_a_host_without_control_groups_has_no_places() -> None:
    assert places("", "") == {"memory": [], "pids": []}


def files(folder: Path, names: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in names.items():
        (folder / name).write_text(content)


@pytest.fixture
def second_version(tmp_path: Path) -> Path:
    """The folder of a group of version 2 that the kernel has filled, and one slot in it."""
    files(tmp_path, {"cgroup.controllers": "cpu memory pids\n", "cgroup.subtree_control": ""})
    names = {"cgroup.procs": "", "memory.max": "", "memory.swap.max": "max", "pids.max": ""}
    files(tmp_path / "0", {**names, "memory.events": "low 0\noom 0\noom_kill 0\n"})
    return tmp_path


def test_version_2_bounds_memory_and_processes_and_counts_kills(second_version: Path) -> None:
    group = Group()
    for controller in ("memory", "pids"):
        cgroups._equip(second_version, Place(controller, 2, second_version.parent), [group])
    slot = second_version / "0"
    assert (second_version / "cgroup.subtree_control").read_text() == "+pids"  # the kernel adds up what is written
    assert (slot / "memory.swap.max").read_text() == "0"
    limits = Limits(memory_bytes=1000, disk_bytes=24, processes=7)
    group.limit(limits)
    assert ((slot / "memory.max").read_text(), (slot / "pids.max").read_text()) == ("1024", "7")
    group.enter()
    assert (slot / "cgroup.procs").read_text() == "0"
    assert not group.killed()
    (slot / "memory.events").write_text("low 0\noom 1\noom_kill 2\n")
    assert group.killed()
    assert not group.killed()
    for descriptor in (*group.enter_by, *group.memory_limit, group.pids_limit, group.events):
        os.close(descriptor)


def test_a_controller_that_is_not_handed_down_is_named(second_version: Path) -> None:
    (second_version / "cgroup.controllers").write_text("cpu\n")
    with pytest.raises(OSError, match="hands the memory controller to no group"):
        cgroups._equip(second_version, Place("memory", 2, second_version), [Group()])


def test_what_a_killed_keeper_left_is_removed_and_what_a_living_one_has_is_not(tmp_path: Path) -> None:
    """Also in the group beside, where the job before ran; not in those of others further off."""
    job, before, deeper = tmp_path / "job", tmp_path / "before", tmp_path / "before" / "deeper"
    for parent in (job, before, deeper):
        for name in ("offbeat-dead", "offbeat-living"):
            (parent / name / "0").mkdir(parents=True)
            (parent / name / "1").mkdir()
    locks = [os.open(parent / "offbeat-living", os.O_RDONLY | os.O_DIRECTORY) for parent in (job, before)]
    for lock in locks:
        fcntl.flock(lock, fcntl.LOCK_EX)
    groups = cgroups.Groups([])
    cgroups._folder(job, "offbeat-mine", groups)
    assert sorted(path.name for path in job.iterdir()) == ["offbeat-living", "offbeat-mine"]
    assert sorted(path.name for path in before.iterdir()) == ["deeper", "offbeat-living"]
    assert sorted(path.name for path in deeper.iterdir()) == ["offbeat-dead", "offbeat-living"]
    groups.remove()
    for lock in locks:
        os.close(lock)
