"""How ranks bring their changes to the first one: a header and two arrays each, over gloo, beside the training."""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from learner.publish.changes import Changes
from learner.publish.layout import Part

ALL = -1  # in the header: a part as a whole


def send(changes: Sequence[Changes], group: dist.ProcessGroup) -> None:
    """Send this rank's changes, one entry a part, to rank 0."""
    header = torch.tensor([ALL if each.places is None else len(each.places) for each in changes])
    places = torch.cat([each.places for each in changes if each.places is not None] or [torch.empty(0)])
    words = torch.cat([each.words.view(torch.uint8) for each in changes] or [torch.empty(0, dtype=torch.uint8)])
    for data in (header, places.to(torch.int32), words):
        if data.numel():
            dist.send(data.view(torch.uint8), dst=0, group=group)


def receive(parts: Sequence[Part], rank: int, group: dist.ProcessGroup) -> list[Changes]:
    """The changes of `rank`, whose parts are `parts`."""
    header = torch.empty(len(parts), dtype=torch.int64)
    _receive(header, rank, group)
    counts = header.tolist()
    lengths = [part.nbytes if count == ALL else 2 * count for part, count in zip(parts, counts, strict=True)]
    places = torch.empty(sum(count for count in counts if count != ALL), dtype=torch.int32)
    words = torch.empty(sum(lengths), dtype=torch.uint8)
    _receive(places, rank, group)
    _receive(words, rank, group)
    found, place, word = [], 0, 0
    for count, length in zip(counts, lengths, strict=True):
        data = words[word : word + length]
        if count == ALL:
            found.append(Changes(None, data))
        else:
            found.append(Changes(places[place : place + count], data.clone().view(torch.int16)))
            place += count
        word += length
    return found


def _receive(data: torch.Tensor, rank: int, group: dist.ProcessGroup) -> None:
    if data.numel():
        dist.recv(data.view(torch.uint8), src=rank, group=group)
