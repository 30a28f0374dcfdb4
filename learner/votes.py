"""The vote of a group: is the answer on which most of its rollouts agree the right one (cons@G, majority voting)?

Source: Wang et al. 2023, "Self-Consistency Improves Chain of Thought Reasoning in Language Models"; DeepSeek-R1 shows
it as cons@64. The learner sees texts and verdicts and knows no mathematics: all rollouts that were judged right vote
for one answer, however they write it; wrong ones for what they wrote, and not at all if they wrote no answer.
"""

import re
from collections import Counter
from collections.abc import Iterable

RIGHT = ""  # no answer is empty
_ANSWER = re.compile(r"<answer>(.*?)</answer>|\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}", re.DOTALL)


def majority_right(group: Iterable[tuple[str, bool]]) -> float:
    """Chance that the vote of a group is right, from each rollout's text and whether it was judged right.

    1 or 0; between them where answers tie, of which one is drawn. Nobody's vote is wrong.
    """
    votes = Counter(vote for text, right in group if (vote := RIGHT if right else stated_answer(text)) is not None)
    most = max(votes.values(), default=0)
    leaders = [vote for vote, count in votes.items() if count == most]
    return 1 / len(leaders) if RIGHT in leaders else 0.0


def stated_answer(text: str) -> str | None:
    """What the last pair of `<answer>` tags or the last `\\boxed{}` holds, without white space; None: nothing."""
    found = _ANSWER.findall(text)
    return "".join("".join(found[-1]).split()) or None if found else None
