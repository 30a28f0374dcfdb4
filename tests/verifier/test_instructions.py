"""Reward `instructions`: what follows each rule, and what does not."""

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifier.rewards import library_for
from verifier.rewards.instruction_rules import RULES, count_sentences
from verifier.rewards.instructions import instructions_reward
from verifier.rewards.score import BadAnswer, BadTask


def follows(text: str, rule: str, **arguments: Any) -> bool:
    metadata = {"instruction_id_list": [rule], "kwargs": [arguments]}
    return instructions_reward(text, "", metadata).value == 1.0


TABLE = "| a | b |\n|---|:-:|\n| 1 | 2 |\n| 3 | 4 |"
CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    # rule, arguments, texts that follow it, texts that do not
    ("keywords:existence", {"keywords": ["sun", "deep sea"]}, ["Sun and the deep sea."], ["sunny deep sea", "sun"]),
    (
        "keywords:frequency",
        {"keyword": "rain", "frequency": 2, "relation": "at least"},
        ["Rain, rain, go away", "rain rain rain"],
        ["rain", "raining rains"],
    ),
    ("keywords:frequency", {"keyword": "rain", "frequency": 2, "relation": "less than"}, ["rain"], ["rain rain"]),
    ("keywords:forbidden_words", {"forbidden_words": ["bad", "worse"]}, ["badly done"], ["Bad", "it got worse."]),
    (
        "keywords:letter_frequency",
        {"letter": "q", "let_frequency": 2, "let_relation": "at least"},
        ["Quick question"],
        ["quick"],
    ),
    ("keywords:letter_frequency", {"letter": "!", "let_frequency": 1, "let_relation": "less than"}, ["no"], ["yes!"]),
    ("keywords:acrostic", {"letters": "sun"}, ["So\nup\n\nnow", "So\n  Up\nNow"], ["So\nup", "Now\nup\nso"]),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "exactly"},
        ["One. Two.", "Pi is 3.14. Dr. Who knows?", "Yes! No", '"Go." He went.', "一。二。"],
        ["One.", "One. Two. Three."],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["a\n***\nb"],
        ["a", "a *** b *** c", "a ****** b"],
    ),
    ("length_constraints:number_words", {"num_words": 3}, ["one two three", "1 2 3 4"], ["one two", "one-two"]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, ["one two"], ["one two three"]),
    ("length_constraints:number_characters", {"num_characters": 3, "relation": "at most"}, ["abc"], ["abcd"]),
    ("length_constraints:number_lines", {"num_lines": 2, "relation": "exactly"}, ["a\n\nb"], ["a", "a\nb\nc"]),
    ("length_constraints:longest_word", {"num_letters": 4}, ["four is four"], ["longer"]),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        ["First.\n\nThen, it", "a\n \n**Then** b"],
        ["Then", "First.\n\nNext then", "a\n\nthen\n\nc"],
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, ["[name] at [place]"], ["[name]", "[] []"]),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Hi\nP.S. you", "Hi\nPS: you"],
        ["Hi", "Hi P.S."],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        ["Hi\nP.P.S. you", "a\np. p. s you"],
        ["Hi\nP.S. you"],
    ),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, ["* a\n* b", "- a\n  - b"], ["* a", "**a**\n**b**"]),
    ("detectable_format:numbered_list", {"num_items": 2}, ["1. a\n2. b", "1) a\n2) b"], ["1. a\n3. b", "2. a\n1. b"]),
    ("detectable_format:constrained_response", {}, ["My answer is no."], ["no", "My answer is no. My answer is yes."]),
    ("detectable_format:constrained_response", {"options": ["A", "B"]}, ["A", " B "], ["A or B", "a"]),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* and *b*", "**a** *b*"],
        ["*a*", "* * * *"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        ["Section 1\na\nSection 2\nb"],
        ["Section 1\na", "Section a Section b"],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": 1}', '```json\n{"a": [1, 2]}\n```', "[1]", "3"],
        ["{'a': 1}", '{"a": 1', 'so: {"a": 1}', "", "[" * 200 + "]" * 200, "[" * 100_000],
    ),
    ("detectable_format:json_format", {"keys": ["a"]}, ['{"a": 1, "b": 2}'], ['{"b": 2}', '["a"]']),
    ("detectable_format:title", {}, ["<<Sun>>\nshines"], ["<Sun>", "<<>>", "<< >>", "<<a\nb>>"]),
    (
        "detectable_format:markdown_table",
        {"num_columns": 2, "num_rows": 2},
        [TABLE, f"See:\n{TABLE}\nDone"],
        [TABLE + "\n| 5 | 6 |", TABLE.replace("| 3 | 4 |", "| 3 |"), "| a | b |\n| 1 | 2 |", "a - b"],
    ),
    ("detectable_format:code_block", {}, ["```\nx\n```", "See\n```python\nx\n```"], ["```x```", "```\nx", "x"]),
    (
        "detectable_format:code_block",
        {"name": "python"},
        ["```python\nx\n```"],
        ["```\npython\n```", "```rust\nx\n```"],
    ),
    (
        "combination:two_responses",
        {},
        ["a******b"],
        ["a", "a******a", "a******b******c", "******a", "a ****** ****** b"],
    ),
    ("combination:repeat_prompt", {"prompt_to_repeat": "What is it?"}, ["what is it? A cat"], ["A cat. What is it?"]),
    ("startend:start_checker", {"start_phrase": "Well,"}, ["well, no"], ["No. Well,"]),
    ("startend:end_checker", {"end_phrase": "Bye!"}, ["See you. bye!", '"bye!"'], ["bye! See you"]),
    ("startend:quotation", {}, ['"a"'], ['"a', "a", '"', "“a”"]),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["GO and STOP"],
        ["GO and Stop"],
    ),
    ("change_case:english_capital", {}, ["GO 1!"], ["Go", "1"]),
    ("change_case:english_lowercase", {}, ["go 1!"], ["Go", "1"]),
    ("punctuation:no_comma", {}, ["a b; c"], ["a, b", "一，二"]),
    ("punctuation:without", {"signs": "!?"}, ["a."], ["a!", "a?"]),
]


