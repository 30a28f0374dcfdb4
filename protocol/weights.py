"""What a weight version hashes to, and how it is cut. Publisher and receiver compute it by these functions."""

import hashlib
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import xxhash

from protocol.messages import ShardSpec, TensorSpec

Bytes: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]

ALIGNMENT = 64  # bytes: a tensor begins at a multiple, the gap before it is filled with zeros
LEAST_SHARD = 4 * 2**20  # bytes; smaller messages cost more than they carry
GREATEST_SHARD = 16 * 2**20  # beyond it every message is memory that the system maps afresh: ZeroMQ falls to a third
BLOCK = 2**18  # bytes that stay in a core's cache
SHARDS = 512  # a version has about so many at most, so that its manifest, which goes to every actor, stays small


def shard_bytes(total: int) -> int:
    """The size of the shards of a version of `total` bytes; only the last one is smaller."""
    size = LEAST_SHARD
    while size < GREATEST_SHARD and total > SHARDS * size:
        size *= 2
    return size


def checksum(data: Bytes) -> str:
    """XXH3-128 of one shard's bytes ([S] uint8), in hex. It finds damage and mistakes at the speed of memory."""
    return xxhash.xxh3_128_hexdigest(data.data)


def copied(data: Bytes, into: Bytes) -> str:
    """Copy a shard's bytes, [S] uint8, and give the checksum of what was copied: one way through memory for both."""
    found = xxhash.xxh3_128()
    for begin in range(0, len(data), BLOCK):
        block = data[begin : begin + BLOCK]
        found.update(block.data)
        into[begin : begin + BLOCK] = block
    return found.hexdigest()


def fingerprint(tensors: Iterable[TensorSpec], shards: Iterable[ShardSpec]) -> str:
    """BLAKE2b-128 over names, dtypes, shapes and shard checksums, in hex: two versions are equal when this is."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        shape = ",".join(map(str, tensor.shape))
        digest.update(f"{tensor.name}|{tensor.dtype}|{shape}|{tensor.offset}\n".encode())
    for shard in shards:
        digest.update(shard.checksum.encode())
    return digest.hexdigest()
