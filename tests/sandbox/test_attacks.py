"""Every attack is contained, for root and for an ordinary user; after each the next honest check is right."""

import re
import socket

import attacks_on_files
import attacks_on_processes
import attacks_on_resources
import attacks_on_the_network
import pytest
from attacks import ATTACKS, PRELUDE, Attack
from boxes import QUICK, Box

from verifier.sandbox.numbers import numbers
from verifier.sandbox.policy import REFUSED, UNKNOWN
from verifier.sandbox.program import Program

MODULES = (attacks_on_files, attacks_on_processes, attacks_on_resources, attacks_on_the_network)


def test_there_are_at_least_sixty_attacks() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS) >= 60
    assert all(any(hasattr(module, attack.name) for module in MODULES) for attack in ATTACKS)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_is_contained(sandboxed: Box, attack: Attack) -> None:
    outcome = sandboxed.run(attack.source, limits=attack.limits)
    said = outcome.stdout.decode(errors="replace")
    assert "ESCAPED" not in said, outcome
    assert outcome.ended in attack.ended, outcome
    assert outcome.wall_seconds < attack.limits.wall_seconds + 1.5, outcome
    assert len(outcome.stdout) <= attack.limits.output_bytes
    if outcome.ended == "exit" and attack.said:
        assert re.search(rf"REFUSED: .*({attack.said})", said), outcome
    sandboxed.honest()


@pytest.mark.parametrize("name", sorted({*REFUSED, *UNKNOWN} & set(numbers())))
def test_a_refused_system_call_is_refused(sandboxed: Box, name: str) -> None:
    source = (
        PRELUDE
        + f"""
try:
    print("ESCAPED", system_call({name!r}, 0, 0, 0, 0, 0, 0))
except OSError as error:
    print(errno.errorcode[error.errno])
"""
    )
    outcome = sandboxed.run(source, limits=QUICK)
    assert outcome.stdout.decode().strip() == ("ENOSYS" if name in UNKNOWN else "EPERM"), outcome


def test_checks_that_run_at_the_same_time_do_not_meet(sandboxed: Box) -> None:
    """One does its work slowly, the other looks for it, signals everybody and fills what it can fill."""
    honest = sandboxed.link.start(
        Program(source="import time; open('mine', 'w').write('1'); time.sleep(0.5); print(open('mine').read())")
    )
    hostile = (
        PRELUDE
        + """
for _ in range(10):
    assert os.listdir(".") == [], os.listdir(".")
    for target in (-1, 0, 2, 3, 4, 5):
        try:
            os.kill(target, signal.SIGTERM)
        except OSError:
            pass
    time.sleep(0.02)
"""
    )
    outcome = sandboxed.run(hostile, limits=QUICK)
    assert outcome.ok, outcome
    assert honest.wait().stdout == b"1\n"


def test_nothing_arrives_at_a_listener_of_the_host(sandboxed: Box) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("\0offbeat-test-listener")
        abstract.listen()
        server.settimeout(0.05)
        abstract.settimeout(0.05)
        source = (
            PRELUDE
            + f"""
for family, address in ((2, ("127.0.0.1", {server.getsockname()[1]})), (1, "\\0offbeat-test-listener")):
    try:
        socket.socket(family).connect(address)
        print("ESCAPED")
    except OSError as error:
        print(errno.errorcode[error.errno])
"""
        )
        assert sandboxed.run(source).stdout == b"EPERM\nEPERM\n"
        for listener in (server, abstract):
            with pytest.raises(TimeoutError):
                listener.accept()


def test_a_program_leaves_no_trace_in_the_memory_of_the_next(sandboxed: Box) -> None:
    (attack,) = [attack for attack in ATTACKS if attack.name == "finds_the_program_of_an_earlier_check"]
    for _ in range(5):
        sandboxed.run("x = 'canary-of-an-earlier-check' * 100")
    assert sandboxed.run(attack.source).stdout == b"REFUSED: got nothing\n"
