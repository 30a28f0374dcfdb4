"""Reward `puzzle`: a list of moves, followed move by move.

The four puzzles of Shojaee et al. 2025 ("The Illusion of Thinking"), each with a dial of its complexity.
"""

import json
from collections.abc import Mapping
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
MOST_MOVES = 200_000
MOST_REASON = 250  # characters
_PYTHON = str.maketrans("'()", '"[]')


def puzzle_reward(text: str, reference: str, metadata: Mapping[str, Any]) -> Score:
    """1 if the moves of the answer are all legal and solve the puzzle, else 0; the reason names the first wrong move.

    `reference` is what `described` wrote. `metadata["puzzle"]` may hold `shortest`: true if longer solutions get 0.
    """
    puzzle, shortest = read_reference(reference)
    only_shortest = Parameters.of(metadata, "puzzle", ("shortest",)).truth("shortest", False)
    moves = read_moves(committed_answer(text))
    state = puzzle.begin()
    for number, move in enumerate(moves, start=1):
        try:
            state = puzzle.after(state, move)
        except IllegalMove as error:
            return Score(0.0, f"move {number} of {len(moves)}: {error}"[:MOST_REASON])
    if lacking := puzzle.lacking(state):
        return Score(0.0, f"not solved after {len(moves)} moves: {lacking}")
    if only_shortest and len(moves) > shortest:
        return Score(0.0, f"solved in {len(moves)} moves where {shortest} are enough")
    return Score(1.0, f"solved in {len(moves)} moves; the fewest are {shortest}")


def described(puzzle: Puzzle[Any]) -> str:
    """The reference of a task: the instance, and its fewest moves."""
    return json.dumps({"puzzle": puzzle.name, **puzzle.parameters(), "shortest": puzzle.shortest()})


def read_reference(reference: str) -> tuple[Puzzle[Any], int]:
    """The puzzle that `described` wrote, and its fewest moves. Raises `BadTask`."""
    try:
        found = json.loads(reference)
        family, shortest = PUZZLES[found.pop("puzzle")], found.pop("shortest")
        if type(shortest) is not int or shortest < 1:
            raise ValueError(f"shortest must be a whole number above 0, not {shortest!r}")
        return family(**found), shortest
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadTask(f"the reference is no puzzle: {type(error).__name__}: {error}"[:300]) from None


def read_moves(answer: str) -> list[Any]:
    """The list that an answer is; as Python writes it, after `moves =`, in a code block, too. Raises `BadAnswer`."""
    written = answer.strip().removeprefix("```json").removeprefix("```python").strip("`").strip()
    head, equals, rest = written.partition("=")
    if equals and head.strip().isidentifier():
        written = rest.strip()
    try:
        moves = json.loads(written if '"' in written else written.translate(_PYTHON))
    except (ValueError, RecursionError):
        raise BadAnswer(f"the answer is not a list of moves: {answer[:80]!r}") from None
    if not isinstance(moves, list):
        raise BadAnswer(f"the answer is not a list of moves: {answer[:80]!r}")
    if len(moves) > MOST_MOVES:
        raise BadAnswer(f"{len(moves)} moves are more than {MOST_MOVES}")
    return moves
