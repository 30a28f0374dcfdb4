"""The answer that a completion commits to. Text outside the answer's tags never counts.

Said is what follows the last `</think>`; thinking that is not closed says nothing. There the answer is what one pair of
`<answer>` tags encloses or, without any such tag, one `\\boxed{}`. Two answers are none: a completion that names all
candidates must not be paid for one of them.
"""

from verifier.rewards.score import BadAnswer

THINK, THOUGHT = "<think>", "</think>"
OPEN, CLOSE = "<answer>", "</answer>"
BOX = "\\boxed{"


def committed_answer(text: str) -> str:
    """The answer in `text`, stripped and not empty. Raises `BadAnswer`."""
    said = text.rpartition(THOUGHT)[2]
    if THINK in said:
        raise BadAnswer("the thinking is not closed")
    answer = _tagged(said) if OPEN in said or CLOSE in said else _boxed(said)
    if not answer.strip():
        raise BadAnswer("the answer is empty")
    return answer.strip()


def _tagged(said: str) -> str:
    if (said.count(OPEN), said.count(CLOSE)) != (1, 1):
        raise BadAnswer("there must be one pair of answer tags")
    before, _, after = said.partition(OPEN)
    if CLOSE in before:
        raise BadAnswer("the answer tags are the wrong way round")
    return after.partition(CLOSE)[0]


def _boxed(said: str) -> str:
    if BOX not in said:
        raise BadAnswer("there is no answer")
    if said.count(BOX) > 1:
        raise BadAnswer("there is more than one boxed answer")
    content = said.partition(BOX)[2]
    depth = 1
    for place, character in enumerate(content):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return content[:place]
    raise BadAnswer("the boxed answer is not closed")
