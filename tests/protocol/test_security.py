"""Locked sockets: who holds the right key speaks, everybody else is not even heard."""

import os
import socket as plain
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from zmq.auth import create_certificates

from protocol import security
from protocol.errors import PeerSilent, Refused
from protocol.line import Line
from protocol.messages import Heartbeat, Hello, LeaseRequest
from protocol.security import InsecureKeys, Keys, SecurityConfig, is_loopback, load, lock, make, mismatch
from protocol.sockets import Dealer, Router

ROOT = Path(__file__).parents[2]
QUICK, SILENCE = 5.0, 0.7  # for what must come, and for what must not


def try_to_speak(dealer: Dealer) -> None:
    """Say something; whoever is refused may be told so at once, or hear nothing."""
    with suppress(PeerSilent):
        dealer.send(LeaseRequest(capacity=3))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("keys") / "keys"
    make(made)
    return made


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys of another run."""
    made = tmp_path_factory.mktemp("others") / "keys"
    make(made)
    return made


def test_whoever_is_refused_does_not_wait_for_ever(broker: Router, others: Path, directory: Path) -> None:
    known = load(others, "actor").known | {"broker": load(directory, "actor").known["broker"]}
    thief = Keys("actor", load(others, "actor").public, load(others, "actor").secret, known)
    with Dealer(broker.address, keys=thief) as stranger:
        time.sleep(SILENCE)  # the refusal is there before a word is said
        began = time.monotonic()
        try_to_speak(stranger)
        assert time.monotonic() - began < QUICK
        assert broker.take(SILENCE) is None
        stranger.socket.close(0)


@pytest.fixture
def broker(directory: Path) -> Iterator[Router]:
    with Router("tcp://127.0.0.1:*", keys=load(directory, "broker"), largest=10_000) as router:
        yield router


@pytest.mark.parametrize("role", ["learner", "actor", "verifier"])
def test_whoever_holds_a_key_speaks_and_the_listener_knows_its_role(broker: Router, directory: Path, role: str) -> None:
    with Dealer(broker.address, keys=load(directory, role)) as dealer:
        dealer.send(LeaseRequest(capacity=3))
        letter = broker.take(QUICK)
        assert letter is not None
        assert letter.role == role
        assert letter.read() == LeaseRequest(capacity=3)
        broker.send(letter.peer, Heartbeat())
        assert dealer.receive(QUICK) == Heartbeat()


def test_a_stranger_without_keys_is_not_heard_and_hears_nothing(broker: Router) -> None:
    with Dealer(broker.address) as stranger:
        try_to_speak(stranger)
        assert broker.receive(SILENCE) is None
        assert stranger.receive(0) is None
        stranger.socket.close(0)


def test_keys_of_another_run_are_of_no_use(broker: Router, directory: Path, others: Path) -> None:
    known = load(others, "actor").known | {"broker": load(directory, "actor").known["broker"]}
    thief = Keys("actor", load(others, "actor").public, load(others, "actor").secret, known)
    with Dealer(broker.address, keys=thief) as stranger:
        try_to_speak(stranger)
        assert broker.receive(SILENCE) is None
        stranger.socket.close(0)


def test_a_public_key_alone_is_of_no_use(broker: Router, directory: Path, others: Path) -> None:
    """It is in every host's directory; without its secret the handshake fails."""
    honest, own = load(directory, "actor"), load(others, "actor")
    with Dealer(broker.address, keys=Keys("actor", honest.public, own.secret, honest.known)) as stranger:
        try_to_speak(stranger)
        assert broker.receive(SILENCE) is None
        stranger.socket.close(0)


def test_a_listener_that_is_not_the_one_meant_gets_nothing(directory: Path, others: Path) -> None:
    with (
        Router("tcp://127.0.0.1:*", keys=load(others, "broker")) as trap,
        Dealer(trap.address, keys=load(directory, "actor")) as dealer,
    ):
        try_to_speak(dealer)
        assert trap.receive(SILENCE) is None
        dealer.socket.close(0)


