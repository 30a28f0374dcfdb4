"""How a question is put to the model."""

from collections.abc import Callable
from typing import TypeAlias

Wrap: TypeAlias = Callable[[str], str]

PLAIN = "{prompt}"

# DeepSeek-R1 (Guo et al. 2025), table 1, as in the Nature version
R1 = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant "
    "first thinks about the reasoning process in the mind and then provides the user with the answer. The reasoning "
    "process and answer are enclosed within <think>...</think> and <answer>...</answer> tags, respectively, i.e., "
    "<think> reasoning process here </think> <answer> answer here </answer>. User: {prompt}. Assistant:"
)


def template(name: str, option: str = "task.template") -> Wrap:
    """The function that wraps a question: `plain`, `r1`, or a text that holds `{prompt}`.

    Raises `ValueError` that names `option`.
    """
    text = {"plain": PLAIN, "r1": R1}.get(name, name)
    if text.count("{prompt}") != 1:
        raise ValueError(f"{option}={name!r}: must be plain, r1, or a text with {{prompt}} in it once")
    before, after = text.split("{prompt}")
    return lambda question: f"{before}{question}{after}"
