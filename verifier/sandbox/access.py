"""What rewards of this process use beyond it: its lines to a sandbox and to a relay, and how long a check may take."""

from dataclasses import dataclass

from protocol.clock import Deadline
from verifier.relay_line import RelayLine, Unavailable
from verifier.sandbox.link import Link
from verifier.sandbox.run import SandboxError

_SHARE = 0.9  # of the check's deadline: what is left is for saying so, before the pool ends the worker


@dataclass(slots=True)
class Access:
    """One a process."""

    _link: Link | None = None
    _server: RelayLine | None = None
    _deadline: Deadline | None = None

    def grant(self, link: Link, server: RelayLine | None = None) -> None:
        """From now on rewards use these lines."""
        self._link, self._server = link, server

    def reset(self) -> None:
        """As if nothing had been granted and no check had begun."""
        self._link = self._server = self._deadline = None

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
    def server(self) -> RelayLine:
        """The line to the Lean server's relay. Raises `Unavailable` if this process has none."""
        if self._server is None:
            raise Unavailable("there is no Lean server: name one by verifier.lean_server=http://host:port")
        return self._server

    @property
    def seconds(self) -> float:
        """What is left of the check's time."""
        return self._deadline.remaining if self._deadline else float("inf")


access = Access()
