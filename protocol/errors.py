"""Errors of the wire, as a tree: everything here is a `ProtocolError`."""


class ProtocolError(Exception):
    """Something arrived, or failed to arrive, that the protocol does not allow."""


class MalformedMessage(ProtocolError):
    """A message that cannot be taken. `field` is the path of the culprit, `problem` says what is wrong with it."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class PeerSilent(ProtocolError):
    """A peer that must speak (every heartbeat interval) has been silent past its deadline."""


class Refused(ProtocolError):
    """The broker refused us for good; the text says why and what to change."""
