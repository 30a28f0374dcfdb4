"""The delta of a shard: which of its 16-bit words changed against a base, and by how much. Lossless.

A bfloat16 weight that moves at all mostly moves by one unit in the last place, so a word is coded by its *step* (new −
base, modulo 2^16) rather than by its value, and its place by the *gap* since the word before. Both are small and far
from uniform: a byte each, with 255 for "look further" (the wide ones follow apart), and zstd at level 1 takes what
entropy is left. On bfloat16 weights after an AdamW step this stays within a fifth of the bound for independent
changes, ahead of index + value, bitmask + values and XOR + zstd (`python -m tests.bench.weights codecs`). A float32 is
two words, of which the upper one seldom changes.

    header   changed words, wide gaps, wide steps: 3 × uint32 little-endian
    body     one zstd frame of: gap bytes [C] | step bytes [C] | wide gaps uint32 [G] | wide steps uint16 [W]
    tail     the last byte of a shard of odd length

Array legend: S bytes of a shard, C changed words.
"""

import struct
from typing import Any, TypeAlias

import numpy as np
import zstandard

from protocol.errors import ProtocolError

Bytes: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]
Words: TypeAlias = np.ndarray[Any, np.dtype[np.uint16]]
Numbers: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

HEADER = struct.Struct("<III")
WIDE = 255  # in place of a gap or step that one byte cannot hold
LEVEL = 1


class DamagedDelta(ProtocolError):
    """Bytes that are no delta of a shard of this size."""


def encode(base: Bytes, new: Bytes) -> Bytes:
    """The delta that makes `new` of `base`, [D] uint8; empty when they are equal. Both are [S] uint8."""
    assert base.shape == new.shape, "a delta is between shards of one size"
    old_words, new_words = _words(base), _words(new)
    places: Numbers = np.flatnonzero(old_words != new_words)  # [C]
    odd = len(new) % 2 == 1
    if not len(places) and not (odd and base[-1] != new[-1]):
        return np.empty(0, dtype=np.uint8)
    gaps = np.diff(places, prepend=-1) - 1  # [C]
    steps = _zigzag(new_words[places] - old_words[places])  # [C], none is 0
    gap_bytes, wide_gaps = _narrow(gaps.astype(np.uint32))
    step_bytes, wide_steps = _narrow(steps - np.uint16(1))
    body = b"".join(part.tobytes() for part in (gap_bytes, step_bytes, wide_gaps, wide_steps))
    head = HEADER.pack(len(places), len(wide_gaps), len(wide_steps))
    packed = zstandard.ZstdCompressor(level=LEVEL).compress(body)
    return np.frombuffer(head + packed + (new[-1:].tobytes() if odd else b""), dtype=np.uint8)


def apply(shard: Bytes, delta: Bytes) -> None:
    """Turn `shard`, [S] uint8, from the base into the new version, in place.

    Raises `DamagedDelta`, with the shard unchanged, for what cannot be a delta of a shard of this size. Bytes that are
    damaged and can be read all the same make a wrong shard: its checksum tells.
    """
    words, odd = _words(shard), len(shard) % 2
    if len(delta) < HEADER.size + odd:
        raise DamagedDelta(f"{len(delta)} bytes are too few for a delta")
    changed, wide_gaps, wide_steps = HEADER.unpack_from(delta.data)
    if changed > len(words) or max(wide_gaps, wide_steps) > changed:
        raise DamagedDelta(f"{changed} changed words, {wide_gaps} wide gaps and {wide_steps} wide steps cannot be")
    length = 2 * changed + 4 * wide_gaps + 2 * wide_steps
    packed = delta[HEADER.size : len(delta) - odd].data
    try:
        if (promised := zstandard.frame_content_size(packed)) != length:
            raise DamagedDelta(f"the body has {promised} bytes, the header says {length}")
        body = zstandard.ZstdDecompressor().decompress(packed, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DamagedDelta(f"the body does not unpack: {error}") from None
    gap_bytes = np.frombuffer(body, np.uint8, changed)
    step_bytes = np.frombuffer(body, np.uint8, changed, changed)
    gaps = _widen(gap_bytes, np.frombuffer(body, "<u4", wide_gaps, 2 * changed))
    steps = _widen(step_bytes, np.frombuffer(body, "<u2", wide_steps, 2 * changed + 4 * wide_gaps))
    places = np.cumsum(gaps + 1) - 1  # [C]
    if changed and places[-1] >= len(words):
        raise DamagedDelta(f"word {places[-1]} lies behind the end of a shard of {len(words)} words")
    words[places] += _unzigzag((steps + 1).astype(np.uint16))
    if odd:
        shard[-1] = delta[-1]


def changed_words(delta: Bytes) -> int:
    """How many words a delta changes."""
    return int(HEADER.unpack_from(delta.data)[0]) if len(delta) else 0


def _words(shard: Bytes) -> Words:
    """The shard as words, without the last byte of an odd one; a view."""
    return shard[: len(shard) // 2 * 2].view("<u2")


def _zigzag(steps: Words) -> Words:
    """Steps of either sign as small numbers: 0, −1, 1, −2, … → 0, 1, 2, 3, …"""
    signed = steps.view(np.int16)
    return ((signed << 1) ^ (signed >> 15)).view(np.uint16)


def _unzigzag(codes: Words) -> Words:
    sign = -(codes & 1).view(np.int16)  # all ones, or none
    return ((codes >> 1).view(np.int16) ^ sign).view(np.uint16)


def _narrow(numbers: np.ndarray[Any, Any]) -> tuple[Bytes, np.ndarray[Any, Any]]:
    """One byte a number, and those that do not fit."""
    wide = numbers >= WIDE
    return np.where(wide, WIDE, numbers).astype(np.uint8), numbers[wide]


def _widen(narrow: Bytes, wide: np.ndarray[Any, Any]) -> Numbers:
    """The numbers of `_narrow`. Raises `DamagedDelta` when the two do not belong together."""
    numbers = narrow.astype(np.int64)
    places = np.flatnonzero(narrow == WIDE)
    if len(places) != len(wide):
        raise DamagedDelta(f"{len(places)} numbers are wide, {len(wide)} are there")
    numbers[places] = wide
    return numbers
