"""Reward `accuracy`: whether the committed answer equals the reference; `metadata.accuracy` says in what sense."""

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, TypeAlias

from verifier.rewards.answer import committed_answer
from verifier.rewards.mathematics import MAX_ANSWER_CHARACTERS, checked_reference, same
from verifier.rewards.score import BadAnswer, BadTask, Score

Equals: TypeAlias = Callable[[str], bool]
"""Whether an answer equals the reference that this was made from. Raises `BadAnswer` for what cannot be compared."""

_NUMBER = re.compile(r"[+-]?(([0-9]{1,3}(,[0-9]{3})+|[0-9]+)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")


def accuracy_reward(text: str, reference: str, metadata: Mapping[str, Any]) -> Score:
    """1 if the answer equals `reference`, 0 if not; `BadAnswer` if there is none to compare.

    `metadata["accuracy"]` is one of
    - `math` (the default): the same mathematical object, as reward `math` sees it; `(x+1)^2` equals `x^2+2x+1`;
    - `numeric`: the same number, exactly; `1,000`, `1e3` and `1000.0` are one number;
    - `exact`: the same text, white space at both ends aside.

    In every sense an answer that is the reference letter by letter is right, and is not looked at further.
    """
    sense = metadata.get("accuracy", "math")
    if not isinstance(sense, str) or sense not in _SENSES:
        raise BadTask(f"metadata.accuracy={sense!r}: must be one of {', '.join(_SENSES)}")
    if not reference.strip():
        raise BadTask("the reference is empty")
    equals = _SENSES[sense](reference.strip())  # first of all: a bad task is void whatever the text says
    answer = committed_answer(text)
    if answer == reference.strip():
        return Score(1.0, "the reference")
    if len(answer) > MAX_ANSWER_CHARACTERS:
        raise BadAnswer(f"the answer has {len(answer)} characters, more than {MAX_ANSWER_CHARACTERS} are not read")
    return Score(1.0, "equal") if equals(answer) else Score(0.0, f"wrong: {answer[:80]!r}")


def _exact(reference: str) -> Equals:
    return lambda answer: answer == reference


def _numeric(reference: str) -> Equals:
    expected = _number(reference)
    if expected is None:
        raise BadTask(f"the reference {reference[:80]!r} is not a number")

    def equals(answer: str) -> bool:
        if (number := _number(answer)) is None:
            raise BadAnswer(f"not a number: {answer[:80]!r}")
        return number == expected

    return equals


def _number(text: str) -> Decimal | None:
    """The number that `text` writes in ASCII digits. Decimals compare exactly, whatever their size."""
    if not _NUMBER.fullmatch(text):
        return None
    return Decimal(text.replace(",", ""))


def _math(reference: str) -> Equals:
    """As reward `math` without parameters."""
    expected = checked_reference(reference)
    return lambda answer: same(expected, answer)


_SENSES: dict[str, Callable[[str], Equals]] = {"math": _math, "exact": _exact, "numeric": _numeric}
