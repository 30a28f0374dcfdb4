"""What the learner and the cold start refuse to begin with, and in which words."""

from pathlib import Path
from typing import Any

import pytest

from learner.config import LearnerRoot, check
from learner.sft import config as sft_config

REFUSED = {
    "loss.name": ("reinforce", "must be one of ppo_clip, decoupled_ppo, gspo"),
    "loss.advantage": ("gae", "must be one of grpo, dr_grpo, rloo"),
    "loss.aggregation": ("mean", "must be one of token_mean"),
    "loss.proximal": ("old", "must be one of behaviour, loglinear, recompute"),
    "loss.clip_low": (1.0, "below 1"),
    "loss.clip_high": (-0.1, "must not be below 0"),
    "loss.dual_clip": (0.5, "above 1, or 0 to turn it off"),
    "loss.cispo_cap": (0.0, "above 0"),
    "loss.tis_cap": (-1.0, "above 0"),
    "learner.steps": (0, "at least 1"),
    "learner.target_window": (0, "at least 1"),
    "learner.ranks": (0, "at least 1"),
    "learner.device": ("tpu", "must be one of auto, cpu, cuda"),
    "learner.publish_dtype": ("int8", "must be one of float32, bfloat16, float16"),
    "learner.tokens_per_micro_batch": (0, "at least 1"),
    "learner.versions_kept": (0, "at least 1"),
    "learner.batch_wait_seconds": (0.0, "above 0"),
    "learner.samples_per_step": (-1, "not be below 0"),
    "learner.threads": (-1, "not be below 0"),
    "policy.param_dtype": ("float16", "must be one of float32, bfloat16"),
    "policy.logprob_chunk": (0, "at least 1"),
    "policy.tensor_parallel": (0, "at least 1"),
    "policy.lora_rank": (-1, "0 (no adapters) or more"),
    "policy.lora_alpha": (0.0, "above 0"),
    "optimizer.lr": (0.0, "above 0"),
    "optimizer.eps": (0.0, "above 0"),
    "optimizer.max_grad_norm": (0.0, "above 0"),
    "optimizer.warmup_steps": (-1, "not be below 0"),
    "optimizer.weight_decay": (-0.1, "not be below 0"),
    "optimizer.beta1": (1.0, "below 1"),
    "optimizer.beta2": (-0.1, "at least 0"),
    "checkpoint.every": (-1, "at least 0"),
    "checkpoint.keep": (0, "at least 1"),
    "checkpoint.write_seconds": (0.0, "above 0"),
}


def with_option(key: str, value: Any) -> LearnerRoot:
    config = LearnerRoot(model="model")
    section, name = key.split(".")
    setattr(getattr(config, section), name, value)
    return config


def test_the_defaults_are_accepted() -> None:
    check(LearnerRoot(model="model"))


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_an_option_that_cannot_work_is_refused_with_its_name_its_value_and_the_cure(key: str) -> None:
    value, cure = REFUSED[key]
    with pytest.raises(ValueError, match=f"^{key}={value}: ") as refusal:
        check(with_option(key, value))
    assert cure in str(refusal.value)


def test_offload_to_the_cpu_is_refused_for_a_learner_on_the_cpu() -> None:
    config = with_option("policy.cpu_offload", True)
    check(config)  # where the device is still open
    config.learner.device = "cpu"
    with pytest.raises(ValueError, match=r"policy\.cpu_offload=true on the device cpu: .* use cpu_offload=false"):
        check(config)


def test_compiling_is_refused_where_the_environment_turns_the_compiler_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    config = with_option("policy.compile", True)
    check(config)
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    with pytest.raises(ValueError, match=r"policy\.compile=true with TORCHDYNAMO_DISABLE=1 .*: unset it or use"):
        check(config)


@pytest.mark.parametrize(("name", "value", "shown"), [("lora_rank", 4, "4"), ("compile", True, "true")])
def test_what_does_not_go_with_sliced_layers_is_refused(name: str, value: Any, shown: str) -> None:
    config = with_option("policy.tensor_parallel", 2)
    check(config)
    setattr(config.policy, name, value)
    with pytest.raises(ValueError, match=rf"policy\.tensor_parallel=2 with policy\.{name}={shown}: .* use one of them"):
        check(config)


def test_adapters_without_a_layer_are_refused() -> None:
    config = with_option("policy.lora_targets", [])
    check(config)  # no adapters are asked for
    config.policy.lora_rank = 4
    with pytest.raises(ValueError, match=r"policy\.lora_targets=\[\]: .*use policy\.lora_targets=\[all-linear\]"):
        check(config)


@pytest.mark.parametrize("key", ["optimizer.lr", "loss.tis_cap", "loss.clip_low", "learner.batch_wait_seconds"])
def test_nan_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=f"{key}=nan"):
        check(with_option(key, float("nan")))


@pytest.mark.parametrize("name", ["ppo_clip", "cispo"])
def test_a_correction_that_would_weigh_twice_is_refused(name: str) -> None:
    config = with_option("loss.name", name)
    config.loss.corrections = ["tis_token"]
    with pytest.raises(ValueError, match=r"weigh it twice; use loss\.corrections=\[\]"):
        check(config)
    config.loss.corrections = []
    check(config)


@pytest.mark.parametrize(
    ("name", "value", "cure"),
    [
        ("steps", 0, "at least 1"),
        ("batch_size", 0, "at least 1"),
        ("log_every", 0, "at least 1"),
        ("hidden_size", 100, "a multiple of 32"),
        ("faulty", 1.5, "between 0 and 1"),
        ("model", "nowhere", "no config.json"),
    ],
)
def test_the_cold_start_refuses_what_cannot_work(name: str, value: Any, cure: str, tmp_path: Path) -> None:
    config = sft_config.SftRoot()
    sft_config.check(config)
    setattr(config.sft, name, value)
    with pytest.raises(ValueError, match=f"^sft.{name}={value}: .*{cure}"):
        sft_config.check(config)


def test_the_cold_start_refuses_a_policy_that_cannot_work() -> None:
    config = sft_config.SftRoot()
    config.policy.logprob_chunk = 0
    with pytest.raises(ValueError, match=r"policy\.logprob_chunk=0: must be at least 1"):
        sft_config.check(config)


def test_the_cold_start_refuses_an_optimizer_that_cannot_work() -> None:
    config = sft_config.SftRoot()
    config.optimizer.lr = -1
    with pytest.raises(ValueError, match=r"optimizer\.lr=-1: must be above 0"):
        sft_config.check(config)
