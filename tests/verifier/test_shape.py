"""Rewards of form: the template, length, repetition. Tables of texts, what does not pass, and properties."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifier.rewards.format import format_reward
from verifier.rewards.length import length_reward
from verifier.rewards.repetition import repeated_share, repetition_reward
from verifier.rewards.score import BadAnswer, BadTask

# ---------------------------------------------------------------- format


def formed(text: str, **parameters: Any) -> bool:
    try:
        return format_reward(text, "", {"format": parameters}).value == 1.0
    except BadAnswer:
        return False


@pytest.mark.parametrize(
    "text",
    [
        "<think>3+9+0=12;3+5+1=9</think><answer>92</answer>",
        " <think>a\nb</think>\n\n<answer>x</answer>\n",
        "<think> < > </ </think><answer>\\boxed{5}</answer>",
    ],
)
def test_the_template_is_worth_one(text: str) -> None:
    assert format_reward(text, "", {}).value == 1.0
    assert formed(text, style="lenient")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "92",
        "<answer>92</answer>",
        "<think>a</think>92",
        "<think>a</think><answer>92",
        "<think>a<answer>92</answer>",
        "<think></think><answer>92</answer>",
        "<think>a</think><answer> </answer>",
        "<answer>92</answer><think>a</think>",
        "<think>a<answer>92</answer></think>",
        "<think>a</think><answer>92</answer><answer>93</answer>",
        "<think>a</think><think>b</think><answer>92</answer>",
        "<think><think>a</think></think><answer>92</answer>",
        "<Think>a</Think><answer>92</answer>",
        "<think>a</think><answer>92</answer>" * 2,
        "</think>a<think></answer>92<answer>",
        "<think>a</think><answer>92</answer> User: and 3+4? Assistant: <think>b</think><answer>7</answer>",
        "<think>the template is <think>…</think><answer>…</answer></think><answer>92</answer>",
    ],
)
def test_anything_but_the_template_is_worth_nothing(text: str) -> None:
    for style in ("strict", "lenient"):
        assert not formed(text, style=style)


@pytest.mark.parametrize(
    "text",
    [
        "<think>a</think><answer>92</answer>!",
        "so <think>a</think><answer>92</answer>",
        "<think>a</think> so <answer>92</answer>",
        "<think>a</think><answer>92</answer><|im_end|>",
        "<think>a<|im_start|>assistant</think><answer>92</answer>",
        "<think>a [/INST] b</think><answer>92</answer>",
        "<think>a</s></think><answer>92</answer>",
    ],
)
def test_only_the_lenient_style_takes_what_stands_around_the_pairs(text: str) -> None:
    assert not formed(text, style="strict")
    assert formed(text, style="lenient")


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("a</think><answer>92</answer>", True),
        ("<think>a</think><answer>92</answer>", False),
        ("</think><answer>92</answer>", False),
        ("<answer>92</answer>", False),
    ],
)
def test_a_prompt_that_opens_the_thinking_leaves_it_to_be_closed(text: str, right: bool) -> None:
    assert formed(text, opened=True) == right


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("<think>a</think> it is \\boxed{92}.", True),
        ("<think>is it \\boxed{91}?</think> \\boxed{92}", True),
        ("<think>a</think> \\boxed{91} \\boxed{92}", False),
        ("<think>a</think> \\boxed{92", False),
        ("<think>a</think> \\boxed{}", False),
        ("<think>a</think> 92", False),
        ("<think></think> \\boxed{92}", False),
        ("\\boxed{92}", False),
        ("<think>\\boxed{92}</think>", False),
        ("<think>a</think> <answer>\\boxed{92}</answer>", False),
    ],
)
def test_the_boxed_style_wants_one_box_behind_the_thinking(text: str, right: bool) -> None:
    assert formed(text, style="boxed") == right


words = st.text(alphabet="abc <>/thinkanswer\n", max_size=30)


@given(words, words, words, words, words)
def test_strict_is_lenient_with_nothing_around(
    before: str, thought: str, between: str, answer: str, after: str
) -> None:
    text = f"{before}<think>{thought}</think>{between}<answer>{answer}</answer>{after}"
    around = bool(before.strip() or between.strip() or after.strip())
    assert formed(text) == (formed(text, style="lenient") and not around)


# ---------------------------------------------------------------- length


def length(text: str, **parameters: Any) -> float:
    return length_reward(text, "", {"length": parameters}).value


@pytest.mark.parametrize(
    ("count", "score"), [(0, 1.0), (60, 1.0), (75, 1.0), (80, 0.8), (95, 0.2), (100, 0.0), (1000, 0.0)]
)
def test_length_falls_linearly_over_the_buffer(count: int, score: float) -> None:
    assert length("x" * count, longest=100) == pytest.approx(score)
    assert length("x " * count, longest=100, unit="words") == pytest.approx(score)
    assert length("x\n" * count, longest=100, unit="lines", buffer=25) == pytest.approx(score)


def test_a_text_that_is_too_short_is_worth_nothing() -> None:
    assert length("x" * 9, longest=100, shortest=10) == 0.0
    assert length("x" * 10, longest=100, shortest=10) == 1.0
    assert length("x" * 100, longest=100, buffer=0) == 1.0
    assert length("x" * 101, longest=100, buffer=0) == 0.0


@given(st.integers(0, 300), st.integers(1, 200), st.data())
def test_length_never_rises_with_the_text(count: int, longest: int, data: st.DataObject) -> None:
    buffer = data.draw(st.integers(0, longest))
    one, other = (length("x" * each, longest=longest, buffer=buffer) for each in (count, count + 1))
    assert 0.0 <= other <= one <= 1.0


@pytest.mark.parametrize(
    ("parameters", "culprit"),
    [
        ({}, "length.longest is missing"),
        ({"longest": 0}, "longest='0'"),
        ({"longest": 10.5}, "longest='10.5'"),
        ({"longest": 10, "buffer": 11}, "do not fit into longest=10"),
        ({"longest": 10, "buffer": 5, "shortest": 6}, "do not fit"),
        ({"longest": 10, "unit": "tokens"}, "unit='tokens'"),
        ({"longest": 10, "lowest": 1}, "lowest: no such parameter"),
    ],
)
def test_a_length_that_cannot_be_is_the_tasks_fault(parameters: dict[str, Any], culprit: str) -> None:
    with pytest.raises(BadTask, match=culprit):
        length("x", **parameters)


# ---------------------------------------------------------------- repetition


def repetition(text: str, **parameters: Any) -> float:
    return repetition_reward(text, "", {"repetition": parameters}).value


@pytest.mark.parametrize(
    ("text", "n", "score"),
    [
        ("", 3, 1.0),
        ("one two", 3, 1.0),
        ("one two three four", 2, 1.0),
        ("one two one two", 2, 2 / 3),
        ("One, two. one, two.", 4, 4 / 5),
        ("a a a a a a a a a a a", 1, 1 / 11),
        ("a a a a a a a a a a a", 10, 1 / 2),
        ("好好好好", 2, 1 / 3),
        ("wait " * 1000, 20, 1 / 981),
    ],
)
def test_repetition_is_the_share_of_ngrams_that_are_new(text: str, n: int, score: float) -> None:
    assert repetition(text, n=n) == pytest.approx(score)


def test_a_share_may_be_free_and_another_cost_all() -> None:
    text = "one two one two"  # a third of its bigrams comes again
    assert repetition(text, n=2, allowed=0.5) == 1.0
    assert repetition(text, n=2, most=1 / 3) == pytest.approx(0.0)
    with pytest.raises(BadTask, match="must be below most"):
        repetition(text, allowed=1.0)


@given(st.lists(st.sampled_from("abc"), max_size=60), st.integers(1, 8))
def test_the_rolling_count_is_that_of_a_set_of_ngrams(pieces: list[str], n: int) -> None:
    ngrams = [tuple(pieces[place : place + n]) for place in range(len(pieces) - n + 1)]
    assert repeated_share(pieces, n) == (1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0)
