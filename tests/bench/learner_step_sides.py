"""One side of `learner_step`: the project's step, or the same in plain transformers; a worker that answers its name.

    python -m tests.bench.learner_step_sides '{"side": "ours", …}'

Legend: B rows, L padded length, N completion tokens, V vocabulary.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from unittest.mock import patch

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM

from learner import batch, distributed, optimizer
from learner.batch import TrainingSequence
from learner.config import OptimizerConfig
from learner.distributed import Ranks
from learner.loss.config import LossConfig
from learner.optimizer import Optimizer
from learner.policy import model
from learner.policy.config import ModelConfig
from learner.policy.linear import linear
from learner.policy.model import Policy
from learner.step import train_step
from tests.bench.workers import serve

LOSS = LossConfig(name="ppo_clip", proximal="behaviour", corrections=[])
OPTIMIZER = OptimizerConfig(lr=1e-6, warmup_steps=0)
SPREAD = 0.6  # of the logarithm of lognormal lengths
PRODUCT = {"cpu": 1024, "cuda": 8192}  # edge of the matrices whose product gives the peak
SHOWN = 25  # operators of a profile
PEAK_TRIES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What both sides are told."""

    checkpoint: str
    device: str
    lengths: str  # `equal` or `lognormal`
    sequences: int
    length: int  # mean of prompt and completion together, tokens
    longest: int
    budget: int  # padded tokens of a micro-batch of ours
    rows: int  # of a padded batch of the plain side
    checkpointing: bool  # compute activations again in the backward pass
    vocabulary: int
    side: str = "ours"  # or `plain`
    seed: int = 0


class Side(Protocol):
    """What trains all sequences once."""

    def step(self) -> tuple[float, float]:
        """One optimizer step; returns loss and gradient norm."""


def drawn_sequences(setup: Setup) -> list[TrainingSequence]:
    """The same random sequences for both sides; a quarter of the mean length is prompt."""
    random = np.random.default_rng(setup.seed)
    whole = np.full(setup.sequences, setup.length)
    if setup.lengths == "lognormal":
        whole = random.lognormal(np.log(setup.length) - SPREAD**2 / 2, SPREAD, setup.sequences).round().astype(int)
    whole = whole.clip(8, setup.longest)
    prompts = np.minimum(setup.length // 4, whole // 2)
    trained = int((whole - prompts).sum())
    return [
        TrainingSequence(
            prompt_ids=random.integers(0, setup.vocabulary, prompt).astype(np.int32),
            token_ids=random.integers(0, setup.vocabulary, total - prompt).astype(np.int32),
            behaviour_logprobs=random.normal(-np.log(setup.vocabulary), 0.3, total - prompt).astype(np.float32),
            staleness=np.ones(total - prompt, dtype=np.int32),
            advantage=float(random.normal()),
            token_weight=1.0 / trained,
            index=index,
            group=index,
        )
        for index, (prompt, total) in enumerate(zip(prompts, whole, strict=True))
    ]


class Ours:
    """The learner's own: micro-batches by token budget, no logits that nobody asked for, FSDP2 of one rank."""

    def __init__(self, setup: Setup, sequences: Sequence[TrainingSequence], ranks: Ranks) -> None:
        self.ranks = ranks
        config = ModelConfig(
            param_dtype="bfloat16" if setup.device == "cuda" else "float32",
            activation_checkpointing=setup.checkpointing,
        )
        self.policy = model.load(Path(setup.checkpoint), self.ranks, config)
        self.optimizer = optimizer.build(self.policy, OPTIMIZER)
        self.sequences, self.budget = sequences, setup.budget

    def step(self) -> tuple[float, float]:
        micro_batches = batch.share(
            self.sequences, budget=self.budget, cost=self.policy.cost, rank=0, world=1, device=self.ranks.device
        )
        result = train_step(self.policy, self.optimizer, [micro_batches], LOSS, temperature=1.0)
        return result.loss, result.grad_norm


class Plain:
    """As it is commonly written: batches in their order, padded on the right, all logits, log-softmax, AdamW."""

    def __init__(self, setup: Setup, sequences: Sequence[TrainingSequence]) -> None:
        self.device = torch.device(setup.device)
        self.network = AutoModelForCausalLM.from_pretrained(setup.checkpoint, dtype=torch.float32).to(self.device)
        self.network.train()  # in evaluation transformers keeps every activation
        if setup.checkpointing:
            self.network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=OPTIMIZER.lr,
            betas=(OPTIMIZER.beta1, OPTIMIZER.beta2),
            eps=OPTIMIZER.eps,
            weight_decay=OPTIMIZER.weight_decay,
        )
        self.sequences = sequences
        self.rows = setup.rows

    def step(self) -> tuple[float, float]:
        total = torch.zeros((), dtype=torch.float64)
        for start in range(0, len(self.sequences), self.rows):
            total += self._backward(self.sequences[start : start + self.rows])
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), OPTIMIZER.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(total), float(norm)

    def _backward(self, part: Sequence[TrainingSequence]) -> float:
        shape = (len(part), max(sequence.length for sequence in part))
        ids, attention = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        behaviour, mask = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.bool_)
        for row, sequence in enumerate(part):
            prompt = len(sequence.prompt_ids)
            ids[row, : sequence.length] = np.concatenate([sequence.prompt_ids, sequence.token_ids])
            attention[row, : sequence.length] = 1
            behaviour[row, prompt : sequence.length] = sequence.behaviour_logprobs
            mask[row, prompt : sequence.length] = True
        input_ids, attention_mask, behaviour_logprobs, loss_mask = (
            torch.from_numpy(array).to(self.device) for array in (ids, attention, behaviour, mask)
        )
        advantages = torch.tensor([sequence.advantage for sequence in part], device=self.device)[:, None]  # [B, 1]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            logits = self.network(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
        logprobs = logits[:, :-1].float().log_softmax(-1)  # [B, L − 1, V]
        chosen = logprobs.gather(-1, input_ids[:, 1:, None]).squeeze(-1)  # [B, L − 1]
        ratio = (chosen - behaviour_logprobs[:, 1:]).exp()
        value = torch.minimum(ratio * advantages, ratio.clamp(1 - LOSS.clip_low, 1 + LOSS.clip_high) * advantages)
        value = torch.where(advantages < 0, torch.maximum(value, LOSS.dual_clip * advantages), value)
        loss = -torch.where(loss_mask[:, 1:], value, torch.zeros_like(value)).sum() * part[0].token_weight
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())


