"""The cold start: what it trains on, what it refuses, and that it learns."""

import itertools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from learner import addition, model, optimizer, sft
from learner.config import OptimizerConfig
from learner.distributed import Ranks
from learner.model_config import ModelConfig
from learner.sft import Example
from learner.sft_config import SftConfig

Build = Callable[[str, bool], Path]


def drawn(config: SftConfig, count: int) -> list[Example]:
    return list(itertools.islice(sft.addition_examples(config), count))


def operands_of(example: Example) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]+)\+([0-9]+)=", example.prompt)
    assert match is not None
    return int(match[1]), int(match[2])


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_held_out_problems_are_never_examples(digits: int) -> None:
    assert not any(addition.held_out(*operands_of(example)) for example in drawn(SftConfig(digits=digits), 2000))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_share_of_planted_faults_is_as_asked(share: float) -> None:
    config = SftConfig(faulty=share, digits=3)
    # A forgotten carry shows only where there is one to forget.
    examples = [e for e in drawn(config, 3000) if addition.completion(*operands_of(e), carrying=False) != right(e)]
    faulty = np.mean([example.completion != right(example) for example in examples])
    assert faulty == pytest.approx(share, abs=0.03)


def right(example: Example) -> str:
    return addition.completion(*operands_of(example))


def test_every_kind_of_fault_is_planted_alike_often() -> None:
    completions = [example.completion for example in drawn(SftConfig(faulty=1.0), 3000)]
    untagged = np.mean(["<answer>" not in text for text in completions])
    guessed = np.mean(["<think>" not in text for text in completions])
    assert untagged == pytest.approx(1 / 3, abs=0.03)
    assert guessed == pytest.approx(1 / 3, abs=0.03)


def test_the_same_seed_draws_the_same_examples() -> None:
    assert drawn(SftConfig(seed=4), 50) == drawn(SftConfig(seed=4), 50) != drawn(SftConfig(seed=5), 50)


def test_a_file_is_read_whole_each_epoch_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    rows = [{"prompt": f"{n}=", "completion": f"{n}\u2028."} for n in range(5)]  # a line separator inside a text
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")
    stream = sft.file_examples(path, seed=1)
    epochs = [[next(stream).prompt for _ in range(5)] for _ in range(3)]
    assert all(sorted(epoch) == [f"{n}=" for n in range(5)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"prompt": "1"', "is not JSON"),
        ('{"completion": "2"}', "field 'prompt' must be a text that is not empty"),
        ('{"prompt": "1"}', "field 'completion' must be"),
        ('{"prompt": "", "completion": "2"}', "field 'prompt' must be"),
        ('{"prompt": "1", "completion": 2}', "field 'completion' must be"),
        ('["1", "2"]', "field 'prompt' must be"),
        ("\udcff", "is not JSON"),
    ],
)
def test_a_bad_line_is_refused_with_file_line_and_field(line: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    text = '{"prompt": "1", "completion": "2"}\n' + line + "\n"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=re.escape(f"{path}:2: ") + ".*" + re.escape(problem)):
        next(sft.file_examples(path, seed=0))


def test_a_file_without_examples_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text("\n")
    with pytest.raises(ValueError, match="holds no examples"):
        next(sft.file_examples(path, seed=0))


def test_a_completion_ends_with_the_end_token_and_every_token_counts_the_same(model_directory: Build) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_directory("llama", True))
    examples = [Example("1+1=", "<answer>2</answer>"), Example("10+10=", "<answer>20</answer>")]
    sequences = sft.training_sequences(examples, tokenizer)
    for sequence, example in zip(sequences, examples, strict=True):
        assert tokenizer.decode(sequence.prompt_ids) == example.prompt
        assert tokenizer.decode(sequence.token_ids[:-1]) == example.completion
        assert sequence.token_ids[-1] == tokenizer.eos_token_id
    assert sum(len(s.token_ids) * s.token_weight for s in sequences) == pytest.approx(1)


def test_the_first_loss_is_the_cross_entropy_of_transformers_and_thirty_steps_lower_it(
    ranks: Ranks, model_directory: Build, tmp_path: Path
) -> None:
    directory = model_directory("llama", True)
    config = SftConfig(out=str(tmp_path), steps=30, batch_size=16, tokens_per_micro_batch=200, log_every=1)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    policy = model.load(directory, ranks, ModelConfig(logprob_chunk=64))
    steps = optimizer.build(policy, OptimizerConfig(lr=3e-3, warmup_steps=0))
    (tmp_path / "sft_metrics.jsonl").write_text("of a run before\n")
    sft.train(policy, steps, sft.addition_examples(config), tokenizer, config, ranks)
    rows = [json.loads(line) for line in (tmp_path / "sft_metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 31))
    assert set(rows[0]) == {"step", "steps", "loss", "seconds"}
    plain = AutoModelForCausalLM.from_pretrained(directory)
    losses: list[float] = []
    for sequence in sft.training_sequences(drawn(config, 16), tokenizer):
        ids = torch.tensor([[*sequence.prompt_ids, *sequence.token_ids]], dtype=torch.int64)
        with torch.no_grad():
            predicted = plain(ids).logits[0, len(sequence.prompt_ids) - 1 : -1]
        truth = ids[0, len(sequence.prompt_ids) :]
        losses += torch.nn.functional.cross_entropy(predicted, truth, reduction="none").tolist()
    assert rows[0]["loss"] == pytest.approx(np.mean(losses), abs=1e-4)
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]


def test_a_loss_that_explodes_ends_the_cold_start_with_a_cure(
    ranks: Ranks, model_directory: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = model_directory("llama", True)
    policy = model.load(directory, ranks, ModelConfig(logprob_chunk=64))
    whole = model.chunked_logprobs

    def exploding(*inputs: Any, **settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
        logprobs, entropy = whole(*inputs, **settings)
        return logprobs * math.inf, entropy

    monkeypatch.setattr(model, "chunked_logprobs", exploding)
    config = SftConfig(out=str(tmp_path), steps=2, batch_size=2)
    with pytest.raises(ValueError, match=r"step 1: the gradient norm is (nan|inf); a lower optimizer\.lr may help"):
        sft.train(
            policy,
            optimizer.build(policy, OptimizerConfig()),
            sft.addition_examples(config),
            AutoTokenizer.from_pretrained(directory),
            config,
            ranks,
        )
