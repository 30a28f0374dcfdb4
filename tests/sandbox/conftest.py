"""Fixtures of the sandbox's tests."""

import os
from collections.abc import Iterator

import pytest
from boxes import OWNERS, SECRET, Box, box


@pytest.fixture(scope="module", params=OWNERS)
def sandboxed(request: pytest.FixtureRequest) -> Iterator[Box]:
    """A sandbox that the tests of a module share, once for each owner."""
    before = os.environ.pop("OFFBEAT_SECRET", None)
    with box(request.param) as found:
        assert os.environ["OFFBEAT_SECRET"] == SECRET
        yield found
    del os.environ["OFFBEAT_SECRET"]
    if before is not None:
        os.environ["OFFBEAT_SECRET"] = before
