"""Fixtures of the broker's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from running_broker import Running


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    """A broker with its defaults."""
    with Running(tmp_path) as broker:
        yield broker
