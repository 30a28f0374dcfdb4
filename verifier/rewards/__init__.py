"""All rewards by name: small pure functions, one family a file. Their libraries are loaded at first use, in workers."""

from collections.abc import Callable, Mapping
from typing import Any

from verifier.rewards import gym, symbolic
from verifier.rewards.accuracy import accuracy_reward
from verifier.rewards.format import format_reward
from verifier.rewards.mathematics import math_reward
from verifier.rewards.score import Reward

REWARDS: dict[str, Reward] = {
    "accuracy": accuracy_reward,
    "format": format_reward,
    "math": math_reward,
    "reasoning_gym": gym.gym_reward,
}
LIBRARIES: dict[str, Callable[[], None]] = {"math_verify": symbolic.load, "reasoning_gym": gym.load}
"""What loads and warms a library, for the zygote: so that no check pays for it."""


def library_for(reward: str, metadata: Mapping[str, Any]) -> str:
    """The library that a check needs; empty if none."""
    if reward == "accuracy":
        return "math_verify" if metadata.get("accuracy", "math") == "math" else ""
    return {"math": "math_verify", "reasoning_gym": "reasoning_gym"}.get(reward, "")