def test_only_the_roles_that_are_named_come_in(directory: Path) -> None:
    with Router("tcp://127.0.0.1:*", keys=load(directory, "learner"), roles=("actor",)) as weights:
        with Dealer(weights.address, keys=load(directory, "verifier"), listener="learner") as verifier:
            try_to_speak(verifier)
            assert weights.receive(SILENCE) is None
            verifier.socket.close(0)
        with Dealer(weights.address, keys=load(directory, "actor"), listener="learner") as actor:
            actor.send(LeaseRequest(capacity=3))
            assert weights.receive(QUICK) is not None


def test_a_frame_that_is_too_large_ends_its_connection_and_no_other(broker: Router, directory: Path) -> None:
    with (
        Dealer(broker.address, keys=load(directory, "actor")) as honest,
        Dealer(broker.address, keys=load(directory, "actor")) as greedy,
    ):
        greedy.socket.send_multipart([b"x" * 20_000])
        assert broker.receive(SILENCE) is None
        honest.send(LeaseRequest(capacity=1))
        assert broker.receive(QUICK) is not None


def test_garbage_and_half_open_connections_do_not_disturb_the_honest(broker: Router, directory: Path) -> None:
    port = int(broker.address.rpartition(":")[2])
    strangers = [plain.create_connection(("127.0.0.1", port)) for _ in range(100)]
    for number, stranger in enumerate(strangers[:50]):
        stranger.sendall(os.urandom(200) if number % 2 else b"GET / HTTP/1.1\r\n\r\n")
    with Dealer(broker.address, keys=load(directory, "actor")) as honest:
        begun = time.monotonic()
        honest.send(LeaseRequest(capacity=1))
        assert broker.receive(QUICK) is not None
        assert time.monotonic() - begun < 2.0
    for stranger in strangers:
        stranger.close()


# ---------------------------------------------------------------- keys and configuration


def test_keys_are_made_by_one_command_and_kept_from_others(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "protocol.keys", str(tmp_path / "keys")]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert "give every role security.key_directory=" in made.stdout
    for role in security.ROLES:
        assert (tmp_path / "keys" / f"{role}.key_secret").stat().st_mode & 0o777 == 0o600
        assert load(tmp_path / "keys", role).role == role
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert again.returncode == 1
    assert "broker.key: is there already" in again.stderr


