"""Tasks of one puzzle, as a file of JSON lines that `task.name=file` takes.

    python -m verifier.rewards.puzzles hanoi --sizes 3 4 5 --count 100 --seed 0 --out hanoi.jsonl
    python -m deploy.local task.name=file task.files=[hanoi.jsonl] task.template=r1

The same puzzle, sizes, count and seed give the same file. Of each size the first task is the classic one; no task comes
twice. Sizes: hanoi 1 to 16 disks, checkers 1 to 50 of each colour, river 2 to 20 pairs, blocks 2 to 10.
"""

import argparse
import json
import sys
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from verifier.rewards.expression import BadExpression, parse
from verifier.rewards.puzzles.puzzle import Puzzle
from verifier.rewards.puzzles.reward import PUZZLES, described

SHORTEST = "\n\nUse as few moves as possible."


def main() -> None:
    """Write them. What cannot be is refused by a sentence and exit code 2, and nothing is written."""
    parser = argparse.ArgumentParser(
        prog="python -m verifier.rewards.puzzles",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("puzzle", choices=sorted(PUZZLES))
    parser.add_argument("--sizes", type=int, nargs="+", required=True, help="the dial of complexity, each one once")
    parser.add_argument("--count", type=int, default=100, help="tasks of each size, fewer if there are fewer (100)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (0)")
    parser.add_argument("--shortest", action="store_true", help="only a shortest answer is right, and is asked for")
    parser.add_argument("--reward", default="puzzle", help="the tasks' reward expression (puzzle)")
    parser.add_argument("--out", type=Path, required=True, help="the file; one that is there is replaced")
    options = parser.parse_args()
    family = PUZZLES[options.puzzle]
    for size in options.sizes:
        if size not in family.sizes:
            parser.error(f"--sizes {size}: {family.name} takes {family.sizes[0]} to {family.sizes[-1]} {family.dial}")
        if options.sizes.count(size) > 1:
            parser.error(f"--sizes {size}: named more than once, its tasks would come again")
    if options.count < 1:
        parser.error(f"--count {options.count}: must be 1 or more")
    try:
        if not any(name.startswith("puzzle") for name in parse(options.reward).names):
            parser.error(f"--reward {options.reward!r}: names neither puzzle nor puzzle_legal")
    except BadExpression as error:
        parser.error(f"--reward: {error}")
    lines = []
    for size in options.sizes:
        made = list(islice(family.instances(size, Random(f"{options.seed}/{size}")), options.count))
        if len(made) < options.count:
            print(f"{family.name} has only {len(made)} tasks of {size} {family.dial}", file=sys.stderr)
        lines += [json.dumps(task(each, size, options.reward, shortest_only=options.shortest)) for each in made]
    try:
        options.out.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    except OSError as error:
        parser.error(f"--out {options.out}: {error.strerror}")
    print(f"{len(lines)} tasks in {options.out}")


def task(puzzle: Puzzle[Any], size: int, reward: str, *, shortest_only: bool = False) -> dict[str, Any]:
    """One line of the file: prompt, reward, reference; and as metadata `puzzle`, which the reward reads, and `size`."""
    return {
        "prompt": puzzle.prompt() + (SHORTEST if shortest_only else ""),
        "reward": reward,
        "reference": described(puzzle),
        "puzzle": {"shortest": shortest_only},
        "size": size,
    }


if __name__ == "__main__":
    main()