@pytest.mark.parametrize(("rule", "arguments", "good", "bad"), CASES, ids=[f"{n}-{c[0]}" for n, c in enumerate(CASES)])
def test_a_rule_takes_what_follows_it_and_nothing_else(
    rule: str, arguments: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    taken = [text for text in good + bad if text.strip() and follows(text, rule, **arguments)]
    assert taken == good


def test_every_rule_has_a_case() -> None:
    assert set(RULES) - {case[0] for case in CASES} == {"language:response_language"}
    assert len(RULES) >= 25


def test_the_language_of_a_response_is_told() -> None:
    german = "Zuerst berechnen wir die Summe der beiden Zahlen und dann den Rest."
    assert follows(german, "language:response_language", language="de")
    assert not follows(german, "language:response_language", language="en")
    assert library_for("instructions", {"instruction_id_list": ["language:response_language"]}) == "lingua"
    assert library_for("instructions", {"instruction_id_list": ["punctuation:no_comma"]}) == ""


TWO = {
    "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
    "kwargs": [{}, {"num_words": 3, "relation": "at least", "keyword": None}],  # data sets fill up with nulls
}


def test_all_instructions_must_be_followed_unless_the_share_is_asked_for() -> None:
    assert instructions_reward("one two three", "", TWO).value == 1.0
    half = instructions_reward("one, two", "", TWO | {"kwargs": [{}, {"num_words": 2}]})
    assert (half.value, half.reason) == (0.0, "1 of 2, not punctuation:no_comma")
    assert instructions_reward("one two", "", TWO | {"instructions": {"score": "share"}}).value == 0.5


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("<think>a, b</think>one two three", True),
        ("<think>a, b</think><answer>one two three</answer>", True),
        ("<answer>one two three</answer>", True),
        ("<think>one two three</think>", False),
        ("<think>one two three", False),
        ("<answer>one two three", False),
        ("<answer>one two three</answer><answer>one two three</answer>", False),
        ("one two three</think>, no", False),
        ("", False),
    ],
)
def test_the_response_is_judged_and_not_the_thinking(text: str, right: bool) -> None:
    try:
        assert instructions_reward(text, "", TWO).value == right
    except BadAnswer:
        assert not right


def test_all_of_the_text_is_judged_where_the_task_says_so() -> None:
    metadata = TWO | {"instructions": {"of": "all"}}
    assert instructions_reward("<think>a, b</think>one two three", "", metadata).value == 0.0


@pytest.mark.parametrize(
    ("metadata", "culprit"),
    [
        ({}, "instruction_id_list must be a list"),
        ({"instruction_id_list": []}, "instruction_id_list must be a list"),
        ({"instruction_id_list": ["keywords:absence"]}, "there is no rule 'keywords:absence'"),
        ({"instruction_id_list": [7]}, "there is no rule '7'"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}, "a list of 1 objects"),
        ({"instruction_id_list": ["keywords:existence"]}, r"kwargs\[0\].keywords='\[\]'|keywords is missing"),
        ({"instruction_id_list": ["keywords:existence"], "kwargs": [{"words": ["a"]}]}, "words: no such parameter"),
        (
            {"instruction_id_list": ["length_constraints:number_words"], "kwargs": [{"num_words": "three"}]},
            "num_words='three'",
        ),
        (
            {
                "instruction_id_list": ["length_constraints:number_words"],
                "kwargs": [{"num_words": 3, "relation": "around"}],
            },
            "relation='around'",
        ),
        (TWO | {"instructions": {"score": "half"}}, "score='half'"),
    ],
)
def test_a_bad_instruction_is_void_whatever_the_text_says(metadata: dict[str, Any], culprit: str) -> None:
    for text in ("one, two", "x"):
        with pytest.raises(BadTask, match=culprit):
            instructions_reward(text, "", metadata)


@pytest.mark.parametrize(
    "text",
    [
        "." * 100_000 + "x",
        '."' * 50_000 + "x",
        "```a\n" * 20_000,
        "[" * 100_000,
        "*a" * 50_000,
        "|-" * 50_000,
        "- " * 50_000,
    ],
    ids=range(7),
)
def test_hostile_texts_are_judged_in_linear_time(text: str) -> None:
    begun = time.process_time()
    for rule, arguments, _, _ in CASES:
        follows(text, rule, **arguments)
    assert time.process_time() - begun < 5.0


@settings(max_examples=50)
@given(st.text(max_size=200))
def test_every_rule_judges_every_text(text: str) -> None:
    for rule, arguments, _, _ in CASES:
        metadata = {"instruction_id_list": [rule], "kwargs": [arguments], "instructions": {"of": "all"}}
        assert instructions_reward(text, "", metadata).value in (0.0, 1.0)


@given(st.lists(st.sampled_from(["Go", "It is so", "Why not", "3.5 is more"]), min_size=1, max_size=8))
def test_as_many_sentences_are_counted_as_were_written(sentences: list[str]) -> None:
    assert count_sentences(". ".join(sentences) + ".") == len(sentences)
    assert count_sentences("! ".join(sentences)) == len(sentences)
