"""Digit addition: the quickstart's problems, their right trace, and the systematic faults that SFT plants.

A problem is put as `33+59=`; the right completion adds column by column, units first, as `digit+digit+carry=sum`:

    <think>3+9+0=12;3+5+1=9</think><answer>92</answer>

The faults sit in few token decisions, so that a policy gradient can mend them: a trace that always carries 0, one that
answers without thinking, one that leaves out the answer tags.
"""

import hashlib
from enum import Enum
from random import Random

CHARACTERS = "0123456789+=;"
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
HELD_OUT_SHARE = 10  # one problem in so many is never trained on


class Fault(Enum):
    """What is wrong with a trace."""

    NO_CARRY = "no_carry"  # every column is added with carry 0: harmless where nothing is carried
    GUESS = "guess"  # no thinking, a number of about the right size
    NO_TAGS = "no_tags"  # the right digits without the answer tags


def operands(random: Random, digits: int) -> tuple[int, int]:
    """Two numbers of `digits` digits each."""
    low, high = (0, 9) if digits == 1 else (10 ** (digits - 1), 10**digits - 1)
    return random.randint(low, high), random.randint(low, high)


def prompt(a: int, b: int) -> str:
    """The problem as the model reads it."""
    return f"{a}+{b}="


def held_out(a: int, b: int) -> bool:
    """Whether this problem is kept for evaluation, by a hash of the operands."""
    digest = hashlib.blake2b(f"{a}+{b}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_SHARE == 0


def completion(a: int, b: int, *, carrying: bool = True) -> str:
    """The trace and the answer; without `carrying`, each column is added as if nothing came from the one before."""
    columns, digits, carry = [], [], 0
    for x, y in zip(reversed(str(a)), reversed(str(b)), strict=True):
        total = int(x) + int(y) + carry
        columns.append(f"{x}+{y}+{carry}={total}")
        digits.append(total % 10)
        last, carry = total, (total // 10 if carrying else 0)
    answer = str(last) + "".join(str(digit) for digit in reversed(digits[:-1]))
    return f"<think>{';'.join(columns)}</think><answer>{answer}</answer>"


def faulty_completion(a: int, b: int, fault: Fault, random: Random) -> str:
    """A completion with one systematic fault."""
    if fault is Fault.NO_CARRY:
        return completion(a, b, carrying=False)
    if fault is Fault.GUESS:
        return f"<answer>{random.randint(0, 10 ** len(str(a)) * 2 - 1)}</answer>"
    return completion(a, b).replace("<answer>", "").replace("</answer>", "")
