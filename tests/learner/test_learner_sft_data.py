"""What supervised training reads: every form of example, exactly what of it is trained, and what is refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from learner.sft.data import Example, Tokenise, epochs, read_file, split, training_sequences
from learner.template import template

Build = Callable[[str, bool], Path]

# The tests' tokenizer has one token for a character that it knows, for a tag and for the end.
TURN = "{{ '<think>' + ('1' if m['role'] == 'user' else '2') + '</think>' }}"
BODY = "{{ m['content'] + '<end>' }}"
OPEN = "{% if add_generation_prompt %}{{ '<think>2</think>' }}{% endif %}"
PLAIN_CHAT = "{% for m in messages %}" + TURN + BODY + "{{ '=' }}{% endfor %}" + OPEN
MARKED_CHAT = (
    "{% for m in messages %}"
    + TURN
    + "{% if m['role'] == 'assistant' %}{% generation %}"
    + BODY
    + "{% endgeneration %}{% else %}"
    + BODY
    + "{% endif %}{{ '=' }}{% endfor %}"
    + OPEN
)
# Hides earlier answers once the conversation goes on, as templates of reasoning models do.
FORGETFUL_CHAT = (
    "{% for m in messages %}"
    + TURN
    + "{% if m['role'] == 'user' or loop.last %}"
    + BODY
    + "{% endif %}{% endfor %}"
    + OPEN
)


def tokenizer_with(directory: Path, chat_template: str | None) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = chat_template
    return tokenizer


@pytest.fixture(scope="module")
def directory(model_directory: Build) -> Path:
    return model_directory("llama", True)


@pytest.fixture(scope="module")
def plain(directory: Path) -> Tokenise:
    return Tokenise(tokenizer_with(directory, None), "plain")


def text_of(tokenise: Tokenise, ids: Any) -> str:
    return str(tokenise.tokenizer.decode(ids))


def test_a_completion_is_trained_with_its_end_and_every_token_counts_the_same(plain: Tokenise) -> None:
    pairs = [("1+1=", "<answer>2</answer>"), ("10+10=", "<answer>20</answer>")]
    sequences = training_sequences([plain.pair(*pair) for pair in pairs])
    for sequence, (prompt, completion) in zip(sequences, pairs, strict=True):
        assert text_of(plain, sequence.prompt_ids) == prompt
        assert text_of(plain, sequence.token_ids[:-1]) == completion
        assert sequence.token_ids[-1] == plain.tokenizer.eos_token_id
        assert sequence.trained_tokens == len(sequence.token_ids)
    assert sum(len(s.token_ids) * s.token_weight for s in sequences) == pytest.approx(1)


def test_the_r1_template_is_that_of_the_tasks(directory: Path) -> None:
    tokenise = Tokenise(tokenizer_with(directory, None), "r1")
    example = tokenise.pair("1+1=", "2")
    assert example.token_ids[: example.first].tolist() == tokenise.tokenizer(template("r1")("1+1="))["input_ids"]


TURNS = st.lists(st.text("0123456789", min_size=1, max_size=4), min_size=2, max_size=7)


@pytest.mark.parametrize("chat", [PLAIN_CHAT, MARKED_CHAT], ids=["prefixes", "marked"])
@given(turns=TURNS)
def test_of_a_conversation_exactly_the_answers_and_their_ends_are_trained(
    directory: Path, chat: str, turns: list[str]
) -> None:
    tokenise = Tokenise(tokenizer_with(directory, chat), "chat")
    messages = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(turns)]
    example = tokenise.conversation(messages)
    assert text_of(tokenise, example.token_ids[example.trained]) == "".join(text + "<end>" for text in turns[1::2])
    (sequence,) = training_sequences([example])
    assert text_of(tokenise, sequence.prompt_ids) == f"<think>1</think>{turns[0]}<end>=<think>2</think>"
    assert sequence.loss_mask is not None
    assert sequence.trained_tokens * sequence.token_weight == pytest.approx(1)
    ends = int(np.sum(sequence.token_ids[sequence.loss_mask] == tokenise.tokenizer.eos_token_id))
    assert ends == len(turns) // 2


def test_a_pair_under_the_chat_template_is_a_conversation_of_two(directory: Path) -> None:
    tokenise = Tokenise(tokenizer_with(directory, PLAIN_CHAT), "chat")
    turns = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
    assert tokenise.pair("1", "2").token_ids.tolist() == tokenise.conversation(turns).token_ids.tolist()


def test_a_template_that_rewrites_the_past_is_refused_with_the_cure(directory: Path) -> None:
    tokenise = Tokenise(tokenizer_with(directory, FORGETFUL_CHAT), "chat")
    turns = [{"role": role, "content": "1"} for role in ("user", "assistant", "user", "assistant")]
    with pytest.raises(ValueError, match=r"once it goes on.*\{% generation %\}"):
        tokenise.conversation(turns)


def test_a_tokenizer_without_a_chat_template_is_refused_with_the_cure(directory: Path) -> None:
    with pytest.raises(ValueError, match="has no chat template; put one into its folder"):
        Tokenise(tokenizer_with(directory, None), "chat")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"prompt": "1"', "is not JSON"),
        ('{"completion": "2"}', "field 'prompt' must be a text that is not empty"),
        ('{"prompt": "1"}', "field 'completion' must be"),
        ('{"prompt": "", "completion": "2"}', "field 'prompt' must be"),
        ('{"prompt": "1", "completion": 2}', "field 'completion' must be"),
        ('["1", "2"]', "must be an object"),
        ("\udcff", "is not JSON"),
        ('{"messages": "1"}', "field 'messages' must be a list"),
        ('{"messages": []}', "field 'messages' must be a list"),
        ('{"messages": [{"role": "god", "content": "1"}]}', "field 'messages[0].role' must be one of system, user"),
        ('{"messages": [{"role": "user", "content": ""}]}', "field 'messages[0].content' must be"),
        ('{"messages": [{"role": "user", "content": "1"}]}', "has no assistant turn"),
        ('{"messages": [{"role": "assistant", "content": "1"}]}', "needs sft.template=chat"),
    ],
)
def test_a_bad_line_is_refused_with_file_line_and_field(
    plain: Tokenise, line: str, problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "traces.jsonl"
    text = '{"prompt": "1", "completion": "2"}\n' + line + "\n"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=re.escape(f"{path}:2: ") + ".*" + re.escape(problem)):
        read_file(path, plain, 0)


def test_a_file_without_examples_is_refused(plain: Tokenise, tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text("\n")
    with pytest.raises(ValueError, match="holds no examples"):
        read_file(path, plain, 0)
    with pytest.raises(ValueError, match=r"sft\.data: .* is not a file"):
        read_file(tmp_path / "nowhere.jsonl", plain, 0)


def test_parquet_holds_what_jsonl_holds(plain: Tokenise, tmp_path: Path) -> None:
    examples = [{"prompt": f"{n}=", "completion": f"{n}\u2028."} for n in range(5)]  # a line separator inside a text
    lines, table = tmp_path / "data.jsonl", tmp_path / "data.parquet"
    lines.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in examples) + "\n\n", encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(examples), table)
    for one, other in zip(read_file(lines, plain, 0), read_file(table, plain, 0), strict=True):
        assert one.token_ids.tolist() == other.token_ids.tolist()
        assert one.trained.tolist() == other.trained.tolist()


def test_long_examples_are_left_out_and_told(plain: Tokenise, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"prompt": "1=", "completion": "2" * n}) + "\n" for n in (1, 5, 9)))
    assert len(read_file(path, plain, 8)) == 2  # 2 + n + 1 tokens each
    assert "left out 1 examples longer than 8 tokens, 2 stay" in caplog.text
    with pytest.raises(ValueError, match=r"all 3 are longer than sft\.max_tokens=3"):
        read_file(path, plain, 3)


@given(count=st.integers(1, 20), share=st.floats(0, 0.99), seed=st.integers(0, 3))
def test_a_split_keeps_every_example_on_one_side(plain: Tokenise, count: int, share: float, seed: int) -> None:
    examples = [plain.pair(f"{n}=", "1") for n in range(count)]
    holdout = int(share * count)
    kept, held_out = split(examples, holdout, seed)
    assert len(held_out) == holdout
    assert {id(example) for example in (*kept, *held_out)} == {id(example) for example in examples}
    again: list[Example] = split(examples, holdout, seed)[0]
    assert [id(example) for example in again] == [id(example) for example in kept]


def test_nothing_left_to_train_on_is_refused(plain: Tokenise) -> None:
    with pytest.raises(ValueError, match=r"sft\.holdout=1: must be fewer than the 1 examples there are"):
        split([plain.pair("1", "2")], 1, 0)


def test_each_epoch_holds_every_example_once_in_a_new_order(plain: Tokenise) -> None:
    examples = [plain.pair(f"{n}=", "1") for n in range(6)]
    stream = epochs(examples, seed=1)
    orders = [[id(next(stream)) for _ in examples] for _ in range(3)]
    assert all(sorted(order) == sorted(map(id, examples)) for order in orders)
    assert len({tuple(order) for order in orders}) > 1
