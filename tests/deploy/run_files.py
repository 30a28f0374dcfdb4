"""Writes the files of a run that never was."""

import json
from pathlib import Path
from typing import Any

HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>&amp;\x1b[31m"


def row(step: int, **changed: Any) -> dict[str, Any]:
    """A line of metrics.jsonl."""
    return {
        "step": step,
        "policy_version": step,
        "time_s": 2.0 * step,
        "reward_mean": step / 10,
        "reward_std": 0.4,
        "parts": {"accuracy": step / 20, "format": 0.5},
        "accuracy": step / 20,
        "majority_accuracy": step / 15,
        "reflective_words": {"wait": 0.5, "check": 0.0},
        "mfu": 0.3,
        "length_mean": 22.5,
        "length_max": 30,
        "length_correct_mean": 23.0,
        "length_wrong_mean": None,
        "staleness_mean": 0.5,
        "staleness_max": 2,
        "staleness_tokens": {"0": 10, "2": 30},
        "mixed_version_rollouts": 1,
        "entropy": 0.3,
        "grad_norm": None,
        "clip_fraction": 0.0,
        "clip_fraction_positive": 0.01,
        "clip_fraction_negative": None,
        "mask_fraction_positive": 0.0,
        "mask_fraction_negative": 0.02,
        "zero_variance_fraction": 0.25,
        "truncated_fraction": 0.0,
        "length_bias": 0.99,
        "ratio": {"min": 0.5, "p50": 1.0, "p99": 1.5, "max": 2.0},
        "kl_k1": 0.001,
        "kl_k3": 0.002,
        "kl_k3_lag0": None,
        "kl_k3_stale": 0.003,
        "by_staleness": {"0": {"kl_k3": 0.0}, "3-4": {"kl_k3": 0.003}},
        "ess": 0.9,
        "ess_truncated": 0.95,
        "generated_tokens": 1000 * step,
        "trained_tokens": 900 * step,
        "generated_tokens_per_second": 5000.0,
        "trained_tokens_per_second": 2800.0,
        "verdicts_per_second": 120.0,
        "groups_trained": 32 * step,
        "groups_dropped": {"lease_expired": 1},
        "seconds": {"receive": 0.1, "credit": 0.005, "pack": 0.005, "train": 1.8, "publish": 0.05, "total": 1.96},
        **changed,
    }


def write_run(directory: Path, steps: int = 3) -> Path:
    """A finished run of some steps, with hostile completions, in `directory`."""
    (directory / "config").mkdir(parents=True)
    (directory / "config" / "run_local.yaml").write_text("run:\n  name: <b>synthetic</b>\n")
    (directory / "config" / "run_learner.yaml").write_text("learner:\n  steps: 10\n  target_reward: 0.9\n")
    rows = [row(step) for step in range(1, steps + 1)]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    samples = [
        {
            "step": step,
            "prompt": f"{step}+1=",
            "completion": f"{HOSTILE} {step}",
            "reward": 0.5,
            "parts": {"accuracy": 0.0, "format": 1.0},
            "reason": HOSTILE,
            "versions": [[0, 3], [1, 2]],
        }
        for step in range(1, steps + 1)
    ]
    (directory / "samples.jsonl").write_text("".join(json.dumps(each) + "\n" for each in samples))
    summary = {"reward_start": 0.1, "reward_end": 0.3, "steps": steps, "seconds": 6.5, "groups_dropped": {}}
    summary |= {"stopped_because": HOSTILE, "versions": {"torch": "2.13.0"}}
    (directory / "summary.json").write_text(json.dumps(summary))
    return directory
