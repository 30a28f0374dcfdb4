"""The rules of reward `instructions`: each looks at a text and its own arguments, and says whether it is followed.

Names and arguments are those of IFEval (Zhou et al. 2023), whose tasks can be used as they are; the rules marked `+`
are not in it. Where a check differs from IFEval's: sentences are counted without NLTK, languages are told by lingua,
and the two rules of case say nothing about the language.

| rule                                        | arguments                                                            |
|---------------------------------------------|----------------------------------------------------------------------|
| `keywords:existence`                        | `keywords`                                                           |
| `keywords:frequency`                        | `keyword`, `frequency`, `relation`                                   |
| `keywords:forbidden_words`                  | `forbidden_words`                                                    |
| `keywords:letter_frequency`                 | `letter`, `let_frequency`, `let_relation`                            |
| `keywords:acrostic` +                       | `letters`: what the lines begin with                                 |
| `language:response_language`                | `language`, an ISO 639-1 code                                        |
| `length_constraints:number_sentences`       | `num_sentences`, `relation`                                          |
| `length_constraints:number_paragraphs`      | `num_paragraphs`, divided by `***`                                   |
| `length_constraints:number_words`           | `num_words`, `relation`                                              |
| `length_constraints:number_characters` +    | `num_characters`, `relation`                                         |
| `length_constraints:number_lines` +         | `num_lines`, `relation`; empty ones do not count                     |
| `length_constraints:longest_word` +         | `num_letters`                                                        |
| `length_constraints:nth_paragraph_first_word` | `num_paragraphs`, `nth_paragraph`, `first_word`; by empty lines |
| `detectable_content:number_placeholders`    | `num_placeholders`: `[like this]`, at least                          |
| `detectable_content:postscript`             | `postscript_marker`                                                  |
| `detectable_format:number_bullet_lists`     | `num_bullets`, exactly                                               |
| `detectable_format:numbered_list` +         | `num_items`: 1., 2., … exactly                                       |
| `detectable_format:constrained_response`    | none, or `options` +: nothing but one of them                        |
| `detectable_format:number_highlighted_sections` | `num_highlights`: `*like this*`, at least                        |
| `detectable_format:multiple_sections`       | `section_spliter`, `num_sections`, at least                          |
| `detectable_format:json_format`             | none, or `keys` +: an object that has them                           |
| `detectable_format:title`                   | none: `<<like this>>`                                                |
| `detectable_format:markdown_table` +        | `num_columns`, `num_rows`, exactly, the heading not counted          |
| `detectable_format:code_block` +            | none, or `name`: of its language                                     |
| `combination:two_responses`                 | none: divided by `******`, and different                             |
| `combination:repeat_prompt`                 | `prompt_to_repeat`                                                   |
| `startend:start_checker` +                  | `start_phrase`                                                       |
| `startend:end_checker`                      | `end_phrase`                                                         |
| `startend:quotation`                        | none                                                                 |
| `change_case:capital_word_frequency`        | `capital_frequency`, `capital_relation`                              |
| `change_case:english_capital`               | none                                                                 |
| `change_case:english_lowercase`             | none                                                                 |
| `punctuation:no_comma`                      | none                                                                 |
| `punctuation:without` +                     | `signs`: characters that must not occur                              |

A relation is `less than`, `at least`, `at most` or `exactly`; `at least` if none is given.
"""

import json
import re
from collections.abc import Callable
from typing import Any, TypeAlias

from verifier.rewards.language import AMONG, count_words, detector_of
from verifier.rewards.parameters import Parameters

Rule: TypeAlias = Callable[[str, Parameters], bool]

RULES: dict[str, tuple[Rule, tuple[str, ...]]] = {}
"""By name: the rule, and the names of its arguments."""

