"""Shared memory: one copy, sealed, leased by connection, and gone with its last process however that ended."""

import gc
import multiprocessing
import os
import select
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from protocol.segments import (
    REMEMBERED,
    Mappings,
    Place,
    Segment,
    SegmentReader,
    SegmentServer,
    available,
    place_of,
    read_file,
)

pytestmark = pytest.mark.skipif(not available(), reason="needs Linux")

SIZE = 3 * 2**20 + 4


class Owner:
    """A server in a thread, with segments by version."""

    def __init__(self) -> None:
        self.segments: dict[int, Segment] = {}
        self.leases: Counter[int] = Counter()
        self.server = SegmentServer(self.lease, self.release)
        self._over = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def lease(self, version: int) -> Segment | None:
        self.leases[version] += version in self.segments
        return self.segments.get(version)

    def release(self, version: int) -> None:
        self.leases[version] -= 1

    def add(self, version: int) -> Segment:
        segment = self.segments[version] = Segment(SIZE)
        segment.data[:] = content(version)
        return segment

    def _run(self) -> None:
        while not self._over:
            for descriptor in select.select(self.server.descriptors, [], [], 0.01)[0]:
                self.server.serve(descriptor)

    def close(self) -> None:
        self._over = True
        self._thread.join()
        self.server.close()


def content(version: int) -> np.ndarray:
    return np.random.default_rng(version).integers(0, 256, SIZE, dtype=np.uint8)


def wait_for(condition: object) -> None:
    deadline = time.monotonic() + 10
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def owner() -> Iterator[Owner]:
    owner = Owner()
    yield owner
    owner.close()


def test_a_version_is_read_where_the_owner_wrote_it(owner: Owner) -> None:
    segment = owner.add(3)
    reader = SegmentReader(owner.server.name)
    taken = reader.take(3)
    assert taken is not None
    np.testing.assert_array_equal(taken, content(3))
    segment.data[7] ^= 255
    assert taken[7] == segment.data[7]
    reader.close()


def test_a_reader_cannot_write(owner: Owner) -> None:
    owner.add(0)
    reader = SegmentReader(owner.server.name)
    taken = reader.take(0)
    assert taken is not None
    with pytest.raises(ValueError, match="read-only"):
        taken[0] = 1
    reader.close()


def test_a_version_that_is_not_there_is_none(owner: Owner) -> None:
    reader = SegmentReader(owner.server.name)
    assert reader.take(0) is None
    owner.add(0)
    assert reader.take(0) is not None
    reader.close()


def test_a_lease_lasts_until_it_is_released(owner: Owner) -> None:
    owner.add(0)
    readers = [SegmentReader(owner.server.name) for _ in range(3)]
    for reader in readers:
        reader.take(0)
    assert owner.leases[0] == 3
    readers[0].release(0)
    readers[0].release(0)  # once is enough
    readers[1].close()
    wait_for(lambda: owner.leases[0] == 1)
    readers[2].close()
    wait_for(lambda: owner.leases[0] == 0)
    readers[0].close()


def test_the_same_segment_is_mapped_once(owner: Owner) -> None:
    owner.segments[1] = owner.add(0)
    reader = SegmentReader(owner.server.name)
    assert reader.take(0) is reader.take(1)
    reader.close()


def test_a_segment_that_is_not_used_any_more_is_let_go() -> None:
    gc.collect()
    mappings = Mappings()
    segments = [Segment(4096) for _ in range(3)]
    weak = weakref.ref(mappings.map(segments[0].fd))
    for turn in range(REMEMBERED):
        assert weak() is not None
        mappings.map(segments[1 + turn % 2].fd)
    assert weak() is None
    assert mappings.map(segments[1].fd) is mappings.map(segments[1].fd)


def test_a_name_that_nobody_has_is_an_error() -> None:
    with pytest.raises(OSError, match="refused"):
        SegmentReader("offbeat-weights-nobody")


