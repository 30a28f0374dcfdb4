"""Reward `language`: the share of the thinking's words that are in the target language (DeepSeek-R1, section 2.3.2).

Words of a script that the target is not written in are told apart by the script. The others go in passages of about
`PASSAGE` words, a sentence or more, to lingua, which says of each which of a few languages it is in. Formulas, code,
tags and numbers are no words and count for nothing.

lingua in its low-accuracy mode (trigrams) with the languages below takes 46 MB and 0.4 s in the zygote, once, and
0.5 ms a passage. Of passages of English prose it takes 99.7 % for English at 20 words and 97 % at 12. Its other mode is
as good at 8 words, for 470 MB and 5 s (all 75 languages: 930 MB and 10 s).
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

from verifier.rewards.answer import THINK, THOUGHT
from verifier.rewards.extras import required
from verifier.rewards.parameters import Parameters
from verifier.rewards.score import BadAnswer, BadTask, Score

AMONG = (
    *("ar", "cs", "da", "de", "el", "en", "es", "fi", "fr", "he", "hi", "hu", "id", "it", "ja", "ko", "nl", "pl", "pt"),
    *("ro", "ru", "sv", "th", "tr", "uk", "vi", "zh"),
)
PASSAGE = 24  # words
CONFIDENCE = 0.1  # of the target in a passage, from which on it is taken for it
CONFIDENCE_BRIEF = 0.02  # the same where there are no more than BRIEF words to go by
BRIEF = 8
OF = ("thinking", "all")

_SCRIPTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("ar", "fa", "ur"), ("ARABIC",)),
    **dict.fromkeys(("ru", "uk", "bg", "sr", "mk", "be", "kk", "mn"), ("CYRILLIC",)),
    **dict.fromkeys(("hi", "mr"), ("DEVANAGARI",)),
    "zh": ("CJK",),
    "ja": ("CJK", "HIRAGANA", "KATAKANA"),
    "ko": ("HANGUL", "CJK"),
    "el": ("GREEK",),
    "he": ("HEBREW",),
    "th": ("THAI",),
    "bn": ("BENGALI",),
    "ta": ("TAMIL",),
    "te": ("TELUGU",),
    "gu": ("GUJARATI",),
    "pa": ("GURMUKHI",),
    "hy": ("ARMENIAN",),
    "ka": ("GEORGIAN",),
}
_LATIN = ("LATIN",)
_NO_WORDS = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]{0,500}`|\$\$.{0,2000}?\$\$|\$[^$\n]{0,500}\$|\\\[.{0,2000}?\\\]|\\\(.{0,500}?\\\)"
    r"|\\[A-Za-z]+|</?[A-Za-z_]+>|https?://\S+",
    re.DOTALL,
)
_SENTENCE = re.compile(r"[^.!?。！？\n]+[.!?。！？\n]*")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")  # a lone Latin letter is left out: it is a variable
_SINGLE = ("CJK", "HIRAGANA", "KATAKANA", "THAI")  # scripts without spaces: each character counts as a word


def language_reward(text: str, reference: str, metadata: Mapping[str, Any]) -> Score:
    """The share of words in the target language, in 0..1; `BadAnswer` without any words.

    `metadata["language"]` holds `target`, an ISO 639-1 code, and may hold `among`, the codes that passages are told
    apart by (27 widely used languages), and `of`: `thinking` (the default: what the first `<think>` opens, or all that
    precedes `</think>`; all of the text without such tags) or `all`. Reads no `reference`.
    """
    options = Parameters.of(metadata, "language", ("target", "among", "of"))
    target = options.text("target")
    detector = detector_of(options.texts("among") or AMONG, target)
    part = thinking(text) if options.choice("of", "thinking", OF) == "thinking" else text
    right, total = count_words(part, target, detector)
    if total == 0:
        raise BadAnswer("there are no words")
    return Score(right / total, f"{right} of {total} words are {target}")


def load() -> None:
    """Load lingua and the models of `AMONG`; nothing where it is not installed."""
    with suppress(BadTask):
        detector_of(AMONG, AMONG[0]).detect_language_of("What is loaded now need not be loaded by each worker.")


def thinking(text: str) -> str:
    """What stands in the thinking; all of a text that has none."""
    before, closed, _ = text.partition(THOUGHT)
    if not closed and THINK not in text:
        return text
    return before.partition(THINK)[2] if THINK in before else before


def count_words(text: str, target: str, detector: Any) -> tuple[int, int]:
    """How many words of `text` are in the language `target`, and how many there are."""
    scripts = _SCRIPTS.get(target, _LATIN)
    language = detector_language(target)
    right = total = 0
    context: list[str] = []  # the words that lingua has seen last
    fresh: list[str] = []  # those that it has not
    for sentence in _SENTENCE.finditer(_NO_WORDS.sub(" ", text)):
        for word in _WORD.findall(sentence[0]):
            script, size = _size(word)
            total += size
            if size and script in scripts:
                fresh.append(word)
        if _length(fresh) >= PASSAGE:
            right += _length(fresh) if _is(language, fresh, detector) else 0
            context, fresh = fresh, []
    if fresh:
        missing = max(0, PASSAGE - len(fresh))
        right += _length(fresh) if _is(language, context[len(context) - missing :] + fresh, detector) else 0
    return right, total


def _size(word: str) -> tuple[str, int]:
    """The script of a word, and how many words it counts for."""
    script = unicodedata.name(word[0], "").partition(" ")[0]
    if script in _SINGLE:
        return script, len(word)
    return script, 0 if script == "LATIN" and len(word) == 1 else 1


def _length(words: list[str]) -> int:
    return sum(_size(word)[1] for word in words)


def _is(language: Any, passage: list[str], detector: Any) -> bool:
    enough = CONFIDENCE_BRIEF if len(passage) <= BRIEF else CONFIDENCE
    return bool(detector.compute_language_confidence(" ".join(passage), language) >= enough)


def detector_language(code: str) -> Any:
    """lingua's language of an ISO 639-1 code. Raises `BadTask`."""
    library = required("lingua", "language")
    if (found := getattr(library.IsoCode639_1, code.upper(), None)) is None:
        raise BadTask(f"metadata.language: {code!r} is no language that lingua knows")
    return library.Language.from_iso_code_639_1(found)


def detector_of(among: Iterable[str], target: str) -> Any:
    """What tells the languages `among` and `target` apart. Raises `BadTask`."""
    return _detector(tuple(sorted({*among, target})))


@lru_cache(maxsize=8)
def _detector(among: tuple[str, ...]) -> Any:
    library = required("lingua", "language")
    if len(among) < 2:
        raise BadTask("metadata.language.among: name at least one language besides the target")
    languages = [detector_language(code) for code in among]
    return library.LanguageDetectorBuilder.from_languages(*languages).with_low_accuracy_mode().build()