LANGUAGE_RULE = "language:response_language"
RELATIONS: dict[str, Callable[[int, int], bool]] = {
    "less than": lambda found, asked: found < asked,
    "at least": lambda found, asked: found >= asked,
    "at most": lambda found, asked: found <= asked,
    "exactly": lambda found, asked: found == asked,
}
ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
MAX_JSON_DEPTH = 100

_WORD = re.compile(r"\w+")
_SENTENCE_END = re.compile(r"(?<![.!?…。！？])[.!?…。！？]++[\"'”’)\]]*+(?=\s|$)|[。！？]")
_ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|vs|etc|e\.g|i\.e|cf|No|Fig|[A-Z])\.(?=\s)")
_BULLET = re.compile(r"^\s*(?:\*(?!\*)|-)\s+\S", re.MULTILINE)
_NUMBERED = re.compile(r"^\s*([0-9]{1,4})[.)]\s+\S", re.MULTILINE)
_HIGHLIGHT = re.compile(r"\*\*([^*\n]+)\*\*|\*([^*\n]+)\*")
_PLACEHOLDER = re.compile(r"\[[^\[\]\n]+\]")
_TITLE = re.compile(r"<<([^<>\n]+)>>")
_FENCED = re.compile(r"\A\s*```[a-zA-Z]*\s*\n?(.*?)```\s*\Z", re.DOTALL)
_TABLE_RULE = re.compile(r"\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?")


def rule(name: str, *arguments: str) -> Callable[[Rule], Rule]:
    """Registers a rule."""

    def register(function: Rule) -> Rule:
        RULES[name] = (function, arguments)
        return function

    return register


def _holds(found: int, given: Parameters, name: str, relation: str = "relation") -> bool:
    """Whether `found` stands in the relation to the number that the task asks for."""
    asked = given.whole(name)
    return RELATIONS[given.choice(relation, "at least", RELATIONS)](found, asked)


def _mentions(text: str, keyword: str) -> int:
    """How often `keyword` stands in `text` as a word, whatever its case."""
    return len(re.findall(rf"(?<!\w){re.escape(keyword)}(?!\w)", text, re.IGNORECASE))


def _filled(parts: list[str]) -> list[str]:
    return [part.strip() for part in parts if part.strip()]


# ---------------------------------------------------------------- keywords


@rule("keywords:existence", "keywords")
def _existence(text: str, given: Parameters) -> bool:
    return all(_mentions(text, keyword) for keyword in given.some_texts("keywords"))


@rule("keywords:frequency", "keyword", "frequency", "relation")
def _frequency(text: str, given: Parameters) -> bool:
    return _holds(_mentions(text, given.text("keyword")), given, "frequency")


@rule("keywords:forbidden_words", "forbidden_words")
def _forbidden(text: str, given: Parameters) -> bool:
    return not any(_mentions(text, word) for word in given.some_texts("forbidden_words"))


@rule("keywords:letter_frequency", "letter", "let_frequency", "let_relation")
def _letter_frequency(text: str, given: Parameters) -> bool:
    letter = given.text("letter")
    if len(letter) != 1:
        raise given.bad("letter", "must be one character")
    return _holds(text.lower().count(letter.lower()), given, "let_frequency", "let_relation")


@rule("keywords:acrostic", "letters")
def _acrostic(text: str, given: Parameters) -> bool:
    return "".join(line[0] for line in _filled(text.splitlines())).casefold() == given.text("letters").casefold()


@rule(LANGUAGE_RULE, "language")
def _response_language(text: str, given: Parameters) -> bool:
    target = given.text("language").partition("-")[0]
    right, total = count_words(text, target, detector_of(AMONG, target))
    return total > 0 and 2 * right > total


# ---------------------------------------------------------------- length


@rule("length_constraints:number_sentences", "num_sentences", "relation")
def _sentences(text: str, given: Parameters) -> bool:
    return _holds(count_sentences(text), given, "num_sentences")