def test_an_owner_that_is_gone_is_an_error_and_what_was_mapped_stays() -> None:
    owner = Owner()
    owner.add(0)
    reader = SegmentReader(owner.server.name)
    taken = reader.take(0)
    owner.close()
    owner.segments.clear()
    with pytest.raises(OSError, match=r"gone|Broken pipe|reset"):
        reader.take(0)
    assert taken is not None
    np.testing.assert_array_equal(taken, content(0))
    reader.close()


def test_strange_bytes_end_the_strangers_connection_alone(owner: Owner) -> None:
    owner.add(0)
    stranger, reader = SegmentReader(owner.server.name), SegmentReader(owner.server.name)
    stranger._socket.send(b"junk")
    assert stranger._socket.recv(10) == b""
    assert reader.take(0) is not None
    stranger.close()
    reader.close()


def test_what_was_lent_to_a_socket_keeps_the_segment_in_use() -> None:
    segment = Segment(SIZE)
    assert not segment.lent
    view = segment.lend(0, 100)
    frame = view.data.cast("B")
    del view
    assert segment.lent
    del frame
    assert not segment.lent


def test_memory_that_is_not_there_is_an_error_that_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"0\.00 GB .*No space left.*learner\.versions_kept"):
        Segment(SIZE)


def read_elsewhere(place: Place, pipe: Connection) -> None:
    pipe.send(bytes(read_file(place.path, Mappings())[place.offset : place.offset + 100]))


def test_another_process_finds_the_bytes_by_their_place(owner: Owner) -> None:
    segment = owner.add(0)
    reader = SegmentReader(owner.server.name)
    taken = reader.take(0)
    assert taken is not None
    ours, theirs = multiprocessing.Pipe()
    for data in (segment.data[500:], taken[500:][:1000], segment.data.view(np.uint32)[125:].view(np.uint8)):
        place = place_of(data)
        assert place is not None
        assert place.offset == 500
        process = multiprocessing.get_context("fork").Process(target=read_elsewhere, args=(place, theirs))
        process.start()
        assert ours.recv() == content(0)[500:600].tobytes()
        process.join()
    assert place_of(np.zeros(10, dtype=np.uint8)) is None
    reader.close()
    for pipe in (ours, theirs):
        pipe.close()


def test_descriptors_are_closed_with_the_last_view() -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    segment = Segment(SIZE)
    view = segment.data[100:200]
    del segment
    assert place_of(view) is not None
    del view
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def own_and_wait(pipe: Connection) -> None:
    owner = Owner()
    owner.add(0)
    pipe.send(owner.server.name)
    time.sleep(60)


def read_and_wait(name: str, pipe: Connection) -> None:
    reader = SegmentReader(name)
    pipe.send(reader.take(0) is not None)
    time.sleep(60)


def mapped() -> int:
    """How many segments this process has mapped; those of other tests may be there."""
    return Path("/proc/self/maps").read_text().count("memfd:offbeat-weights")


def test_nothing_is_left_when_owner_and_reader_are_killed() -> None:
    gc.collect()  # owners of earlier tests
    before = mapped()
    forked = multiprocessing.get_context("fork")
    files = set(Path("/dev/shm").glob("*offbeat*"))  # other tests' processes have files there too
    ours, theirs = multiprocessing.Pipe()
    owner = forked.Process(target=own_and_wait, args=(theirs,))
    owner.start()
    name = ours.recv()
    other = forked.Process(target=read_and_wait, args=(name, theirs))
    other.start()
    assert ours.recv()
    reader = SegmentReader(name)
    taken = reader.take(0)
    assert taken is not None
    for process in (other, owner):
        process.kill()
        process.join()
    np.testing.assert_array_equal(taken, content(0))  # a reader in the middle of it can finish
    with pytest.raises(OSError, match=r"gone|Broken pipe|reset"):
        reader.take(0)
    assert mapped() == before + 1
    reader.close()
    del taken
    assert mapped() == before  # the last one that held it
    assert set(Path("/dev/shm").glob("*offbeat*")) == files
    for pipe in (ours, theirs):
        pipe.close()
