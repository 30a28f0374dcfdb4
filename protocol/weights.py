"""What a weight version hashes to. Publisher and receiver compute it by these two functions."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from protocol.messages import ShardSpec, TensorSpec

SHARD_BYTES = 64 * 2**20  # a version's bytes are cut into shards of at most this size


def checksum(data: np.ndarray[Any, np.dtype[np.uint8]]) -> str:
    """BLAKE2b-128 of one shard's bytes ([S] uint8), in hex."""
    return hashlib.blake2b(data.data, digest_size=16).hexdigest()


def fingerprint(tensors: Iterable[TensorSpec], shards: Iterable[ShardSpec]) -> str:
    """BLAKE2b-128 over names, dtypes, shapes and shard checksums, in hex: two versions are equal when this is."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        shape = ",".join(map(str, tensor.shape))
        digest.update(f"{tensor.name}|{tensor.dtype}|{shape}\n".encode())
    for shard in shards:
        digest.update(shard.checksum.encode())
    return digest.hexdigest()
