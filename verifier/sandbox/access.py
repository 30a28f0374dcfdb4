"""The sandbox that rewards of this process use: the worker's line to it, and how long the check may still take."""

from dataclasses import dataclass

from protocol.clock import Deadline
from verifier.sandbox.link import Link
from verifier.sandbox.run import SandboxError

_SHARE = 0.9  # of the check's deadline: what is left is for saying so, before the pool ends the worker


@dataclass(slots=True)
class Access:
    """One a process."""

    _link: Link | None = None
    _deadline: Deadline | None = None

    def grant(self, link: Link) -> None:
        """From now on rewards use this line."""
        self._link = link

    def allow(self, seconds: float) -> None:
        """A check begins that has a deadline of `seconds`."""
        self._deadline = Deadline(_SHARE * seconds)

    @property
    def link(self) -> Link:
        """The line. Raises `SandboxError` if this process has none."""
        if self._link is None:
            raise SandboxError("there is no sandbox here: this reward runs in a worker of `python -m verifier`")
        return self._link

    @property
    def seconds(self) -> float:
        """What is left of the check's time."""
        return self._deadline.remaining if self._deadline else float("inf")


access = Access()