def count_sentences(text: str) -> int:
    """Sentences of `text`: what ends with a full stop or the like and is followed by a space; not decimals, not Dr."""
    without = _ABBREVIATION.sub(lambda found: found[0][:-1], text)
    return sum(1 for piece in _SENTENCE_END.split(without) if _WORD.search(piece))


@rule("length_constraints:number_paragraphs", "num_paragraphs")
def _paragraphs(text: str, given: Parameters) -> bool:
    parts = re.split(r"\s?\*\*\*\s?", text)
    if any(not part.strip() for part in parts[1:-1]):
        return False
    return len(_filled(parts)) == given.whole("num_paragraphs")


@rule("length_constraints:number_words", "num_words", "relation")
def _words(text: str, given: Parameters) -> bool:
    return _holds(len(_WORD.findall(text)), given, "num_words")


@rule("length_constraints:number_characters", "num_characters", "relation")
def _characters(text: str, given: Parameters) -> bool:
    return _holds(len(text), given, "num_characters")


@rule("length_constraints:number_lines", "num_lines", "relation")
def _lines(text: str, given: Parameters) -> bool:
    return _holds(len(_filled(text.splitlines())), given, "num_lines")


@rule("length_constraints:longest_word", "num_letters")
def _longest_word(text: str, given: Parameters) -> bool:
    return max(map(len, _WORD.findall(text)), default=0) <= given.whole("num_letters")


@rule("length_constraints:nth_paragraph_first_word", "num_paragraphs", "nth_paragraph", "first_word")
def _first_word(text: str, given: Parameters) -> bool:
    paragraphs = _filled(re.split(r"\n\s*\n", text))
    count, nth = given.whole("num_paragraphs", least=1), given.whole("nth_paragraph", least=1)
    if nth > count:
        raise given.bad("nth_paragraph", f"there are only {count} paragraphs")
    word = given.text("first_word").casefold()
    if len(paragraphs) != count:
        return False
    return paragraphs[nth - 1].split()[0].strip("\"'“”‘’*_.,!?;:()[]").casefold() == word


# ---------------------------------------------------------------- content and format


@rule("detectable_content:number_placeholders", "num_placeholders")
def _placeholders(text: str, given: Parameters) -> bool:
    return len(_PLACEHOLDER.findall(text)) >= given.whole("num_placeholders")


@rule("detectable_content:postscript", "postscript_marker")
def _postscript(text: str, given: Parameters) -> bool:
    letters = [re.escape(letter) for letter in given.text("postscript_marker").lower() if letter not in " ."]
    marker = r"\.?\s?".join(letters)
    return bool(re.search(rf"^\s*{marker}\W*\s*\w", text.lower(), re.MULTILINE))


@rule("detectable_format:number_bullet_lists", "num_bullets")
def _bullets(text: str, given: Parameters) -> bool:
    return len(_BULLET.findall(text)) == given.whole("num_bullets")


@rule("detectable_format:numbered_list", "num_items")
def _numbered_list(text: str, given: Parameters) -> bool:
    return [int(number) for number in _NUMBERED.findall(text)] == list(range(1, given.whole("num_items", least=1) + 1))


@rule("detectable_format:constrained_response", "options")
def _constrained(text: str, given: Parameters) -> bool:
    return text.strip() in (given.texts("options") or ANSWERS)


@rule("detectable_format:number_highlighted_sections", "num_highlights")
def _highlights(text: str, given: Parameters) -> bool:
    found = [one or other for one, other in _HIGHLIGHT.findall(text)]
    return len(_filled(found)) >= given.whole("num_highlights")


@rule("detectable_format:multiple_sections", "section_spliter", "num_sections")
def _sections(text: str, given: Parameters) -> bool:
    splitter = re.escape(given.text("section_spliter"))
    return len(re.split(rf"\s?{splitter}\s?\d+\s?", text)) - 1 >= given.whole("num_sections")


