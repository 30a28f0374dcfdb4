"""Addition traces say what they claim; the tiny tokenizer reads and writes them unchanged."""

import re
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from learner import addition, tiny
from learner.addition import CHARACTERS, TAGS, Fault

TRACE = re.compile(r"<think>(?P<columns>[0-9+=;]+)</think><answer>(?P<answer>[0-9]+)</answer>")


def problems(digits: int) -> st.SearchStrategy[tuple[int, int]]:
    low = 0 if digits == 1 else 10 ** (digits - 1)
    number = st.integers(low, 10**digits - 1)
    return st.tuples(number, number)


PROBLEMS = st.integers(1, 3).flatmap(problems)


def columns_of(trace: str) -> list[tuple[int, int, int, int]]:
    """(x, y, carry, sum) of each column, units first."""
    match = TRACE.fullmatch(trace)
    assert match is not None, trace
    columns = []
    for column in match["columns"].split(";"):
        left, total = column.split("=")
        x, y, carry = map(int, left.split("+"))
        columns.append((x, y, carry, int(total)))
    return columns


def answer_of(trace: str) -> int:
    match = TRACE.fullmatch(trace)
    assert match is not None
    return int(match["answer"])


@given(problem=PROBLEMS)
def test_a_right_trace_adds_column_by_column_to_the_sum(problem: tuple[int, int]) -> None:
    a, b = problem
    carry = 0
    for place, (x, y, carried, total) in enumerate(columns_of(addition.completion(a, b))):
        assert (x, y, carried) == (a // 10**place % 10, b // 10**place % 10, carry)
        assert total == x + y + carry
        carry = total // 10
    assert answer_of(addition.completion(a, b)) == a + b


@given(problem=PROBLEMS)
def test_the_fault_of_the_carry_forgets_every_carry_and_nothing_else(problem: tuple[int, int]) -> None:
    a, b = problem
    trace = addition.faulty_completion(a, b, Fault.NO_CARRY, Random(0))
    columns = columns_of(trace)
    assert all(carry == 0 and total == x + y for x, y, carry, total in columns)
    carries = any(total > 9 for _, _, _, total in columns[:-1])
    assert (answer_of(trace) != a + b) == carries


@given(problem=PROBLEMS, seed=st.integers(0, 99))
def test_the_fault_of_the_guess_answers_without_thinking(problem: tuple[int, int], seed: int) -> None:
    a, b = problem
    trace = addition.faulty_completion(a, b, Fault.GUESS, Random(seed))
    match = re.fullmatch(r"<answer>([0-9]+)</answer>", trace)
    assert match is not None
    assert int(match[1]) < 2 * 10 ** len(str(a))


def test_guesses_are_nearly_always_wrong() -> None:
    random = Random(0)
    guesses = [addition.faulty_completion(47, 85, Fault.GUESS, random) for _ in range(500)]
    assert guesses.count("<answer>132</answer>") < 10


@given(problem=PROBLEMS)
def test_the_fault_of_the_tags_leaves_out_the_answer_tags_alone(problem: tuple[int, int]) -> None:
    right = addition.completion(*problem)
    trace = addition.faulty_completion(*problem, Fault.NO_TAGS, Random(0))
    assert "answer" not in trace
    assert TRACE.fullmatch(trace) is None
    thinking, digits = trace.split("</think>")
    assert f"{thinking}</think><answer>{digits}</answer>" == right


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_operands_have_the_digits_asked_for(digits: int) -> None:
    random = Random(0)
    for _ in range(200):
        assert {len(str(operand)) for operand in addition.operands(random, digits)} == {digits}


def test_about_a_tenth_of_the_problems_is_held_out_always_the_same() -> None:
    held = [(a, b) for a in range(10, 100) for b in range(10, 100) if addition.held_out(a, b)]
    assert 0.08 < len(held) / 8100 < 0.12
    assert all(addition.held_out(a, b) for a, b in held)


def test_the_tokenizer_gives_back_every_trace_with_one_token_a_tag(tmp_path: Path) -> None:
    tiny.build(tmp_path, hidden_size=32, layers=1)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = addition.prompt(33, 59) + addition.completion(33, 59)
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text  # tags stay, the end goes
    assert len(ids) == len(re.sub("|".join(TAGS), "?", text))
    for piece in (*CHARACTERS, *TAGS):
        assert len(tokenizer(piece)["input_ids"]) == 1


@given(text=st.text(st.characters(exclude_characters="<"), max_size=8))  # "<unk>" would be a token
def test_characters_that_the_tokenizer_lacks_become_unknown(text: str) -> None:
    tokenizer = tiny.character_tokenizer(CHARACTERS, 512)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    expected = [tokenizer.convert_tokens_to_ids(c) if c in CHARACTERS else tokenizer.unk_token_id for c in text]
    assert ids == expected


def test_the_same_seed_builds_the_same_weights(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        tiny.build(tmp_path / name, hidden_size=32, layers=1, seed=seed)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c
