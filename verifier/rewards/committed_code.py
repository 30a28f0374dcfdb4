"""The code that a completion commits to. Code in the thinking never counts.

Said is what follows the last `</think>`; thinking that is not closed says nothing. The code is what one pair of
`<answer>` tags encloses or, without any such tag, the last fenced block (```): there are often examples before it.
"""

import re

from verifier.rewards.answer import CLOSE, OPEN, THINK, THOUGHT, committed_answer
from verifier.rewards.score import BadAnswer

MOST_CHARACTERS = 100_000
_FENCED = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)


def committed_code(text: str, *, bare: bool = False) -> str:
    """The code in `text`. `bare`: a text without tags or fences is all code. Raises `BadAnswer`."""
    said = text.rpartition(THOUGHT)[2]
    if THINK in said:
        raise BadAnswer("the thinking is not closed")
    tagged = OPEN in said or CLOSE in said
    content = committed_answer(text) if tagged else said
    blocks = _FENCED.findall(content if content.endswith("\n") else content + "\n")
    if blocks:
        content = blocks[-1]
    elif not (tagged or bare):
        raise BadAnswer("there is no code")
    if not content.strip():
        raise BadAnswer("the code is empty")
    if len(content) > MOST_CHARACTERS:
        raise BadAnswer(f"the code has {len(content)} characters; {MOST_CHARACTERS} are run")
    return content
