"""Every real role is killed once, and started again: the run learns on, and trains every group once."""

import json
from pathlib import Path
from typing import Any

from learner.broker.inspect import inspect

STEPS = 36
GROUPS = 12
STREAM = ["task.digits=1", "sampling.max_tokens=24", "stream.group_size=8", f"stream.groups_per_step={GROUPS}"]
LEARNER = ["optimizer.lr=1e-3", "checkpoint.every=4", "learner.samples_per_step=1000", f"learner.steps={STEPS}"]


def test_a_run_whose_roles_are_all_killed_once_learns_on_and_trains_every_group_once(cluster: Any, model: Path) -> None:
    cluster.start_broker(model, *STREAM, "stream.max_staleness=2")
    cluster.start_learner(model, *LEARNER)
    cluster.start_actor("actor-0", "engine.max_num_seqs=64")
    cluster.start_verifier("verifier-0")
    reached = 5
    for role in ("actor-0", "verifier-0", "broker", "learner"):
        cluster.until(
            lambda steps=reached: len(cluster.rows()) >= steps, 180, f"{reached} steps, then {role} is killed"
        )
        cluster.kill(role)
        cluster.again(role, *(["checkpoint.resume=true"] if role == "learner" else []))
        reached = len(cluster.rows()) + 3
    cluster.finish(120)
    rows, summary = cluster.rows(), json.loads((cluster.directory / "summary.json").read_text())
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert max(row["staleness_max"] for row in rows) <= 2
    rewards = [row["reward_mean"] for row in rows]
    first, last = sum(rewards[:4]) / 4, sum(rewards[-4:]) / 4
    assert last > first + 0.1, rewards
    trained = [sample["group_id"] for sample in cluster.rows("samples.jsonl")]
    found = inspect(cluster.directory)
    assert set(trained).isdisjoint(found.dropped)
    assert sorted({*trained, *found.dropped}) == list(range(found.next_group))
    assert (found.policy_version, found.groups_trained) == (STEPS, STEPS * GROUPS)
    assert len(set(trained)) == STEPS * GROUPS
    assert summary["steps"] == STEPS
