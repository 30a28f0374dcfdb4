"""Puzzles whose solution is a list of moves, one a file: `python -m verifier.rewards.puzzles` makes tasks of them."""
