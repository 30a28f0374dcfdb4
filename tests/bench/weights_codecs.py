"""Ways to write down which 16-bit words of a version changed: what each comes to, against the entropy of the changes.

Legend: W words of a shard, C of them changed.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import zstandard

from protocol import delta

Words: TypeAlias = np.ndarray[Any, np.dtype[np.uint16]]
Codec: TypeAlias = Callable[[Words, Words], int]  # (old [W], new [W]) → bytes


def packed(*parts: np.ndarray[Any, Any], level: int = 1) -> int:
    """Bytes of arrays under zstd, each by itself."""
    return sum(len(zstandard.ZstdCompressor(level=level).compress(part.tobytes())) for part in parts)


def index_and_value(old: Words, new: Words) -> int:
    """Gaps of two bytes and new words, as they are."""
    places = np.flatnonzero(old != new)
    wide = np.count_nonzero(np.diff(places, prepend=-1) > 2**16)
    return 4 * len(places) + 4 * wide


def bitmask_and_value(old: Words, new: Words) -> int:
    """A bit a word and new words, as they are."""
    return len(old) // 8 + 2 * int(np.count_nonzero(old != new))


def bitmask_and_value_packed(old: Words, new: Words) -> int:
    """The same under zstd."""
    changed = old != new
    return packed(np.packbits(changed), new[changed])


def xor_packed(old: Words, new: Words) -> int:
    """XOR of both versions under zstd."""
    return packed(old ^ new)


def xor_planes_packed(old: Words, new: Words) -> int:
    """XOR, lower and upper bytes apart, under zstd."""
    planes = (old ^ new).view(np.uint8).reshape(-1, 2)
    return packed(np.ascontiguousarray(planes[:, 0]), np.ascontiguousarray(planes[:, 1]))


def gaps_and_steps(old: Words, new: Words) -> int:
    """`protocol.delta`."""
    return len(delta.encode(old.view(np.uint8), new.view(np.uint8)))


CODECS: dict[str, Codec] = {
    "index + value": index_and_value,
    "bitmask + value": bitmask_and_value,
    "bitmask + value, zstd": bitmask_and_value_packed,
    "XOR, zstd": xor_packed,
    "XOR in byte planes, zstd": xor_planes_packed,
    "gaps + steps, zstd (ours)": gaps_and_steps,
}


def entropy_bytes(old: Words, new: Words) -> float:
    """Bytes that any code needs if words change independently of each other, by steps of this distribution."""
    changed = old != new
    share = changed.mean()
    if not 0 < share < 1:
        return 0.0
    places = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
    _, counts = np.unique(new[changed] - old[changed], return_counts=True)
    steps = -(counts / counts.sum() * np.log2(counts / counts.sum())).sum()
    return float(len(old) * (places + share * steps) / 8)
