"""Rewards `puzzle` and `puzzle_legal`: a list of moves, followed move by move until the first wrong one.

The four puzzles of Shojaee et al. 2025 ("The Illusion of Thinking"), each with a dial of its complexity. Time and
memory are linear in the answer's length, which is bounded.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from verifier.rewards.answer import committed_answer
from verifier.rewards.parameters import Parameters
from verifier.rewards.puzzles.blocks import Blocks
from verifier.rewards.puzzles.checkers import Checkers
from verifier.rewards.puzzles.hanoi import Hanoi
from verifier.rewards.puzzles.puzzle import IllegalMove, Puzzle
from verifier.rewards.puzzles.river import River
from verifier.rewards.score import BadAnswer, BadTask, Score

PUZZLES: dict[str, type[Puzzle[Any]]] = {each.name: each for each in (Blocks, Checkers, Hanoi, River)}
MAX_ANSWER_CHARACTERS = 2_000_000  # the longest shortest answer, 16 disks, has 65,535 moves in 720,000
MOST_DETOUR = 10  # times the fewest moves: what is longer is not followed further
_AROUND = re.compile(r"(?:```[a-z]{0,10}\s)?\s*(?:[A-Za-z_][A-Za-z_0-9]{0,30}\s{0,9}=)?(.*?)(?:```)?", re.DOTALL)
_PYTHON = str.maketrans("'()", '"[]')


def puzzle_reward(text: str, reference: str, metadata: Mapping[str, Any]) -> Score:
    """1 if all moves of the answer are legal and solve the puzzle, else 0; the reason names the first wrong move.

    Moves count from 1. The answer is one list of moves, in JSON or as Python writes it, perhaps behind `moves =` or in
    a code block, and at most ten times as long as needed. `reference` is what `described` wrote. `metadata["puzzle"]`
    may hold `shortest`: if true, more moves than are needed get 0.
    """
    puzzle, fewest, shortest_only = _task(reference, metadata)
    moves = read_moves(committed_answer(text))
    followed = follow(puzzle, moves, MOST_DETOUR * fewest)
    if followed.wrong:
        return Score(0.0, followed.wrong)
    if shortest_only and len(moves) > fewest:
        return Score(0.0, f"solved in {len(moves)} moves where {fewest} are enough")
    return Score(1.0, f"solved in {len(moves)} moves; {fewest} are enough")


def puzzle_legal_reward(text: str, reference: str, metadata: Mapping[str, Any]) -> Score:
    """The share of moves before the first illegal one, in 0..1, of as many as there are or are needed at least.

    To be watched, as in `puzzle + 0*puzzle_legal`, rather than paid for: moving to and fro is legal and solves nothing.
    `reference` and `metadata` as for `puzzle`.
    """
    puzzle, fewest, _ = _task(reference, metadata)
    moves = read_moves(committed_answer(text))
    followed = follow(puzzle, moves, MOST_DETOUR * fewest)
    return Score(
        followed.legal / max(len(moves), fewest),
        f"{followed.legal} of {len(moves)} moves before the first illegal one; {fewest} are enough",
    )


@dataclass(frozen=True, slots=True)
class Followed:
    """How many moves were legal before the first that was not, and what was wrong; empty if the puzzle is solved."""

    legal: int
    wrong: str


def follow(puzzle: Puzzle[Any], moves: list[Any], most: int) -> Followed:
    """Make the moves until one is illegal, but `most` of them: an answer that goes on is wrong."""
    state = puzzle.begin()
    for number, move in enumerate(moves[:most], start=1):
        try:
            state = puzzle.after(state, move)
        except IllegalMove as error:
            return Followed(number - 1, f"move {number} of {len(moves)}: {error}")
    if len(moves) > most:
        return Followed(most, f"{len(moves)} moves are more than {most}, {MOST_DETOUR} times as many as are enough")
    lacking = puzzle.lacking(state)
    return Followed(len(moves), f"not solved after {len(moves)} moves: {lacking}" if lacking else "")


def described(puzzle: Puzzle[Any]) -> str:
    """The reference of a task: the instance, and its fewest moves. Raises `ValueError` if it cannot be solved."""
    return json.dumps({"puzzle": puzzle.name, **puzzle.parameters(), "shortest": puzzle.shortest()})


def read_reference(reference: str) -> tuple[Puzzle[Any], int]:
    """The puzzle that `described` wrote, and its fewest moves. Raises `BadTask`."""
    try:
        found = json.loads(reference)
    except (ValueError, RecursionError):
        raise BadTask(f"the reference is no puzzle but {reference[:80]!r}: see verifier.rewards.puzzles") from None
    if not isinstance(found, dict) or not isinstance(name := found.pop("puzzle", None), str) or name not in PUZZLES:
        raise BadTask(
            f"the reference must be an object whose puzzle is one of {', '.join(PUZZLES)}: {reference[:80]!r}"
        )
    shortest = found.pop("shortest", None)
    if type(shortest) is not int or shortest < 1:
        raise BadTask(f"the reference's shortest must be a whole number of 1 or more, not {str(shortest)[:80]!r}")
    try:
        return PUZZLES[name](**found), shortest
    except (ValueError, TypeError) as error:
        raise BadTask(f"the reference is no {name}: {error}"[:300]) from None


def read_moves(answer: str) -> list[Any]:
    """The one list that an answer is. Raises `BadAnswer`."""
    if len(answer) > MAX_ANSWER_CHARACTERS:
        raise BadAnswer(f"the answer has {len(answer)} characters, more than {MAX_ANSWER_CHARACTERS} are not read")
    match = _AROUND.fullmatch(answer.strip())
    written = match[1].strip() if match else answer
    try:
        moves = json.loads(written if '"' in written else written.translate(_PYTHON))
    except (ValueError, RecursionError):
        raise BadAnswer(f"the answer is not one list of moves: {answer[:80]!r}") from None
    if not isinstance(moves, list):
        raise BadAnswer(f"the answer is not one list of moves: {answer[:80]!r}")
    if not moves:
        raise BadAnswer("the answer has no moves")
    return moves


def _task(reference: str, metadata: Mapping[str, Any]) -> tuple[Puzzle[Any], int, bool]:
    """The puzzle, its fewest moves, whether only so many are right. First of all: a bad task is void for any text."""
    puzzle, shortest = read_reference(reference)
    return puzzle, shortest, Parameters.of(metadata, "puzzle", ("shortest",)).truth("shortest", False)
