"""`max_staleness=0` is synchronous GRPO: the run equals a plain loop that generates, scores, learns and repeats.

The plain loop (plain_loop.py) uses the same engine and the same step, but none of the broker, sockets, leases,
verifier, weight server or learner loop. Both are fp32; the engine batches the same requests differently, which moves a
logprob by about 1e-6, so that tokens and rewards must be equal, losses equal within 1e-5 and gradient norms within
0.1 %. AdamW's ε is 1e-5: at 1e-8 a vanishing gradient's rounding decides the whole step of its weight.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
PLAIN_LOOP = "tests.integration.plain_loop"
STEPS, GROUPS, SIZE, SEED, LR, EPS = 4, 4, 4, 11, 3e-4, 1e-5  # as in plain_loop.py


def test_max_staleness_zero_equals_a_plain_sequential_loop(
    cluster: Any, model: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    cluster.start_broker(
        model,
        *("task.digits=1", f"run.seed={SEED}", "sampling.max_tokens=24", "stream.max_staleness=0"),
        *(f"stream.groups_per_step={GROUPS}", f"stream.group_size={SIZE}"),
    )
    cluster.start_learner(
        model, f"learner.steps={STEPS}", f"optimizer.lr={LR}", f"optimizer.eps={EPS}", "learner.samples_per_step=100"
    )
    cluster.start_actor("actor-0", "engine.max_num_seqs=8")
    cluster.start_verifier("verifier-0")
    cluster.finish(120)
    command = [sys.executable, "-m", PLAIN_LOOP, str(model), str(tmp_path / "plain.json")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    plain = json.loads((tmp_path / "plain.json").read_text())
    rows = cluster.rows()
    samples = [[row["prompt"], row["completion"]] for row in cluster.rows("samples.jsonl")]
    assert samples == [sample for row in plain for sample in row["samples"]]
    assert [row["reward_mean"] for row in rows] == [row["reward_mean"] for row in plain]
    np.testing.assert_allclose([row["loss"] for row in rows], [row["loss"] for row in plain], atol=1e-5)
    np.testing.assert_allclose([row["grad_norm"] for row in rows], [row["grad_norm"] for row in plain], rtol=1e-3)
    assert min(row["grad_norm"] for row in plain) > 0, "the comparison needs a run that learns"
