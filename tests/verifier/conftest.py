"""Fixtures of the verifier's tests."""

from collections.abc import Iterator

import pytest
from verifier_doubles import StartVerifier, Verifier


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
