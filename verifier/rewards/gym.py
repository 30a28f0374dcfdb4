"""Reward `reasoning_gym`: a family's own checker, by name."""

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from protocol import reference as references
from verifier.rewards.answer import committed_answer
from verifier.rewards.gym_evaluation import disarm, refuse_code
from verifier.rewards.score import BadAnswer, BadTask, Score, blamed_on_answer, blamed_on_task, described

TOLERANCE = 1e-9
NONSENSE = "?"  # no family's answer


def gym_reward(text: str, reference: str, metadata: Mapping[str, Any]) -> Score:
    """1 if the family's scorer gives the answer what it gives the entry's own, or more; else 0.

    Some scorers give part of the points to a text that merely holds the answer, so anything less than the most is
    nothing. The most is 1 for every family of reasoning-gym 0.1.25. Five of them (boxnet, graph_color,
    propositional_logic, rubiks_cube, rush_hour) make entries without an answer, for which their scorers give 0: what
    they accept is decided by the rules of the puzzle, and the most is 1 there too. One scorer takes any text at all
    (game_of_life_halting): where nonsense gets the most, only the entry's own answer, letter by letter, is accepted.

    `reference` is the entry and `metadata.params` how its family, `metadata.family`, was set up, which scorers need;
    both are written by `protocol.reference`. Some scorers would evaluate the answer as code: they are kept from it
    (`gym_evaluation`), and this runs in a locked-in worker only.
    """
    family, params = metadata.get("family"), metadata.get("params", "{}")
    if not isinstance(family, str) or not isinstance(params, str):
        raise BadTask("metadata.family must name a reasoning-gym family, metadata.params be its parameters as JSON")
    expected = _expected(family, params, reference)
    answer = committed_answer(text)
    if expected.blind:
        if answer == expected.entry["answer"]:
            return Score(1.0, "the reference")
        return Score(0.0, f"not the reference, and the scorer of {family} cannot tell more")
    refuse_code(family, answer)
    with blamed_on_answer():
        score = float(_scorer(family, params).score_answer(answer, expected.entry))
    if score >= expected.most - TOLERANCE:
        return Score(1.0, "accepted")
    return Score(0.0, f"scored {score:g} of {expected.most:g}")


@dataclass(frozen=True, slots=True)
class _Expected:
    """An entry, the most that its scorer is known to give, and whether it gives that to nonsense."""

    entry: dict[str, Any]
    most: float
    blind: bool


def load() -> None:
    """Import reasoning-gym: seconds, which no check should pay for."""
    _library()


@lru_cache(maxsize=64)
def _expected(family: str, params: str, reference: str) -> _Expected:
    try:
        entry = references.load(reference)
    except ValueError as error:
        raise BadTask(f"the reference is no entry of reasoning-gym: {described(error)}") from None
    if not isinstance(entry, dict) or not entry.keys() >= {"question", "answer", "metadata"}:
        raise BadTask("the reference is no entry of reasoning-gym: question, answer, metadata")
    scorer = _scorer(family, params)
    with blamed_on_task(f"{family} cannot score its own answer"):
        own = 0.0 if entry["answer"] is None else float(scorer.score_answer(entry["answer"], entry))
    most = own if own > 0 else 1.0
    try:
        with blamed_on_answer():
            blind = float(scorer.score_answer(NONSENSE, entry)) >= most - TOLERANCE
    except BadAnswer:
        blind = False
    return _Expected(entry, most, blind)


@lru_cache(maxsize=16)
def _scorer(family: str, params: str) -> Any:
    library = _library()
    if family not in library.DATASETS:
        raise BadTask(f"reasoning-gym has no family {family!r}")
    with blamed_on_task(f"{family} does not take {params}"):
        scorer = library.create_dataset(family, **{"size": 1, "seed": 0, **references.load(params)})
    disarm(family, sys.modules[type(scorer).__module__])
    return scorer


@cache
def _library() -> Any:
    """reasoning-gym, which takes seconds to import: loaded in the zygote the first time that a task asks for it."""
    from reasoning_gym import factory

    logging.getLogger("reasoning_gym").setLevel(logging.ERROR)
    return factory
