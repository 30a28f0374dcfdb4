"""Reward `reward_model`: what a model with a scalar head thinks of the completion. Computed in `verifier.scoring`."""

from collections.abc import Mapping
from typing import Any

from verifier.rewards.score import BadTask, Score


def model_reward(text: str, reference: str, metadata: Mapping[str, Any]) -> Score:
    """The sigmoid of the model's score, in 0..1. Reads no `reference`; `metadata` as `scoring.conversation` says.

    Jobs come here, to a worker, only where no model is served.
    """
    raise BadTask("this verifier serves no reward model: start it with reward_model.path=<folder of the checkpoint>")
