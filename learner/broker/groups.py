"""One group on its way: leased, sampled, verified, ready. Plain records; `learner.broker.stream` moves them on."""

import hashlib
from dataclasses import dataclass, field
from enum import Enum, auto

from protocol.messages import Rollout, RolloutGroup, ScoredRollout, Task, Verdict


class SampleState(Enum):
    """Where one sample of a group stands."""

    PENDING = auto()  # waits for a lease
    LEASED = auto()  # an actor samples it
    VERIFYING = auto()  # waits for its verdict
    SCORED = auto()  # has a reward
    VOID = auto()  # no reward could be determined; it will not train


@dataclass(slots=True)
class Sample:
    """One of the G completions of a group."""

    state: SampleState = SampleState.PENDING
    rollout: Rollout | None = None
    verdict: Verdict | None = None
    checks: int = 0  # verify jobs that ended void
    written: bool = False  # its rollout is in the journal


@dataclass(slots=True)
class Group:
    """A task and its G samples, from its first lease until it is consumed or dropped."""

    group_id: int
    task: Task
    lease_version: int
    seeds: tuple[int, ...]
    samples: list[Sample]
    leases: int = 0  # leases granted for it so far
    lease_ids: set[int] = field(default_factory=set)  # those that still run

    @property
    def pending(self) -> tuple[int, ...]:
        """Indexes of the samples that no actor works on."""
        return tuple(index for index, sample in enumerate(self.samples) if sample.state is SampleState.PENDING)

    @property
    def finished(self) -> bool:
        """Whether every sample is scored or void."""
        return all(sample.state in (SampleState.SCORED, SampleState.VOID) for sample in self.samples)

    @property
    def rewards(self) -> tuple[float, ...]:
        """The rewards of the samples that have one, in order."""
        verdicts = (sample.verdict for sample in self.samples if sample.state is SampleState.SCORED)
        return tuple(verdict.reward for verdict in verdicts if verdict is not None and verdict.reward is not None)

    def as_message(self) -> RolloutGroup:
        """The group as the learner gets it, void samples left out."""
        return RolloutGroup(
            group_id=self.group_id,
            lease_version=self.lease_version,
            task=self.task,
            scored=tuple(
                ScoredRollout(rollout=sample.rollout, verdict=sample.verdict)
                for sample in self.samples
                if sample.state is SampleState.SCORED and sample.rollout is not None and sample.verdict is not None
            ),
        )


def sample_seeds(run_seed: int, group_id: int, group_size: int) -> tuple[int, ...]:
    """A seed for each sample, by run, group and index alone: whoever samples it gets the same tokens."""
    return tuple(
        int.from_bytes(hashlib.blake2b(f"{run_seed}/{group_id}/{index}".encode(), digest_size=6).digest(), "big")
        for index in range(group_size)
    )
