"""A call of torch.distributed is waited for as long as was agreed, and a process that leaves ends well."""

import subprocess
import sys
import threading
import time

import pytest

import protocol.collective
from protocol.collective import Attempt, GroupBroken

LEAVES_IN_MID_CALL = """
import threading, time
from datetime import timedelta
import torch.distributed as dist
from protocol.collective import Attempt

store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=1))

def call():
    try:
        store.get("what nobody says")
    except Exception as error:
        raise RuntimeError(str(error)) from None

attempt = Attempt(call, 1.0)
time.sleep(0.9)  # it comes back while Python ends, unless it is waited for
attempt.wait()
"""


def test_an_attempt_gives_what_the_call_returned() -> None:
    attempt = Attempt(lambda: 7, 10.0)
    attempt.wait()
    assert attempt.over
    assert attempt.result() == 7


def test_an_attempt_raises_what_the_call_raised() -> None:
    def fails() -> None:
        raise GroupBroken("a member died")

    attempt = Attempt(fails, 10.0)
    attempt.wait()
    with pytest.raises(GroupBroken, match="a member died"):
        attempt.result()


def test_a_call_that_does_not_return_is_over_in_the_time_agreed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol.collective, "GRACE_SECONDS", 0.1)
    end = threading.Event()
    attempt = Attempt(end.wait, 0.1)
    try:
        assert not attempt.over
        began = time.monotonic()
        attempt.wait(0.5)
        assert time.monotonic() - began >= 0.4
        assert attempt.over
        with pytest.raises(GroupBroken, match="did not return"):
            attempt.result()
    finally:
        end.set()
        attempt.wait()


def test_a_process_that_leaves_while_a_call_is_about_to_return_ends_well() -> None:
    left = subprocess.run([sys.executable, "-c", LEAVES_IN_MID_CALL], timeout=60, capture_output=True, text=True)
    assert left.returncode == 0, left.stderr