class Bench:
    """Answers by name what `learner_step` asks of a side."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.device = torch.device(setup.device)
        sequences = drawn_sequences(setup)
        self.side: Side
        if setup.side == "ours":
            self.side = Ours(setup, sequences, distributed.start(setup.device, wait_seconds=600))
        else:
            self.side = Plain(setup, sequences)
        self.resting = reset_peak_memory(self.device)

    def answer(self, question: str) -> Any:
        """The answer of the method of that name."""
        questions: dict[str, Callable[[], Any]] = {
            "warm": self.warm,
            "step": self.step,
            "memory": self.memory,
            "phases": self.phases,
            "product": self.product,
            "operators": self.operators,
        }
        return questions[question]()

    def warm(self) -> dict[str, float]:
        """The first step: both sides must agree on its loss and gradient norm. Padded batches shrink until they fit."""
        while True:
            try:
                loss, norm = self.side.step()
            except torch.cuda.OutOfMemoryError:
                if not isinstance(self.side, Plain) or self.side.rows == 1:
                    raise
                self.side.rows //= 2
                self.side.optimizer.zero_grad()
            else:
                rows = self.side.rows if isinstance(self.side, Plain) else 0
                return {"loss": loss, "grad_norm": norm, "rows": rows}
            torch.cuda.empty_cache()  # out of the handler, whose traceback holds the tensors

    def step(self) -> dict[str, float]:
        """Seconds of a step, by the clock and of the processor: the latter are what a busy machine disturbs less."""
        self._wait()
        began, busy = time.perf_counter(), time.process_time()
        self.side.step()
        self._wait()
        return {"seconds": time.perf_counter() - began, "processor_seconds": time.process_time() - busy}

    def memory(self) -> dict[str, int]:
        """Bytes held when the model was loaded and at most since then: resident ones, or those allocated on the GPU."""
        return {"resting": self.resting, "peak": peak_memory(self.device)}

    def phases(self) -> dict[str, float]:
        """Seconds of each phase of a step of ours, which is slower on a GPU for being watched."""
        clock = dict.fromkeys(("pack", "forward", "backward", "optimizer"), 0.0)

        def timed(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                self._wait()
                began = time.perf_counter()
                result = function(*arguments, **options)
                self._wait()
                clock[phase] += time.perf_counter() - began
                return result

            return call

        with ExitStack() as watched:
            for owner, name, phase in (
                (batch, "share", "pack"),
                (Policy, "__call__", "forward"),
                (torch.Tensor, "backward", "backward"),
                (Optimizer, "step", "optimizer"),
            ):
                watched.enter_context(patch.object(owner, name, timed(phase, getattr(owner, name))))
            seconds = self.step()["seconds"]
        return clock | {"loss and statistics": seconds - sum(clock.values())}

    def product(self) -> float:
        """Operations a second of the fastest square product: bfloat16 on a GPU; float32 on the CPU, where seconds are
        those of the processor.
        """
        edge, on_cpu = PRODUCT[self.device.type], self.device.type == "cpu"
        clock = time.process_time if on_cpu else time.perf_counter
        left, right = (
            torch.randn(edge, edge, device=self.device, dtype=torch.float32 if on_cpu else torch.bfloat16)
            for _ in range(2)
        )
        best = float("inf")
        with torch.no_grad():
            for multiply in (linear, torch.matmul):
                for _ in range(PEAK_TRIES):
                    self._wait()
                    began = clock()
                    multiply(left, right)
                    self._wait()
                    best = min(best, clock() - began)
        return 2 * edge**3 / best

    def operators(self) -> list[dict[str, Any]]:
        """The operators (on a GPU: kernels) in which a step spends most time, the callees' time not counted."""
        on_cpu = self.device.type == "cpu"
        activities = [ProfilerActivity.CPU] if on_cpu else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
        with profile(activities=activities) as profiled:
            self.step()
        found = [
            {
                "name": each.key[:120],
                "seconds": (each.self_cpu_time_total if on_cpu else each.self_device_time_total) / 1e6,
                "calls": each.count,
            }
            for each in profiled.key_averages()
            if on_cpu or each.device_type == torch._C._autograd.DeviceType.CUDA
        ]
        return sorted(found, key=lambda each: -each["seconds"])[:SHOWN]

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def reset_peak_memory(device: torch.device) -> int:
    """Forget the peak so far, where the system lets us; returns the bytes held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return status_bytes("VmRSS")


def peak_memory(device: torch.device) -> int:
    """Most bytes held since the peak was reset."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else status_bytes("VmHWM")


def status_bytes(name: str) -> int:
    """A size from /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


def main() -> None:
    """Load, then answer."""
    bench = Bench(Setup(**json.loads(sys.argv[1])))
    serve(bench.answer)


if __name__ == "__main__":
    main()
