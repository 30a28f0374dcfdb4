"""Supervised training, the same loop with another loss: `python -m learner.sft`."""
