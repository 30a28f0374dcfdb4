"""The question itself, for rewards that judge what was asked together with what was answered."""

import re
from typing import Any

READERS = re.compile(r"\b(reward_model|custom)\b")


def with_question(metadata: dict[str, Any], reward: str, question: str) -> dict[str, Any]:
    """`metadata`, with the `question` as it was before any template, if `reward` names one that reads it."""
    return {"question": question, **metadata} if READERS.search(reward) else metadata
