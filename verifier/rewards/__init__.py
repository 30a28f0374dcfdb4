"""All rewards by name: small pure functions, one family a file. Their libraries are loaded at first use, in workers."""

from collections.abc import Callable, Mapping
from typing import Any

from verifier.rewards import accuracy, gym
from verifier.rewards.code import code_reward
from verifier.rewards.format import format_reward
from verifier.rewards.score import Reward

REWARDS: dict[str, Reward] = {
    "accuracy": accuracy.accuracy_reward,
    "code": code_reward,
    "format": format_reward,
    "reasoning_gym": gym.gym_reward,
}
LIBRARIES: dict[str, Callable[[], None]] = {"math_verify": accuracy.load, "reasoning_gym": gym.load}
"""What loads and warms a library, for the zygote: so that no check pays for it."""


def library_for(reward: str, metadata: Mapping[str, Any]) -> str:
    """The library that a check needs; empty if none."""
    if reward == "accuracy":
        return "math_verify" if metadata.get("accuracy", "math") == "math" else ""
    return "reasoning_gym" if reward == "reasoning_gym" else ""
