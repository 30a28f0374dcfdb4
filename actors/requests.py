"""What the loop and the engine agree on, free of vLLM, so that either can be tested without the other.

Array legend: T completion tokens of one request.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from protocol.messages import FinishReason, Logprobs, TensorSpec, TokenIds, VersionSpan

Bytes: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]
Tensors: TypeAlias = Iterable[tuple[TensorSpec, Bytes]]  # each with its [nbytes] uint8 view of the fetched version

Impossible: TypeAlias = Literal["prompt_empty", "prompt_too_long", "prompt_not_tokenisable"]


class ImpossiblePrompt(Exception):
    """No engine of this run can complete this prompt. `reason` is a short word for the counter."""

    def __init__(self, reason: Impossible, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class EngineFailure(Exception):
    """The engine cannot go on; the text says why and what to change."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A completion that has just ended. The token that ended it (EOS, say) is its last."""

    request_id: str
    token_ids: TokenIds  # [T]
    behaviour_logprobs: Logprobs  # [T] nats, after temperature and top-p
    version_spans: tuple[VersionSpan, ...]
    finish_reason: FinishReason


class Engine(Protocol):
    """A sampler that is driven step by step and takes new weights between two steps."""

    @property
    def version(self) -> int | None:
        """The policy version that it samples from; None until the first was loaded."""

    @property
    def running(self) -> int:
        """Requests that the next step decodes."""

    @property
    def waiting(self) -> int:
        """Requests that were added and have no place in the batch yet."""

    @property
    def generated_tokens(self) -> int:
        """Completion tokens sampled since the start."""

    @property
    def kv_used(self) -> float:
        """Share of the KV cache in use, 0..1."""

    def encode(self, text: str) -> list[int]:
        """The tokens of a prompt, nothing added. Raises `ImpossiblePrompt` when it has none or cannot be tokenised."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a completion, special tokens such as EOS left out."""

    def add(self, request_id: str, prompt_ids: Sequence[int], seed: int) -> None:
        """Begin to sample one completion. Raises `ImpossiblePrompt` when it does not fit."""

    def abort(self, request_ids: Iterable[str]) -> None:
        """Forget requests."""

    def step(self) -> list[Finished]:
        """Sample one token for every request that has a place in the batch."""

    def load(self, version: int, fingerprint: str, tensors: Tensors) -> None:
        """Sample from `version` from the next step on. Raises `EngineFailure` when tensors are missing."""
