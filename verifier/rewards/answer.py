"""The answer that a completion commits to. Text outside the answer's tags never counts.

Said is what follows the last `</think>`; thinking that is not closed says nothing. There the answer is what one pair of
`<answer>` tags encloses or, without any such tag, what `\\boxed{}` does. Two different answers are none: a completion
that names all candidates must not be paid for one of them.
"""

import re

from verifier.rewards.score import BadAnswer

THINK, THOUGHT = "<think>", "</think>"
OPEN, CLOSE = "<answer>", "</answer>"
BOX = "\\boxed{"
BOXES = ("one", "last", "all")
_BRACE = re.compile(r"[{}]")


def said(text: str) -> str:
    """What follows the thinking. Raises `BadAnswer` when the thinking is not closed."""
    after = text.rpartition(THOUGHT)[2]
    if THINK in after:
        raise BadAnswer("the thinking is not closed")
    return after


def committed_answer(text: str, *, boxes: str = "one") -> str:
    """The answer in `text`, stripped and not empty. Raises `BadAnswer`.

    `boxes` says which of several boxed answers counts: `one`, which they must all repeat; the `last`; or `all`, joined
    by commas.
    """
    spoken = said(text)
    answer = tagged(spoken) if OPEN in spoken or CLOSE in spoken else _boxed(spoken, boxes)
    if not answer.strip():
        raise BadAnswer("the answer is empty")
    return answer.strip()


def tagged(spoken: str) -> str:
    """What the one pair of answer tags encloses. Raises `BadAnswer`."""
    if (spoken.count(OPEN), spoken.count(CLOSE)) != (1, 1):
        raise BadAnswer("there must be one pair of answer tags")
    before, _, after = spoken.partition(OPEN)
    if CLOSE in before:
        raise BadAnswer("the answer tags are the wrong way round")
    return after.partition(CLOSE)[0]


def _boxed(spoken: str, boxes: str) -> str:
    found = boxed(spoken)
    if not found:
        raise BadAnswer("there is no answer")
    if boxes == "all":
        return ", ".join(dict.fromkeys(found))
    if boxes == "one" and len(set(found)) > 1:
        raise BadAnswer("there is more than one boxed answer")
    return found[-1]


def boxed(spoken: str) -> list[str]:
    """What each `\\boxed{}` that is in no other one holds, stripped. Raises `BadAnswer` when one is not closed."""
    found, start = [], spoken.find(BOX)
    while start >= 0:
        depth = 1
        start += len(BOX)
        for brace in _BRACE.finditer(spoken, start):
            depth += 1 if brace[0] == "{" else -1
            if depth == 0:
                break
        else:
            raise BadAnswer("the boxed answer is not closed")
        found.append(spoken[start : brace.start()].strip())
        start = spoken.find(BOX, brace.end())
    return found
