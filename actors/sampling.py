"""Leases and what becomes of them: requests on the way into the engine, rollouts on the way out.

A lease whose `min_version` is newer than the engine's version waits here until the weights are swapped. Every lease
ends once: its last rollout is sent, it fails because no engine could fulfil it, or it is overdue.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from actors.requests import Engine, EngineFailure, Finished, ImpossiblePrompt
from protocol.clock import Deadline
from protocol.errors import MalformedMessage
from protocol.messages import Lease, LeaseFailed, Rollout, RolloutDone, TokenIds


@dataclass(slots=True)
class HeldLease:
    """A lease that this actor holds."""

    lease: Lease
    deadline: Deadline
    prompt_ids: TokenIds | None  # [P]; None until it has begun
    missing: set[int]  # sample indexes whose rollouts were not sent


class Leases:
    """All leases that this actor holds, in the order in which they came."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._held: dict[int, HeldLease] = {}
        self._requests: dict[str, tuple[int, int]] = {}  # request id → lease id, sample index

    def __len__(self) -> int:
        return len(self._held)

    @property
    def held(self) -> tuple[int, ...]:
        """The leases whose rollouts were not all sent."""
        return tuple(self._held)

    def take(self, lease: Lease) -> None:
        """A lease has come; its allowance of time begins."""
        self._held[lease.lease_id] = HeldLease(lease, Deadline(lease.deadline_seconds), None, set(lease.sample_indexes))

    @property
    def early(self) -> int | None:
        """The lowest version for which leases wait that could not begin yet; None when all have begun."""
        return min((held.lease.min_version for held in self._held.values() if held.prompt_ids is None), default=None)

    def begin(self) -> Iterator[LeaseFailed]:
        """Hand to the engine all leases that its version may serve; those that nobody can fulfil come back."""
        version = self.engine.version
        for held in list(self._held.values()):
            if held.prompt_ids is None and version is not None and held.lease.min_version <= version:
                try:
                    self._begin(held)
                except ImpossiblePrompt as error:
                    self._forget(held)
                    detail = f"task {held.lease.task.task_id}: {error.detail}"
                    yield LeaseFailed(lease_id=held.lease.lease_id, reason=error.reason, detail=detail[:4096])

    def _begin(self, held: HeldLease) -> None:
        lease = held.lease
        prompt_ids = self.engine.encode(lease.task.prompt)
        held.prompt_ids = np.array(prompt_ids, dtype=np.int32)
        for index, seed in zip(lease.sample_indexes, lease.seeds, strict=True):
            request_id = f"{lease.lease_id}/{index}"
            self.engine.add(request_id, prompt_ids, seed)
            self._requests[request_id] = (lease.lease_id, index)

    def done(self, finished: Finished) -> RolloutDone:
        """The rollout of a completion. Raises `EngineFailure` when it cannot be one."""
        lease_id, index = self._requests.pop(finished.request_id)
        held = self._held[lease_id]
        assert held.prompt_ids is not None, "only leases that have begun finish"
        held.missing.remove(index)
        if not held.missing:
            del self._held[lease_id]
        try:
            rollout = Rollout(
                group_id=held.lease.group_id,
                sample_index=index,
                prompt_ids=held.prompt_ids,
                token_ids=finished.token_ids,
                behaviour_logprobs=finished.behaviour_logprobs,
                version_spans=finished.version_spans,
                finish_reason=finished.finish_reason,
                text=self.engine.decode(finished.token_ids.tolist()),
            )
        except MalformedMessage as error:
            versions = ", ".join(str(span.version) for span in finished.version_spans)
            raise EngineFailure(
                f"the engine made a rollout that cannot be ({error}) from weights of version {versions}: "
                "have the weights diverged?"
            ) from error
        return RolloutDone(lease_id=lease_id, rollout=rollout)

    def overdue(self) -> Iterator[Lease]:
        """Forget leases whose time is up, and their requests."""
        for held in list(self._held.values()):
            if held.deadline.passed:
                self._forget(held)
                yield held.lease

    def _forget(self, held: HeldLease) -> None:
        requests = [f"{held.lease.lease_id}/{index}" for index in held.missing]
        self.engine.abort(request for request in requests if self._requests.pop(request, None))
        del self._held[held.lease.lease_id]
