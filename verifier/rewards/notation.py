"""One notation for formulas before they are compared: what only concerns typesetting goes, plain text becomes LaTeX."""

import re
from dataclasses import dataclass

_UNICODE = {
    "−": "-",
    "–": "-",
    "×": "\\times ",
    "·": "\\cdot ",
    "⋅": "\\cdot ",
    "÷": "/",
    "π": "\\pi ",
    "∞": "\\infty ",
    "≤": "\\le ",
    "≥": "\\ge ",
    "≠": "\\ne ",
    "≈": "\\approx ",
    "∪": "\\cup ",
    "∩": "\\cap ",
    "∈": "\\in ",
    "∅": "\\emptyset ",
    "±": "\\pm ",
    "°": "^{\\circ}",
    "²": "^{2}",
    "³": "^{3}",
    "½": "\\frac{1}{2}",
    "¼": "\\frac{1}{4}",
    "¾": "\\frac{3}{4}",
    "\u00a0": " ",
    "\u2009": " ",
    "\u202f": " ",
}
_UNICODE_TABLE = str.maketrans(_UNICODE)
_SPACES = re.compile(r"(?<!\\)\\[,;:!>]|\\quad(?![A-Za-z])|\\qquad(?![A-Za-z])|~|(?<!\\)\\ ")
_SIZES = re.compile(r"\\(?:left|right|displaystyle|textstyle|limits|big|Big|bigl|bigr|Bigl|Bigr)(?![A-Za-z])\s*")
_FRACTIONS = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_SHORT_FRACTION = re.compile(r"\\frac\s*([0-9])\s*([0-9])")
_THOUSANDS = re.compile(r"(?<=[0-9])(?:\{,\}|\\,|,\\!)(?=[0-9]{3}(?![0-9]))")
_ROOT = re.compile(r"(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)|√\s*\(([^()]*)\)|√\s*([0-9]+|[A-Za-z])")
_NAMES = re.compile(r"(?<![\\A-Za-z])(pi|infinity|inf)(?![A-Za-z])")
_STARS = re.compile(r"\*\*")
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_WORD = re.compile(r"[^\W\d_]{4,}(?:[ -][^\W\d_]+)*|[^\W\d_]{2,}(?:[ -][^\W\d_]+)+")
_BARE_NAME = re.compile(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?'*(?:\([A-Za-z](?:,\s*[A-Za-z])*\))?")
_RELATION = re.compile(r"=|\\approx(?![A-Za-z])")


def cleaned(formula: str) -> str:
    """The formula without dollar signs, sizes and spacing; Unicode and ASCII spellings as LaTeX."""
    text = formula.strip().translate(_UNICODE_TABLE)
    text = _THOUSANDS.sub("", text)
    text = _SPACES.sub(" ", _SIZES.sub("", text))
    text = text.removesuffix(".").strip()
    for opened, closed in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        inner = text[len(opened) : -len(closed)]
        if text.startswith(opened) and text.endswith(closed) and opened not in inner and len(text) > 2 * len(opened):
            text = inner.strip()
    text = _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", _FRACTIONS.sub(r"\\frac", text))
    text = _ROOT.sub(lambda found: f"\\sqrt{{{next(filter(None, found.groups()), '')}}}", text)
    text = _NAMES.sub(lambda found: "\\pi " if found[1] == "pi" else "\\infty ", text)
    text = _STARS.sub("^", text)
    return " ".join(text.split())


def words(formula: str) -> str | None:
    r"""What `formula` says in words, lower case: it is all `\text{…}`, or letters that spell no product of symbols.

    None if it is a formula. Words are compared as words: `east` is not `teas`, though as products they are equal.
    """
    if found := _TEXT.fullmatch(formula):
        return " ".join(found[1].strip(" .()").casefold().split())
    if _WORD.fullmatch(formula):
        return " ".join(formula.casefold().split())
    return None


@dataclass(frozen=True, slots=True)
class Chain:
    """`x = a = b \\approx c`: the bare name that opens it, if one does, and the members behind it.

    Each member comes with the relation before it. A formula without relations is a chain of one.
    """

    name: str
    members: tuple[tuple[str, str], ...]

    @property
    def single(self) -> bool:
        """Whether it says one thing only, `5` or `x = 5`."""
        return len(self.members) == 1


def chain(formula: str) -> Chain:
    """`formula` taken apart at `=` and `\\approx` outside of all braces."""
    found: list[tuple[str, str]] = []
    depth, start, relation, place = 0, 0, "", 0
    while place < len(formula):
        depth += {"{": 1, "}": -1}.get(formula[place], 0)
        match = _RELATION.match(formula, place) if depth == 0 else None
        if match and formula[place - 1 : place] not in ("<", ">", "!", ":"):
            found.append((relation, formula[start:place].strip()))
            relation, start = match[0], match.end()
            place = start
        else:
            place += 1
    found.append((relation, formula[start:].strip()))
    name = ""
    if len(found) > 1 and found[1][0] == "=" and _BARE_NAME.fullmatch(found[0][1]):
        name = found.pop(0)[1]
    return Chain(name, tuple(found))
