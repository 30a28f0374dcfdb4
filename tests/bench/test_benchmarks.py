"""What the benchmarks measure is what they say: the sampler, the forced staleness, the two sides, the arithmetic."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from learner import distributed, tiny
from learner.distributed import Ranks
from tests.bench import staleness_run
from tests.bench.learner_step import MODELS, useful_operations, write_model
from tests.bench.learner_step_sides import Ours, Plain, Setup, drawn_sequences
from tests.bench.llama_sampler import LlamaSampler
from tests.bench.staleness import ROWS, Results, check_row
from tests.bench.staleness_run import Run, outcome, train

RUN = Run(
    row="naive",
    loss=ROWS["naive"],
    staleness=2,
    lr=1e-3,
    warmup_steps=0,
    seed=0,
    steps=6,
    groups=2,
    group_size=4,
    digits=1,
    max_tokens=6,
)


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    """This process as the only rank."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield distributed.start("cpu", wait_seconds=60)
    distributed.stop()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's decoder with random weights."""
    directory = tmp_path_factory.mktemp("tiny") / "model"
    tiny.build(directory, hidden_size=64, layers=2)
    return directory


def test_the_samplers_logprobs_are_those_of_a_plain_forward_pass(checkpoint: Path) -> None:
    network = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    sampler = LlamaSampler(network.config, end=network.config.eos_token_id)
    sampler.load(network.state_dict())
    prompts = [[8, 9, 18, 10, 20], [11, 12, 18, 13, 20]]
    completions = sampler.sample(prompts, 32, max_tokens=30, generator=torch.Generator().manual_seed(0))
    assert {completion.ended for completion in completions} == {True, False}
    for row, completion in enumerate(completions):
        prompt, tokens = prompts[row // 32], torch.tensor(completion.token_ids).long()
        assert completion.ended == (completion.token_ids[-1] == sampler.end)
        assert sampler.end not in completion.token_ids[:-1]
        with torch.no_grad():
            logits = network(torch.cat([torch.tensor(prompt), tokens])[None]).logits[0]
        truth = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(-1, tokens[:, None]).squeeze(-1)
        torch.testing.assert_close(torch.tensor(completion.logprobs), truth, rtol=0, atol=1e-5)


def test_the_sampler_draws_tokens_as_often_as_the_policy_says(checkpoint: Path) -> None:
    network = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    sampler = LlamaSampler(network.config, end=network.config.eos_token_id)
    sampler.load(network.state_dict())
    drawn = sampler.sample([[8, 9, 20]], 20_000, max_tokens=1, generator=torch.Generator().manual_seed(0))
    counts = Counter(int(completion.token_ids[0]) for completion in drawn)
    with torch.no_grad():
        truth = network(torch.tensor([[8, 9, 20]])).logits[0, -1].softmax(-1)
    found = torch.tensor([counts[token] / 20_000 for token in range(len(truth))])
    assert (found - truth).abs().max() < 5 * (0.25 / 20_000) ** 0.5


def test_a_batch_is_sampled_by_the_version_that_is_k_steps_old(
    ranks: Ranks, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[float] = []
    load = LlamaSampler.load

    def remember(sampler: LlamaSampler, state: Any) -> None:
        loaded.append(float(state["model.embed_tokens.weight"].double().sum()))
        load(sampler, state)

    def random_reward(name: str, text: str, *rest: object) -> tuple[float, str, str]:
        return float(len(text) % 2), "scored", ""

    monkeypatch.setattr(LlamaSampler, "load", remember)
    monkeypatch.setattr(staleness_run, "judge", random_reward)
    result = train(RUN, checkpoint, ranks)
    assert [loaded.index(version) for version in loaded] == [0, 0, 0, 3, 4, 5, 6]  # the last one is evaluated
    assert result["series"]["kl_k3"][0] < 1e-9
    assert min(result["series"]["kl_k3"][1:]) > 1e-6
    assert train(RUN, checkpoint, ranks)["series"] == result["series"]
    fresh = train(replace(RUN, staleness=0), checkpoint, ranks)
    assert max(fresh["series"]["kl_k3"]) < 1e-9


def test_a_run_has_collapsed_when_the_last_batches_or_the_last_weights_fell() -> None:
    rising = [step / 20 for step in range(20)]
    assert not outcome(rising, 0.9, Counter())["collapsed"]
    assert outcome([*rising, *[0.2] * 10], 0.9, Counter())["collapsed"]
    assert outcome(rising, 0.2, Counter())["collapsed"]
    assert outcome(rising, 0.9, Counter(not_finite=1))["collapsed"]


def test_a_sweep_knows_the_runs_that_are_in_its_file(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.json")
    assert results.find(RUN) is None
    results.add(RUN, {"final_reward": 0.5})
    again = Results(tmp_path / "results.json")
    assert again.find(RUN) == {"final_reward": 0.5}
    assert again.find(replace(RUN, lr=2e-3)) is None
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("name", ROWS)
def test_every_row_of_the_table_is_a_loss_that_the_learner_takes(name: str) -> None:
    check_row(name)


@pytest.mark.parametrize("lengths", ["equal", "lognormal"])
def test_both_sides_take_the_same_step(ranks: Ranks, tmp_path: Path, lengths: str) -> None:
    write_model(tmp_path, MODELS["tiny"], "cpu")
    setup = Setup(
        checkpoint=str(tmp_path),
        device="cpu",
        lengths=lengths,
        sequences=10,
        length=24,
        longest=60,
        budget=100,
        rows=4,
        checkpointing=False,
        vocabulary=24,
    )
    sequences = drawn_sequences(setup)
    ours, plain = Ours(setup, sequences, ranks), Plain(setup, sequences)
    for _ in range(2):
        assert ours.step() == pytest.approx(plain.step(), rel=1e-4, abs=1e-6)


def test_useful_operations_are_those_of_the_products_of_a_forward_and_a_backward_pass() -> None:
    config, length = MODELS["small"], 20
    options = {name: value for name, value in config.items() if name != "model_type"}
    network = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(config["model_type"], **options), attn_implementation="eager"
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, length, dtype=torch.long))
    rectangle = 4 * config["num_hidden_layers"] * config["num_attention_heads"] * config["head_dim"] * length**2
    causal = counter.get_total_flops() - rectangle // 2
    assert useful_operations(config, [length], length) == 3 * causal
