"""Whole runs: real broker, learner, actors and verifiers as processes."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ADDITION = ["task.digits=1", "sampling.max_tokens=24", "stream.group_size=4"]


def test_an_asynchronous_run_learns_from_stale_and_mixed_tokens_and_leaves_its_files(cluster: Any, model: Path) -> None:
    cluster.start_broker(model, *ADDITION, "stream.groups_per_step=8", "stream.max_staleness=2")
    cluster.start_learner(model, "learner.steps=12", "optimizer.lr=1e-3", "learner.tokens_per_micro_batch=2048")
    cluster.start_actor("actor-0", "engine.max_num_seqs=2")
    cluster.start_verifier("verifier-0")
    cluster.finish(120)
    rows, summary = cluster.rows(), json.loads((cluster.directory / "summary.json").read_text())
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert max(row["staleness_max"] for row in rows) in (1, 2)
    assert sum(row["mixed_version_rollouts"] for row in rows) > 0
    assert set(summary["groups_dropped"]) <= {"zero_variance"}
    assert summary["groups_trained"] + summary["groups_dropped"].get("zero_variance", 0) == 96
    assert 0 < rows[-1]["groups_trained"] == summary["groups_trained"]
    assert summary["mixed_version_rollouts"] == sum(row["mixed_version_rollouts"] for row in rows)
    assert not (cluster.directory / "broker.json").exists()
    checkpoint = cluster.directory / "checkpoint"
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    trained = AutoModelForCausalLM.from_pretrained(checkpoint)
    before = AutoModelForCausalLM.from_pretrained(model)
    prompt = torch.tensor([tokenizer("3+4=")["input_ids"]])
    assert not torch.equal(trained(prompt).logits, before(prompt).logits)


def test_at_max_staleness_zero_no_token_is_stale(cluster: Any, model: Path) -> None:
    cluster.start_broker(model, *ADDITION, "stream.groups_per_step=4", "stream.max_staleness=0")
    cluster.start_learner(model, "learner.steps=5", "optimizer.lr=1e-3", "loss.filters=[]")
    cluster.start_actor("actor-0", "engine.max_num_seqs=8")
    cluster.start_verifier("verifier-0")
    cluster.finish(120)
    rows = cluster.rows()
    assert len(rows) == 5
    assert all(row["staleness_tokens"].keys() == {"0"} for row in rows)
    assert all(row["mixed_version_rollouts"] == 0 for row in rows)
    assert all(abs(row["ratio"]["max"] - 1) < 1e-3 for row in rows), "without staleness only numerics part the policies"


def test_actors_and_verifiers_join_and_leave_a_running_learner_by_hand(cluster: Any, model: Path) -> None:
    cluster.start_broker(model, *ADDITION, "stream.groups_per_step=8", "stream.max_staleness=2")
    cluster.start_learner(model, "learner.steps=100000", "optimizer.lr=1e-5")
    for name in ("verifier-0", "verifier-1"):
        cluster.start_verifier(name)
    cluster.start_actor("actor-0", "engine.max_num_seqs=8")
    cluster.until(lambda: len(cluster.rows()) >= 3, 180, "the first actor feeds the learner")
    cluster.start_actor("actor-1", "engine.max_num_seqs=8")
    cluster.until(lambda: peer(cluster, "actor-1").get("policy_version", 0) > 0, 180, "the second actor holds weights")
    cluster.until(lambda: peer(cluster, "actor-1")["gauges"]["tokens_per_second"] > 0, 30, "the second actor samples")
    for name in ("verifier-0", "verifier-1"):
        cluster.until(
            lambda name=name: peer(cluster, name)["gauges"].get("verdicts_per_second", 0) > 0, 30, f"{name} checks"
        )
    assert cluster.stop("actor-0") == 0
    assert cluster.stop("verifier-0", signal.SIGINT) == 0
    reached = len(cluster.rows())
    cluster.until(lambda: len(cluster.rows()) >= reached + 5, 180, "the others go on")
    names = {"learner", "actor-1", "verifier-1"}
    cluster.until(lambda: {each["name"] for each in cluster.status()["peers"]} == names, 5, "those who left are gone")
    assert set(cluster.rows()[-1]["groups_dropped"]) <= {"zero_variance"}, "nothing is lost with those who left"


def peer(cluster: Any, name: str) -> Any:
    """The broker's view of one process, {} before it joined."""
    return next((each for each in cluster.status()["peers"] if each["name"] == name), {})


@pytest.mark.parametrize(("architecture", "tied"), [("qwen2", True), ("llama", False)])
def test_other_architectures_with_random_weights_run_ten_steps(
    cluster: Any, other_model: Callable[..., Path], architecture: str, tied: bool
) -> None:
    model = other_model(architecture, tied=tied)
    cluster.start_broker(model, *ADDITION, "stream.groups_per_step=2")
    cluster.start_learner(model, "learner.steps=10")
    cluster.start_actor("actor-0", "engine.max_num_seqs=8")
    cluster.start_verifier("verifier-0")
    cluster.finish(120)
    rows = cluster.rows()
    assert len(rows) == 10
    assert all(row["kl_k3_lag0"] is None or row["kl_k3_lag0"] < 1e-6 for row in rows)


def test_two_ranks_train_like_one(cluster: Any, model: Path, tmp_path: Path) -> None:
    results = {}
    for ranks in (1, 2):
        cluster.directory = tmp_path / str(ranks)
        cluster.directory.mkdir()
        cluster.start_broker(model, *ADDITION, "stream.groups_per_step=4", "stream.max_staleness=0")
        cluster.start_learner(model, "learner.steps=3", "optimizer.lr=1e-4", ranks=ranks)
        cluster.start_actor("actor-0", "engine.max_num_seqs=16")
        cluster.start_verifier("verifier-0")
        cluster.finish(120)
        state = AutoModelForCausalLM.from_pretrained(cluster.directory / "checkpoint").state_dict()
        results[ranks] = (cluster.rows(), state)
        cluster.processes.clear()
    (one, weights), (two, others) = results[1], results[2]
    assert [row["reward_mean"] for row in one] == [row["reward_mean"] for row in two]
    assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in two], abs=1e-5)
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, others[name], atol=2e-5, rtol=0)
