"""A broker is found by its address, or by the file that it writes, wherever it listens now."""

import json
from pathlib import Path
from threading import Timer

import pytest

from protocol import security
from protocol.address import awaited, current
from protocol.errors import PeerSilent, Refused


def test_an_address_stands_for_itself() -> None:
    assert current("tcp://10.0.0.1:5555") == "tcp://10.0.0.1:5555"


def test_a_file_says_where_the_broker_listens_each_time_that_it_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "broker.json"
    assert current(f"file:{path}") == ""
    for port in (4, 5):
        path.write_text(json.dumps({"broker": f"tcp://127.0.0.1:{port}", "http": "http://127.0.0.1:6", "pid": 7}))
        assert current(f"file:{path}") == f"tcp://127.0.0.1:{port}"


@pytest.mark.parametrize("text", ["", "{}", "[]", '"tcp://127.0.0.1:4"', '{"broker": "tcp'])
def test_a_file_that_names_no_broker_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "broker.json").write_text(text)
    with pytest.raises(Refused, match=r"broker\.json: must be a broker\.json as a broker writes it"):
        current(f"file:{tmp_path / 'broker.json'}")


def test_a_file_is_awaited_as_long_as_was_said_and_no_longer(tmp_path: Path) -> None:
    path = tmp_path / "broker.json"
    with pytest.raises(PeerSilent, match=r"broker\.json is not there after 0\.1 s: check the path"):
        awaited(f"file:{path}", 0.1)
    timer = Timer(0.1, path.write_text, ['{"broker": "tcp://127.0.0.1:4"}'])
    timer.start()
    assert awaited(f"file:{path}", 10.0) == "tcp://127.0.0.1:4"
    timer.join()


def test_what_a_file_will_name_is_locked_unless_it_is_said_that_it_is_not() -> None:
    assert security.wanted("auto", "file:/shared/run/broker.json")
    assert not security.wanted("none", "file:/shared/run/broker.json")
