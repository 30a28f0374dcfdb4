"""Words by which a completion turns back on itself, as DeepSeek-R1 counts them while it learns to reason.

Source: Guo et al. 2025, "DeepSeek-R1 incentivizes reasoning in LLMs through reinforcement learning", Nature 645,
Extended Data Fig. 1: the words were chosen by three people, and "wait" is shown on its own as well.
"""

import re
from collections import Counter
from collections.abc import Sequence

WORDS = ("wait", "mistake", "however", "but", "retry", "error", "verify", "wrong", "evaluate", "check")
_WORD = re.compile(rf"\b(?:{'|'.join(WORDS)})\b", re.IGNORECASE)


def reflective_words(texts: Sequence[str]) -> dict[str, float]:
    """How often each of `WORDS` occurs in a text, on average over the texts: "let me check" is one "check"."""
    counts = Counter(found.lower() for text in texts for found in _WORD.findall(text))
    return {word: counts[word] / max(len(texts), 1) for word in WORDS}
