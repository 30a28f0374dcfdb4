"""All rewards by name: small pure functions, one family a file. Their libraries are loaded at first use, in workers."""

from collections.abc import Callable, Mapping
from typing import Any

from verifier.rewards import gym, language, symbolic
from verifier.rewards.accuracy import accuracy_reward
from verifier.rewards.code import code_reward
from verifier.rewards.custom import custom_reward
from verifier.rewards.format import format_reward
from verifier.rewards.instructions import instructions_reward, needs_language
from verifier.rewards.length import length_reward
from verifier.rewards.mathematics import math_reward
from verifier.rewards.model import model_reward
from verifier.rewards.proof.reward import proof_reward
from verifier.rewards.puzzles.reward import puzzle_legal_reward, puzzle_reward
from verifier.rewards.repetition import repetition_reward
from verifier.rewards.score import Reward
from verifier.rewards.search import exact_match_reward, token_f1_reward

REWARDS: dict[str, Reward] = {
    "accuracy": accuracy_reward,
    "code": code_reward,
    "custom": custom_reward,
    "exact_match": exact_match_reward,
    "format": format_reward,
    "instructions": instructions_reward,
    "language": language.language_reward,
    "length": length_reward,
    "math": math_reward,
    "puzzle": puzzle_reward,
    "puzzle_legal": puzzle_legal_reward,
    "proof": proof_reward,
    "reasoning_gym": gym.gym_reward,
    "reward_model": model_reward,
    "repetition": repetition_reward,
    "token_f1": token_f1_reward,
}
LIBRARIES: dict[str, Callable[[], None]] = {
    "lingua": language.load,
    "math_verify": symbolic.load,
    "reasoning_gym": gym.load,
}
"""What loads and warms a library, for the zygote: so that no check pays for it."""

_LIBRARY_OF = {"language": "lingua", "math": "math_verify", "reasoning_gym": "reasoning_gym"}


def library_for(reward: str, metadata: Mapping[str, Any]) -> str:
    """The library that a check needs; empty if none."""
    if reward == "accuracy":
        return "math_verify" if metadata.get("accuracy", "math") == "math" else ""
    if reward == "instructions":
        return "lingua" if needs_language(metadata) else ""
    return _LIBRARY_OF.get(reward, "")
