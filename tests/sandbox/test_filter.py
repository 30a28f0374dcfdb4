"""The seccomp program decides as the policy says: interpreted here, step by step, for every call and machine."""

import struct

import pytest

from verifier.sandbox.filter import program
from verifier.sandbox.numbers import MACHINES, numbers
from verifier.sandbox.policy import ALLOWED, CONDITIONS, EXECUTE, REFUSED, UNKNOWN, WORKER

ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000


def decide(code: bytes, machine: int, number: int, arguments: tuple[int, ...] = ()) -> int:
    """What the kernel would decide (the slow truth): linux/filter.h, the five instructions that are used."""
    data = struct.pack("IIQ6Q", number, machine, 0, *(*arguments, *[0] * (6 - len(arguments))))
    steps = list(struct.iter_unpack("HBBI", code))
    place = accumulator = 0
    while True:
        kind, then, otherwise, value = steps[place]
        place += 1
        match kind:
            case 0x20:
                (accumulator,) = struct.unpack_from("I", data, value)
            case 0x06:
                return int(value)
            case 0x15:
                place += then if accumulator == value else otherwise
            case 0x25:
                place += then if accumulator > value else otherwise
            case 0x35:
                place += then if accumulator >= value else otherwise
            case 0x45:
                place += then if accumulator & value else otherwise
            case _:
                raise AssertionError(hex(kind))


@pytest.mark.parametrize("machine", MACHINES)
def test_a_call_is_allowed_exactly_if_the_policy_names_it(machine: str) -> None:
    table, code = numbers(machine), program(ALLOWED, machine)
    wanted = {table[name] for name in ALLOWED if name in table}
    conditional = {table[name] for name in CONDITIONS if name in table}
    unknown = {table[name] for name in UNKNOWN}
    for number in range(600):
        if number in conditional:
            continue
        expected = ALLOW if number in wanted else ENOSYS if number in unknown else EPERM
        assert decide(code, MACHINES[machine], number) == expected, number


@pytest.mark.parametrize("machine", MACHINES)
def test_another_machine_and_other_number_ranges_are_fatal(machine: str) -> None:
    code = program(ALLOWED, machine)
    assert decide(code, 0x40000003, numbers(machine)["read"]) == KILL  # i386
    assert decide(code, MACHINES[machine], 0x40000000 | 39) == KILL  # x32
    assert decide(code, MACHINES[machine], 0xFFFFFFFF) == KILL


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("name", "arguments", "allowed"),
    [
        ("clone", (17,), True),
        ("clone", (0x3D0F00,), True),  # a thread
        *[("clone", (flag | 17,), False) for flag in (1 << 17, 1 << 25, 1 << 26, 1 << 27, 1 << 28, 1 << 29, 1 << 30)],
        ("clone", ((1 << 32) | (1 << 28),), False),
        ("socketpair", (1, 1, 0), True),
        ("socketpair", (2, 1, 0), False),
        ("ioctl", (0, 0x5401), True),
        ("ioctl", (0, 0x5412), False),
        ("ioctl", (0, (1 << 32) | 0x5412), False),  # the kernel reads the lower half
        ("prctl", (15,), True),
        ("prctl", (22,), False),
        ("prctl", (4, 1), False),
        ("prlimit64", (0,), True),
        ("prlimit64", (7,), False),
    ],
)
def test_arguments_decide_where_the_policy_says_so(
    machine: str, name: str, arguments: tuple[int, ...], allowed: bool
) -> None:
    decided = decide(program(ALLOWED, machine), MACHINES[machine], numbers(machine)[name], arguments)
    assert decided == (ALLOW if allowed else EPERM)


def test_what_is_named_as_refused_is_in_no_list_of_what_is_allowed() -> None:
    assert not REFUSED.keys() & ALLOWED.keys()
    assert not UNKNOWN.keys() & ALLOWED.keys()
    assert {*EXECUTE, *WORKER} <= REFUSED.keys()


def test_every_entry_has_a_reason_and_a_number() -> None:
    for table in (ALLOWED, EXECUTE, WORKER, REFUSED, UNKNOWN):
        assert all(reason.strip() for reason in table.values())
        assert table.keys() <= numbers("x86_64").keys()


def test_a_machine_without_a_table_is_named() -> None:
    with pytest.raises(KeyError, match="no table of system calls for vax"):
        program(ALLOWED, "vax")
