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

from learner import addition, batch, optimizer
from learner.config import OptimizerConfig
from learner.distributed import Ranks
from learner.policy import model
from learner.policy.config import ModelConfig
from learner.policy.model import full_state
from learner.sft import __main__ as sft
from learner.sft.config import SftConfig
from learner.sft.data import Tokenise, addition_pairs, training_sequences
from learner.step import mean_loss

Build = Callable[[str, bool], Path]


def drawn(config: SftConfig, count: int) -> list[tuple[str, str]]:
    return list(itertools.islice(addition_pairs(config), count))


def operands_of(pair: tuple[str, str]) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]+)\+([0-9]+)=", pair[0])
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
    faulty = np.mean([example[1] != right(example) for example in examples])
    assert faulty == pytest.approx(share, abs=0.03)


def right(example: tuple[str, str]) -> str:
    return addition.completion(*operands_of(example))


def test_every_kind_of_fault_is_planted_alike_often() -> None:
    completions = [completion for _, completion in drawn(SftConfig(faulty=1.0), 3000)]
    untagged = np.mean(["<answer>" not in text for text in completions])
    guessed = np.mean(["<think>" not in text for text in completions])
    assert untagged == pytest.approx(1 / 3, abs=0.03)
    assert guessed == pytest.approx(1 / 3, abs=0.03)


def test_the_same_seed_draws_the_same_examples() -> None:
    assert drawn(SftConfig(seed=4), 50) == drawn(SftConfig(seed=4), 50) != drawn(SftConfig(seed=5), 50)


def test_the_first_loss_is_the_cross_entropy_of_transformers_and_thirty_steps_lower_it(
    ranks: Ranks, model_directory: Build, tmp_path: Path
) -> None:
    directory = model_directory("llama", True)
    config = SftConfig(out=str(tmp_path), steps=30, batch_size=16, tokens_per_micro_batch=200, log_every=1)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    policy = model.load(directory, ranks, ModelConfig(logprob_chunk=64))
    steps = optimizer.build(policy, OptimizerConfig(lr=3e-3, warmup_steps=0))
    (tmp_path / "sft_metrics.jsonl").write_text("of a run before\n")
    examples, _ = sft.data(config, tokenizer)
    sft.train(policy, steps, examples, [], config, ranks)
    rows = [json.loads(line) for line in (tmp_path / "sft_metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 31))
    assert set(rows[0]) == {"step", "steps", "loss", "seconds"}
    plain = AutoModelForCausalLM.from_pretrained(directory)
    losses: list[float] = []
    tokenise = Tokenise(tokenizer, "plain")
    for sequence in training_sequences([tokenise.pair(*pair) for pair in drawn(config, 16)]):
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
            sft.data(config, AutoTokenizer.from_pretrained(directory))[0],
            [],
            config,
            ranks,
        )


def test_held_out_examples_are_measured_and_not_trained(ranks: Ranks, model_directory: Build, tmp_path: Path) -> None:
    directory = model_directory("llama", True)
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{n}=", "completion": str(n)}) + "\n" for n in range(12)))
    config = SftConfig(out=str(tmp_path), data=str(file), holdout=4, steps=2, batch_size=8, log_every=1)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    policy = model.load(directory, ranks, ModelConfig(logprob_chunk=64))
    examples, held_out = sft.data(config, tokenizer)
    kept = {tuple(next(examples).token_ids.tolist()) for _ in range(80)}
    assert len(kept) == 8
    assert kept.isdisjoint(tuple(example.token_ids.tolist()) for example in held_out)
    before = {name: tensor.clone() for name, tensor in full_state(policy)}
    micro_batches = batch.share(
        training_sequences(held_out), budget=99, cost=policy.cost, rank=0, world=1, device=ranks.device
    )
    loss = mean_loss(policy, micro_batches, sft.LIKELIHOOD, temperature=1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in full_state(policy))
    frozen = optimizer.build(policy, OptimizerConfig(lr=1e-30, warmup_steps=0))
    sft.train(policy, frozen, examples, held_out, config, ranks)
    rows = [json.loads(line) for line in (tmp_path / "sft_metrics.jsonl").read_text().splitlines()]
    assert [row["holdout_loss"] for row in rows] == pytest.approx([loss] * 2)
