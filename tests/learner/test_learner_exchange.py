"""What rank 0 hears reaches the others unchanged (two real ranks: test_learner_ranks)."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner import exchange
from learner.distributed import Ranks
from protocol.codec import encode
from protocol.messages import Goodbye, GroupBatch, Message


def wire(message: Message) -> list[bytes]:
    return [bytes(frame) for frame in encode(message)]


@given(groups=st.integers(1, 4), size=st.integers(2, 4), seed=st.integers(0, 99))
def test_a_packed_message_unpacks_to_the_same_frames(
    make_batch: Callable[..., GroupBatch], groups: int, size: int, seed: int
) -> None:
    message = make_batch(groups, size, seed=seed)
    arrived = exchange._unpack(exchange._pack(message))
    assert wire(arrived) == wire(message)
    assert isinstance(arrived, GroupBatch)
    rollout = arrived.groups[0].scored[0].rollout
    assert np.array_equal(rollout.token_ids, message.groups[0].scored[0].rollout.token_ids)


def test_one_rank_keeps_its_own_message(ranks: Ranks) -> None:
    message = Goodbye(reason="the tasks ended", finished=True)
    assert exchange.broadcast(message, ranks.device) is message


def test_rank_zero_without_a_message_is_a_broken_invariant(ranks: Ranks) -> None:
    with pytest.raises(AssertionError, match="rank 0 has the message"):
        exchange.broadcast(None, ranks.device)
