"""Tasks of one puzzle, as a file of JSON lines.

    python -m verifier.rewards.puzzles hanoi --sizes 3 4 5 --count 100 --out hanoi.jsonl
    python -m deploy.local task.name=file task.files=[hanoi.jsonl] task.template=r1 …

The same seed gives the same tasks.
"""

import argparse
import json
import sys
from itertools import islice
from pathlib import Path
from random import Random

from verifier.rewards.puzzles.reward import PUZZLES, described


def main() -> None:
    """Write them. What cannot be is refused by a sentence and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m verifier.rewards.puzzles",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("puzzle", choices=sorted(PUZZLES))
    parser.add_argument("--sizes", type=int, nargs="+", required=True, help="disks, checkers a colour, pairs, blocks")
    parser.add_argument("--count", type=int, default=100, help="tasks of each size, if there are so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    puzzle = PUZZLES[options.puzzle]
    for size in options.sizes:
        if size not in puzzle.sizes:
            parser.error(f"--sizes {size}: {puzzle.name} has sizes {puzzle.sizes[0]} to {puzzle.sizes[-1]}")
    if options.count < 1:
        parser.error(f"--count {options.count}: must be 1 or more")
    lines = []
    for size in options.sizes:
        made = list(islice(puzzle.instances(size, Random(f"{options.seed}/{size}")), options.count))
        if len(made) < options.count:
            print(f"{puzzle.name} has only {len(made)} tasks of size {size}", file=sys.stderr)
        for each in made:
            task = {"prompt": each.prompt(), "reward": "puzzle", "reference": described(each)}
            lines.append(json.dumps(task | {"puzzle_name": puzzle.name, "puzzle_size": size}))
    try:
        options.out.write_text("".join(f"{line}\n" for line in lines))
    except OSError as error:
        parser.error(f"--out {options.out}: {error.strerror}")
    print(f"{len(lines)} tasks in {options.out}")


if __name__ == "__main__":
    main()
