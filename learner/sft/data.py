"""What supervised training learns from: token sequences of which a part is trained.

An example is a prompt with its completion, or a conversation, whose assistant turns are trained. All are tokenised when
they are read, so that whatever is wrong is said at once, with file and line. Legend: L tokens of an example, T of them
from the first that is trained on.
"""

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from transformers import PreTrainedTokenizerBase

from learner import addition
from learner.batch import Bools, Ints, TrainingSequence
from learner.lines import rows
from learner.sft.config import SftConfig
from learner.template import template

log = logging.getLogger("sft")

ROLES = ("system", "user", "assistant", "tool")

Message: TypeAlias = Mapping[str, str]  # role, content


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """Tokens to read, and which of them to learn."""

    token_ids: Ints  # [L] int32
    trained: Bools  # [L] bool; True somewhere

    @property
    def first(self) -> int:
        """Place of the first trained token."""
        return int(self.trained.argmax())


class Tokenise:
    """Turns texts into examples by `sft.template`. Raises `ValueError`, also for a template that cannot work."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        self.tokenizer = tokenizer
        self.chat = name == "chat"
        if self.chat and not tokenizer.chat_template:
            raise ValueError(
                "sft.template=chat: the tokenizer of sft.model has no chat template; put one into its folder as "
                "chat_template.jinja, or use sft.template=plain"
            )
        self.wrap = None if self.chat else template(name, "sft.template")

    def pair(self, prompt: str, completion: str) -> Example:
        """A prompt and the completion that is trained, with the end token."""
        if self.wrap is None:
            return self.conversation(
                [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
            )
        asked = list(self.tokenizer(self.wrap(prompt))["input_ids"])
        answered = list(self.tokenizer(completion, add_special_tokens=False)["input_ids"])
        answered.append(self.tokenizer.eos_token_id)
        return _example(asked + answered, [False] * len(asked) + [True] * len(answered))

    def conversation(self, messages: Sequence[Message]) -> Example:
        """A conversation of which every assistant turn is trained, its end included."""
        if not self.chat:
            raise ValueError("field 'messages' needs sft.template=chat")
        if "{% generation" in self.tokenizer.chat_template or "{%- generation" in self.tokenizer.chat_template:
            found = self.tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
            return _example(found["input_ids"], [bool(flag) for flag in found["assistant_masks"]])
        whole = self._render(messages)
        trained = [False] * len(whole)
        for place, message in enumerate(messages):
            if message["role"] == "assistant":
                start = len(self._prefix(whole, messages[:place], answering=True))
                turn = len(self._prefix(whole, messages[: place + 1], answering=False))
                end = self._last_end(whole, start, turn)
                trained[start:end] = [True] * (end - start)
        return _example(whole, trained)

    def _prefix(self, whole: list[int], messages: Sequence[Message], *, answering: bool) -> list[int]:
        """The tokens of the first messages, which must be those with which the whole conversation begins."""
        part = self._render(messages, add_generation_prompt=answering)
        if whole[: len(part)] != part:
            raise ValueError(
                "the chat template writes the beginning of a conversation differently once it goes on, so that its "
                "turns cannot be found; mark them in the template by {% generation %} … {% endgeneration %}"
            )
        return part

    def _last_end(self, whole: list[int], start: int, end: int) -> int:
        """Where a turn ends: after its end token; what the template puts behind it is not sampled."""
        ends = [place for place in range(start, end) if whole[place] == self.tokenizer.eos_token_id]
        return ends[-1] + 1 if ends else end

    def _render(self, messages: Sequence[Message], **options: bool) -> list[int]:
        return list(self.tokenizer.apply_chat_template(messages, return_dict=True, **options)["input_ids"])


def read_file(path: Path, tokenise: Tokenise, max_tokens: int) -> list[Example]:
    """The examples of a JSONL or parquet file; those longer than `max_tokens` (0: no limit) are left out, and counted.

    Raises `ValueError` with file, line and field.
    """
    if not path.is_file():
        raise ValueError(f"sft.data: {path} is not a file")
    examples, long = [], 0
    for number, row in rows(path):
        try:
            example = _from_row(row, tokenise)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
        if max_tokens and len(example.token_ids) > max_tokens:
            long += 1
        else:
            examples.append(example)
    if not examples:
        why = f": all {long} are longer than sft.max_tokens={max_tokens}" if long else ""
        raise ValueError(f"{path}: holds no examples{why}")
    if long:
        log.warning("%s: left out %d examples longer than %d tokens, %d stay", path, long, max_tokens, len(examples))
    return examples


def split(examples: Sequence[Example], holdout: int, seed: int) -> tuple[list[Example], list[Example]]:
    """Those to train on, and `holdout` others drawn by `seed`. Raises `ValueError` when none would be left."""
    if holdout >= len(examples):
        raise ValueError(f"sft.holdout={holdout}: must be fewer than the {len(examples)} examples there are")
    shuffled = random.Random(f"holdout/{seed}").sample(list(examples), len(examples))
    return shuffled[holdout:], shuffled[:holdout]


def epochs(examples: Sequence[Example], seed: int) -> Iterator[Example]:
    """All examples, shuffled anew each epoch, without end."""
    chance = random.Random(seed)
    while True:
        yield from chance.sample(list(examples), len(examples))


def addition_pairs(sft: SftConfig) -> Iterator[tuple[str, str]]:
    """Prompts and traces of additions without end, a share of them faulty; held-out problems never occur."""
    chance = random.Random(sft.seed)
    faults = list(addition.Fault)
    while True:
        a, b = addition.operands(chance, sft.digits)
        if addition.held_out(a, b):
            continue
        faulty = chance.random() < sft.faulty
        fault = chance.choice(faults)
        text = addition.faulty_completion(a, b, fault, chance) if faulty else addition.completion(a, b)
        yield addition.prompt(a, b), text


def training_sequences(examples: Sequence[Example]) -> list[TrainingSequence]:
    """The examples of one update: every trained token counts the same."""
    weight = 1.0 / sum(int(example.trained.sum()) for example in examples)
    return [
        TrainingSequence(
            prompt_ids=example.token_ids[: example.first],
            token_ids=example.token_ids[example.first :],
            behaviour_logprobs=np.zeros(len(example.token_ids) - example.first, dtype=np.float32),
            staleness=np.zeros(len(example.token_ids) - example.first, dtype=np.int32),
            advantage=1.0,
            token_weight=weight,
            index=index,
            group=index,
            loss_mask=example.trained[example.first :],
        )
        for index, example in enumerate(examples)
    ]


def _from_row(row: Any, tokenise: Tokenise) -> Example:
    if not isinstance(row, dict):
        raise ValueError(f"must be an object with 'prompt' and 'completion', or with 'messages', got {row!r:.80}")
    if row.get("messages") is not None:
        return tokenise.conversation(_messages(row["messages"]))
    return tokenise.pair(_text(row, "prompt"), _text(row, "completion"))


def _messages(value: Any) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise ValueError("field 'messages' must be a list of messages that is not empty")
    for place, message in enumerate(value):
        name = f"messages[{place}]"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise ValueError(f"field '{name}.role' must be one of {', '.join(ROLES)}")
        if not isinstance(message.get("content"), str) or not message["content"]:
            raise ValueError(f"field '{name}.content' must be a text that is not empty")
    if not any(message["role"] == "assistant" for message in value):
        raise ValueError("field 'messages' has no assistant turn: nothing of it would be trained")
    return value


def _text(row: Mapping[str, Any], name: str) -> str:
    if not isinstance(row.get(name), str) or not row[name]:
        raise ValueError(f"field {name!r} must be a text that is not empty")
    return str(row[name])


def _example(token_ids: Sequence[int], trained: Sequence[bool]) -> Example:
    if not trained or trained[0] or not any(trained):
        problem = "its first token, which nothing predicts," if any(trained) else "nothing of it"
        raise ValueError(f"{problem} would be trained; look at sft.template")
    last = len(trained) - list(trained)[::-1].index(True)  # what follows the last trained token teaches nothing
    return Example(np.array(token_ids[:last], dtype=np.int32), np.array(trained[:last], dtype=np.bool_))
