"""How the ranks of one learner share what rank 0 hears: the wire's own frames over `torch.distributed`, no pickle."""

import struct

import numpy as np
import torch
import torch.distributed as dist

from protocol.codec import decode, encode
from protocol.messages import Message


def broadcast(message: Message | None, device: torch.device) -> Message:
    """Give rank 0's `message` to every rank; the others pass None. Collective; does nothing on one rank."""
    if dist.get_world_size() == 1:
        assert message is not None, "rank 0 has the message"
        return message
    packed = _pack(message) if message is not None else np.empty(0, dtype=np.uint8)
    length = torch.tensor([len(packed)], dtype=torch.int64, device=device)
    dist.broadcast(length, src=0)
    if message is not None:
        data = torch.from_numpy(packed).to(device)
    else:
        data = torch.empty(int(length.item()), dtype=torch.uint8, device=device)
    dist.broadcast(data, src=0)
    return message if message is not None else _unpack(data.cpu().numpy())


def _pack(message: Message) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """Frame count, frame lengths, frames: [n] uint8."""
    frames = encode(message)
    head = struct.pack(f"<{len(frames) + 1}q", len(frames), *(len(frame) for frame in frames))
    return np.frombuffer(bytearray(head + b"".join(frames)), dtype=np.uint8)


def _unpack(data: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> Message:
    view = memoryview(data.data).toreadonly()
    (count,) = struct.unpack_from("<q", view)
    lengths = struct.unpack_from(f"<{count}q", view, 8)
    frames, start = [], 8 * (count + 1)
    for length in lengths:
        frames.append(view[start : start + length])
        start += length
    return decode(frames)
