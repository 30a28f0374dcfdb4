"""Fixtures of the verifier's tests."""

from collections.abc import Iterator

import pytest
from verifier_doubles import StartVerifier, Verifier

from verifier.rewards.proof import programs
from verifier.sandbox.access import access
from verifier.sandbox.sandbox import Sandbox


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    """A verifier that the tests of a module share: they must leave it without jobs."""
    verifier = Verifier(silence=300.0)  # other tests run in between
    yield verifier
    verifier.close()


@pytest.fixture
def start_verifier() -> Iterator[StartVerifier]:
    """Starts verifiers with these options, to be ended by the test or after it."""
    started: list[Verifier] = []

    def start(*options: str, **times: float) -> Verifier:
        verifier = Verifier(*options, **times)
        started.append(verifier)
        return verifier

    yield start
    for verifier in started:
        verifier.close()


@pytest.fixture(scope="module")
def proving() -> Iterator[Sandbox]:
    """Rewards of this process run proof programs in a sandbox of their own."""
    with Sandbox(readable=programs.readable()) as sandbox, sandbox.link() as link:
        access.grant(link)
        yield sandbox
    access.reset()
