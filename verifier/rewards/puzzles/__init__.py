"""Puzzles whose solution is a list of moves, a family a file; `python -m verifier.rewards.puzzles` makes tasks."""