@rule("detectable_format:json_format", "keys")
def _json(text: str, given: Parameters) -> bool:
    fenced = _FENCED.match(text)
    found = _parsed(fenced[1] if fenced else text)
    keys = given.texts("keys")
    return found is not _NOTHING and (not keys or (isinstance(found, dict) and found.keys() >= set(keys)))


_NOTHING = object()


def _parsed(text: str) -> Any:
    """The JSON value, or `_NOTHING`. Its depth is bounded before it is parsed."""
    depth = deepest = 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        deepest = max(deepest, depth)
    if deepest > MAX_JSON_DEPTH:
        return _NOTHING
    try:
        return json.loads(text)
    except ValueError:
        return _NOTHING


@rule("detectable_format:title")
def _title(text: str, given: Parameters) -> bool:
    return bool(_filled(_TITLE.findall(text)))


@rule("detectable_format:markdown_table", "num_columns", "num_rows")
def _table(text: str, given: Parameters) -> bool:
    columns, rows = given.whole("num_columns", least=1), given.whole("num_rows", least=1)
    lines = [line.strip() for line in text.splitlines()]
    for place in range(1, len(lines)):
        if "-" in lines[place] and _TABLE_RULE.fullmatch(lines[place]) and "|" in lines[place - 1]:
            table = [lines[place - 1], lines[place]]
            for line in lines[place + 1 :]:
                if "|" not in line:
                    break
                table.append(line)
            return len(table) - 2 == rows and all(_cells(line) == columns for line in table)
    return False


def _cells(line: str) -> int:
    return line.removeprefix("|").removesuffix("|").count("|") + 1


@rule("detectable_format:code_block", "name")
def _code_block(text: str, given: Parameters) -> bool:
    names: list[str] = []
    opened: str | None = None
    for line in text.splitlines():
        if opened is None and line.startswith("```"):
            opened = line[3:].strip().casefold()
        elif opened is not None and line.strip() == "```":
            names.append(opened)
            opened = None
    wanted = given.text("name", " ").strip().casefold()
    return wanted in names if wanted else bool(names)


# ---------------------------------------------------------------- the whole


@rule("combination:two_responses")
def _two_responses(text: str, given: Parameters) -> bool:
    parts = text.split("******")
    if any(not part.strip() for part in parts[1:-1]):
        return False
    answers = _filled(parts)
    return len(answers) == 2 and answers[0] != answers[1]


@rule("combination:repeat_prompt", "prompt_to_repeat")
def _repeat_prompt(text: str, given: Parameters) -> bool:
    return text.strip().casefold().startswith(given.text("prompt_to_repeat").strip().casefold())


@rule("startend:start_checker", "start_phrase")
def _start(text: str, given: Parameters) -> bool:
    return text.strip().casefold().startswith(given.text("start_phrase").strip().casefold())


@rule("startend:end_checker", "end_phrase")
def _end(text: str, given: Parameters) -> bool:
    return text.strip().strip('"').casefold().endswith(given.text("end_phrase").strip().casefold())


@rule("startend:quotation")
def _quotation(text: str, given: Parameters) -> bool:
    stripped = text.strip()
    return len(stripped) > 1 and stripped[0] == stripped[-1] == '"'


@rule("change_case:capital_word_frequency", "capital_frequency", "capital_relation")
def _capital_words(text: str, given: Parameters) -> bool:
    capitals = sum(word.isupper() for word in _WORD.findall(text))
    return _holds(capitals, given, "capital_frequency", "capital_relation")


@rule("change_case:english_capital")
def _capitals(text: str, given: Parameters) -> bool:
    return text.isupper()


@rule("change_case:english_lowercase")
def _lower(text: str, given: Parameters) -> bool:
    return text.islower()


@rule("punctuation:no_comma")
def _no_comma(text: str, given: Parameters) -> bool:
    return not set(text) & set(",，、")


@rule("punctuation:without", "signs")
def _without(text: str, given: Parameters) -> bool:
    return not set(text) & set(given.text("signs"))