def test_secrets_are_made_where_nobody_else_can_read_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for a moment: the file is written before it can be made private."""
    seen: list[int] = []

    def watched(directory: str, role: str) -> tuple[str, str]:
        seen.append(Path(directory).stat().st_mode & 0o777)
        return create_certificates(directory, role)

    monkeypatch.setattr(security, "create_certificates", watched)
    open_to_all = tmp_path / "keys"
    open_to_all.mkdir(mode=0o755)
    make(open_to_all)
    assert seen == [0o700] * 4
    assert len([*open_to_all.iterdir()]) == 8, "nothing else is left there"


@pytest.mark.parametrize(
    ("listens", "comes", "problem"),
    [
        ("broker", "nobody", "the broker there is locked, and this process has no keys"),
        ("nobody", "actor", "the broker there has no keys, and this process has"),
        ("broker of others", "actor", "who listens there does not hold the key of broker.key"),
        ("broker", "stranger", "the broker there does not admit the key of this actor"),
        ("broker", "actor", ""),
        ("nobody", "nobody", ""),
    ],
)
def test_why_two_do_not_come_to_terms_is_told(
    directory: Path, others: Path, listens: str, comes: str, problem: str
) -> None:
    own, strange = load(directory, "actor"), load(others, "actor")
    keys = {
        "nobody": None,
        "broker": load(directory, "broker"),
        "broker of others": load(others, "broker"),
        "actor": own,
        "stranger": Keys("actor", strange.public, strange.secret, own.known),
    }
    with Router("tcp://127.0.0.1:*", keys=keys[listens]) as router:
        found = mismatch(router.address, keys[comes], "broker", seconds=QUICK)
    assert found.startswith(problem)
    assert bool(found) == bool(problem)


def test_nothing_is_told_of_an_address_where_nobody_listens(directory: Path) -> None:
    assert mismatch("tcp://127.0.0.1:9", load(directory, "actor"), "broker", seconds=0.3) == ""


def test_a_role_without_keys_gives_up_on_a_locked_broker_at_once_and_says_why(broker: Router) -> None:
    hello = Hello(role="actor", name="a", host="h", pid=1, metrics_port=0, versions={}, session="s")
    begun = time.monotonic()
    with pytest.raises(Refused, match=r"is locked, and this process has no keys: give both the same security\.mode"):
        Line(broker.address, hello, welcome_seconds=60.0)
    assert time.monotonic() - begun < 10.0


def test_a_secret_key_is_never_shown(directory: Path) -> None:
    keys = load(directory, "actor")
    assert keys.secret.decode() not in repr(keys)


def test_keys_that_cannot_be_used_name_the_file_and_the_cure(tmp_path: Path, others: Path) -> None:
    keys = tmp_path / "keys"
    with pytest.raises(InsecureKeys, match=r"actor\.key_secret: is missing; make keys by `python -m protocol\.keys"):
        load(keys, "actor")
    make(keys)
    (keys / "actor.key_secret").chmod(0o644)
    with pytest.raises(InsecureKeys, match=r"others may read it; chmod 600"):
        load(keys, "actor")
    (keys / "actor.key_secret").chmod(0o600)
    (keys / "actor.key").write_bytes((others / "actor.key").read_bytes())
    with pytest.raises(InsecureKeys, match=r"are not a pair"):
        load(keys, "actor")
    (keys / "verifier.key_secret").write_text("nothing")
    with pytest.raises(InsecureKeys, match=r"verifier\.key_secret: is no key"):
        load(keys, "verifier")
    (keys / "learner.key").unlink()
    with pytest.raises(InsecureKeys, match=r"learner\.key is missing beside the keys of the broker"):
        Dealer("tcp://127.0.0.1:9", keys=load(keys, "broker"), listener="learner")


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        ("tcp://127.0.0.1:*", True),
        ("tcp://127.0.0.1:5555", True),
        ("tcp://localhost:5555", True),
        ("tcp://[::1]:5555", True),
        ("ipc:///tmp/x", True),
        ("tcp://*:5555", False),
        ("tcp://0.0.0.0:5555", False),
        ("tcp://10.0.0.1:5555", False),
        ("tcp://head-node:5555", False),
    ],
)
def test_keys_are_wanted_as_soon_as_somebody_outside_could_reach_the_broker(address: str, inside: bool) -> None:
    assert is_loopback(address) == inside
    assert security.wanted("auto", address) == (not inside)
    assert security.wanted("curve", address)
    assert not security.wanted("none", address)


def test_a_process_is_locked_as_its_configuration_says(
    directory: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(security, "_in_use", None)
    with pytest.raises(InsecureKeys, match=r"security\.key_directory: .* broker at tcp://\*:1\) and no keys"):
        lock(SecurityConfig(), "tcp://*:1", "broker")
    with pytest.raises(ValueError, match=r"security\.mode=plain: must be one of auto, curve, none"):
        lock(SecurityConfig(mode="plain"), "tcp://*:1", "broker")
    lock(SecurityConfig(mode="none"), "tcp://*:1", "broker")
    assert "anybody who can reach tcp://*:1 may join" in caplog.text
    lock(SecurityConfig(key_directory=str(directory)), "tcp://127.0.0.1:1", "broker")
    assert security.in_use() is None
    lock(SecurityConfig(mode="curve", key_directory=str(directory)), "tcp://127.0.0.1:1", "broker")
    assert security.in_use() == load(directory, "broker")
    with Router("tcp://127.0.0.1:*") as router, Dealer(router.address, keys=load(directory, "actor")) as dealer:
        dealer.send(Heartbeat())
        letter = router.take(QUICK)
        assert letter is not None
        assert letter.role == "actor"
