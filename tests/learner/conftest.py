"""Fixtures of the learner's tests: one process as a learner of one rank, tiny models, made-up batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:  # the broker's tests, in this folder's subfolder, run without torch
    from learner.batch import TrainingSequence
    from learner.distributed import Ranks
    from protocol.messages import GroupBatch

FINGERPRINT = "0" * 32


@pytest.fixture(scope="module")  # vLLM makes and ends a process group of its own in other modules
def ranks() -> Iterator[Ranks]:
    """This process as the only rank."""
    import torch

    from learner import distributed

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield distributed.start("cpu", wait_seconds=60)
    distributed.stop()
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], Path]:
    """Writes a tiny model of an architecture with random weights, once each."""
    from learner import tiny

    built: dict[tuple[str, bool], Path] = {}

    def build(architecture: str, tied: bool) -> Path:
        if (architecture, tied) not in built:
            directory = tmp_path_factory.mktemp(f"{architecture}-{'tied' if tied else 'untied'}") / "model"
            tiny.build(directory, architecture=architecture, hidden_size=64, layers=2, tied=tied)
            built[architecture, tied] = directory
        return built[architecture, tied]

    return build


@pytest.fixture(scope="session")
def make_sequences() -> Callable[..., list[TrainingSequence]]:
    """Random sequences with completions of the given lengths."""
    from learner.batch import TrainingSequence

    def make(lengths: list[int], *, seed: int = 0, vocabulary: int = 21) -> list[TrainingSequence]:
        random = np.random.default_rng(seed)
        return [
            TrainingSequence(
                prompt_ids=random.integers(0, vocabulary, random.integers(1, 8)).astype(np.int32),
                token_ids=random.integers(0, vocabulary, length).astype(np.int32),
                behaviour_logprobs=-random.exponential(2.0, length).astype(np.float32),
                staleness=random.integers(0, 3, length).astype(np.int32),
                advantage=float(random.normal()),
                token_weight=1.0 / sum(lengths),
                index=index,
                group=index // 2,
            )
            for index, length in enumerate(lengths)
        ]

    return make


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., GroupBatch]:
    """A batch of `groups` groups, whose rewards and lengths are drawn at random."""
    from protocol.messages import (
        GroupBatch,
        Rollout,
        RolloutGroup,
        ScoredRollout,
        StreamStats,
        Task,
        Verdict,
        VersionSpan,
    )

    def make(groups: int, group_size: int, *, seed: int = 0, version: int = 3, longest: int = 12) -> GroupBatch:
        random = np.random.default_rng(seed)

        def scored(group: int, sample: int) -> ScoredRollout:
            length = int(random.integers(2, longest + 1))
            ids = random.integers(0, 21, length + 4).astype(np.int32)
            old = int(random.integers(1, length))
            spans = ((version - 2, old), (version, length - old))
            reward = float(random.integers(0, 2))
            return ScoredRollout(
                rollout=Rollout(
                    group_id=group,
                    sample_index=sample,
                    prompt_ids=ids[:4],
                    token_ids=ids[4:],
                    behaviour_logprobs=-random.exponential(2.0, length).astype(np.float32),
                    version_spans=tuple(VersionSpan(version=v, tokens=n, fingerprint=FINGERPRINT) for v, n in spans),
                    finish_reason="stop",
                    text="text",
                ),
                verdict=Verdict(reward=reward, parts={"accuracy": reward}, reason="right", seconds=0.0),
            )

        task = Task(task_id="t", prompt="1+1=", reward="accuracy", reference="2")
        return GroupBatch(
            policy_version=version,
            groups=tuple(
                RolloutGroup(
                    group_id=group,
                    lease_version=version - 2,
                    task=task,
                    scored=tuple(scored(group, sample) for sample in range(group_size)),
                )
                for group in range(groups)
            ),
            stats=StreamStats(
                generated_tokens=0,
                rollouts=0,
                verdicts=0,
                void_verdicts=0,
                groups_dropped={},
                actors=1,
                verifiers=1,
            ),
        )

    return make
