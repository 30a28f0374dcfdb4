"""Every check of root's zygotes has a user id that nothing else on the host has."""

import os
from itertools import pairwise

import pytest

from verifier.sandbox.identity import identities

HOST = "         0          0 4294967295\n"
CONTAINER = "         0     100000      65536\n"


@pytest.fixture(autouse=True)
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.mark.parametrize("host", [HOST, CONTAINER])
def test_ids_are_mapped_and_none_is_root(host: str) -> None:
    top = 4294967295 if host == HOST else 65536
    for pid in (1, 999, 32768, 4194303):
        found = identities(16, pid, host)
        assert found.first is not None
        assert found.first >= 1
        assert found.first + 17 <= top
        assert found.maps(0) == f"0 0 1\n1 {found.first} 17\n"
        assert found.zygote not in {found.of(slot) for slot in range(16)}


def test_two_zygotes_share_no_ids() -> None:
    ranges = sorted(identities(64, pid, HOST).first or 0 for pid in range(5000, 5100))
    assert all(later - earlier > 65 for earlier, later in pairwise(ranges))


def test_a_container_without_ids_to_spare_gives_none() -> None:
    assert identities(16, 7, "0 1000 1\n").first is None


def test_an_ordinary_user_has_only_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    found = identities(16, 7, HOST)
    assert (found.first, found.zygote, found.of(3), found.maps(1000)) == (None, 0, 0, "0 1000 1\n")
