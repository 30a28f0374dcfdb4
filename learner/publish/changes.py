"""What changed in one rank's part of a version since the last one, found where the weights are.

Legend: W 16-bit words of a part, C of them changed.
"""

from dataclasses import dataclass

import torch

DENSE_SHARE = 1 / 3  # of words changed, from which on places and words (4 + 2 bytes each) weigh more than all words


@dataclass(frozen=True, slots=True)
class Changes:
    """New words of a part and their places, or all bytes of it where `places` is None. In host memory."""

    places: torch.Tensor | None  # [C] int32
    words: torch.Tensor  # [C] int16, or [bytes] uint8


def find(last: torch.Tensor | None, fresh: torch.Tensor) -> Changes:
    """Compare two flat tensors of one dtype and size; None: there is nothing to compare with."""
    data = fresh.view(torch.uint8)  # [bytes]
    if last is not None and len(data) % 2 == 0:
        old, new = last.view(torch.int16), fresh.view(torch.int16)  # [W]
        places = (old != new).nonzero().view(-1)  # [C]
        if len(places) <= DENSE_SHARE * len(new) and len(new) < 2**31:
            return Changes(places.to(torch.int32).cpu(), new[places].cpu())
    return Changes(None, data.cpu())


def put(changes: Changes, part: torch.Tensor, base: torch.Tensor) -> None:
    """Make `part`, [bytes] uint8, what `changes` say, given the same part of the version before, `base`."""
    if changes.places is None:
        part.copy_(changes.words)
    else:
        part.copy_(base)
        part.view(torch.int16)[changes.places.long()] = changes.words
