"""Which weights each version is: the fingerprints that were published under its number."""

from collections.abc import Mapping, Sequence

from learner.broker.changes import Changes
from learner.broker.errors import InvalidEvent
from protocol.messages import VersionSpan


class Fingerprints:
    """Of the versions that rollouts may still name. `changes` is told which of them a journal has to write."""

    def __init__(self, changes: Changes) -> None:
        self.changes = changes
        self.known: dict[int, tuple[str, ...]] = {}  # version → oldest first; several once a learner made it anew
        self._remade = -1  # versions up to it may be published with other weights: the learner makes them anew

    def __bool__(self) -> bool:
        return bool(self.known)

    def restore(self, saved: Mapping[int, tuple[str, ...]]) -> None:
        """Be what a journal holds."""
        self.known = dict(saved)
        self.allow_others()

    def allow_others(self) -> None:
        """A learner begins again: the same steps may come to other weights."""
        self._remade = max(self.known, default=-1)

    def publish(self, version: int, fingerprint: str) -> None:
        """Weights are offered as `version`. Raises `InvalidEvent` if others were."""
        known = self.known.get(version, ())
        if fingerprint in known:
            return
        if known and version > self._remade:
            raise InvalidEvent(
                "fingerprint", f"version {version} is {known[-1]}, not {fingerprint}: two learners in one run?"
            )
        self.known[version] = (*known, fingerprint)
        self.changes.versions.add(version)

    def check(self, spans: Sequence[VersionSpan]) -> None:
        """Raises `InvalidEvent` for a span of a rollout that was sampled by other weights than its version's."""
        for index, span in enumerate(spans):
            known = self.known.get(span.version, ())
            if span.fingerprint not in known and (known or span.version >= min(self.known, default=0)):
                truth = " or ".join(known) or "not published"
                raise InvalidEvent(
                    f"rollout.version_spans[{index}].fingerprint",
                    f"{span.fingerprint} is not version {span.version}, which is {truth}",
                )

    def forget_before(self, oldest: int) -> None:
        """No rollout of a live group names a version before `oldest`."""
        for version in [version for version in self.known if version < oldest]:
            del self.known[version]
            self.changes.versions.add(version)
