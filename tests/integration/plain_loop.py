"""Synchronous GRPO as a plain loop, the truth for `test_sequential.py`: generate, score, learn, repeat, in one process.

    python plain_loop.py MODEL OUT

writes what each step was to OUT as JSON. It uses the project's engine and step, and nothing else of the roles.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.device_mesh import init_device_mesh

from actors.config import EngineConfig
from actors.environment import prepare
from learner import batch, optimizer
from learner.broker.config import TaskConfig
from learner.broker.groups import sample_seeds
from learner.broker.tasks import open_tasks
from learner.config import LossConfig, OptimizerConfig
from learner.credit import credit, minibatches
from learner.distributed import Ranks
from learner.policy import model as models
from learner.policy.config import ModelConfig
from learner.policy.model import full_state
from learner.step import train_step
from protocol.messages import GroupBatch, Rollout, RolloutGroup, Sampling, ScoredRollout, StreamStats, Task, Verdict
from tests.published import publish

STEPS, GROUPS, SIZE, SEED, LR, EPS = 4, 4, 4, 11, 3e-4, 1e-5
SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_tokens=24)
STATS = StreamStats(
    generated_tokens=0, rollouts=0, verdicts=0, void_verdicts=0, groups_dropped={}, actors=0, verifiers=0
)


def reward(text: str, task: Task) -> float:
    """Half for the template, half for the right number."""
    answer = re.search(r"<answer>(\d+)</answer>", text)
    right = answer is not None and text.count("<answer>") == 1 and answer[1] == task.reference
    return 0.5 * right + 0.5 * bool(re.fullmatch(r"<think>[^<]+</think><answer>[^<]+</answer>", text))


def generate(engine: Any, tasks: Any, step: int) -> tuple[RolloutGroup, ...]:
    """All groups of a step, one engine run to the end."""
    prompts = {}
    for group in range(step * GROUPS, (step + 1) * GROUPS):
        task = tasks.task(group)
        prompts[group] = (task, engine.encode(task.prompt))
        for index, seed in enumerate(sample_seeds(SEED, group, SIZE)):
            engine.add(f"{group}/{index}", prompts[group][1], seed)
    finished: dict[str, Any] = {}
    while len(finished) < GROUPS * SIZE:
        finished |= {each.request_id: each for each in engine.step()}
    return tuple(
        RolloutGroup(
            group_id=group,
            lease_version=step,
            task=task,
            scored=tuple(
                scored(group, index, prompt, finished[f"{group}/{index}"], task, engine) for index in range(SIZE)
            ),
        )
        for group, (task, prompt) in prompts.items()
    )


def scored(group: int, index: int, prompt: list[int], done: Any, task: Task, engine: Any) -> ScoredRollout:
    text = engine.decode(done.token_ids.tolist())
    rollout = Rollout(
        group_id=group,
        sample_index=index,
        prompt_ids=np.array(prompt, dtype=np.int32),
        token_ids=done.token_ids,
        behaviour_logprobs=done.behaviour_logprobs,
        version_spans=done.version_spans,
        finish_reason=done.finish_reason,
        text=text,
    )
    return ScoredRollout(rollout=rollout, verdict=Verdict(reward=reward(text, task), parts={}, reason="", seconds=0.0))


def load(engine: Any, policy: Any, version: int) -> None:
    """Give the engine the policy's weights as a version."""
    published = publish(version, full_state(policy))
    data = published.segment.data
    tensors = [(spec, data[spec.offset : spec.offset + spec.nbytes]) for spec in published.manifest.tensors]
    engine.load(version, published.manifest.fingerprint, tensors)


def main(model: Path, out: Path) -> None:
    """Train `STEPS` steps; write rewards, losses, gradient norms and the first completion of each group."""
    prepare(EngineConfig())
    from actors.engine import VllmEngine

    engine = VllmEngine(str(model), EngineConfig(max_num_seqs=16), SAMPLING, kv_on_update="recompute")
    # vLLM has made the process group of this process already
    ranks = Ranks(0, 1, torch.device("cpu"), init_device_mesh("cpu", (1,)))
    policy = models.load(model, ranks, ModelConfig(logprob_chunk=1024))
    steps = optimizer.build(policy, OptimizerConfig(lr=LR, eps=EPS))
    tasks = open_tasks(TaskConfig(digits=1), SEED)
    rows: list[dict[str, Any]] = []
    for step in range(STEPS):
        load(engine, policy, step)
        groups = GroupBatch(policy_version=step, groups=generate(engine, tasks, step), stats=STATS)
        credited = credit(groups, LossConfig(), longest=SAMPLING.max_tokens)
        parts = minibatches(credited.sequences, LossConfig(), longest=SAMPLING.max_tokens)
        packed = [
            batch.share(part, budget=16384, cost=policy.cost, rank=0, world=1, device=ranks.device) for part in parts
        ]
        result = train_step(policy, steps, packed, LossConfig(), temperature=1.0)
        rewards = [each.verdict.reward for group in groups.groups for each in group.scored]
        rows.append(
            {
                "reward_mean": float(np.mean(rewards)),
                "loss": result.loss,
                "grad_norm": result.grad_norm,
                "samples": [[group.task.prompt, group.scored[0].rollout.text] for group in groups.groups],
            }
        )
    out.write_text(json.dumps(rows))
    engine.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
