"""The options of supervised training, apart from the code that imports torch."""

from dataclasses import dataclass, field
from pathlib import Path

from learner.config import OptimizerConfig, check_optimizer
from learner.policy.config import ModelConfig, check_model
from protocol.options import option


@dataclass(kw_only=True, slots=True)
class SftConfig:
    """Supervised training."""

    out: str = option("runs/sft", "directory of the HF checkpoint that is written")
    model: str = option("", "HF checkpoint to start from; empty: a tiny decoder with random weights")
    architecture: str = option("llama", "of the tiny decoder: an HF model type such as `llama`, `qwen2`, `qwen3`")
    hidden_size: int = option(128, "of the tiny decoder")
    layers: int = option(3, "of the tiny decoder")
    data: str = option(
        "", "JSONL or parquet with `prompt` and `completion`, or with `messages`; empty: generated addition traces"
    )
    template: str = option(
        "plain",
        "how a prompt is put to the model: `plain`, `r1`, a text with `{prompt}` in it, or `chat`, the tokenizer's own "
        "(also for `messages`, of which every assistant turn is trained)",
    )
    max_tokens: int = option(0, "longer examples of the file are left out, and counted; 0: none is")
    holdout: int = option(0, "examples of the file that are not trained, their loss is `holdout_loss`")
    digits: int = option(2, "addition: digits of each operand")
    faulty: float = option(0.85, "addition: share of traces with a systematic fault")
    steps: int = option(350, "optimizer steps; the learning rate falls linearly to 0 over them")
    batch_size: int = option(64, "sequences a step")
    tokens_per_micro_batch: int = option(8192, "packed tokens of one forward pass on one rank")
    device: str = option("auto", "`auto`, `cpu` or `cuda`")
    threads: int = option(0, "torch threads; 0: torch decides")
    seed: int = option(0, "seed of weights and data order")
    log_every: int = option(20, "steps between two lines of sft_metrics.jsonl")
    evaluate: int = option(256, "addition: held-out problems sampled at the end to measure accuracy; 0: none")


@dataclass(kw_only=True, slots=True)
class SftRoot:
    """All that `python -m learner.sft` reads."""

    sft: SftConfig = field(default_factory=SftConfig)
    policy: ModelConfig = field(default_factory=lambda: ModelConfig(logprob_chunk=4096))
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=2e-3, warmup_steps=20))


def check(config: SftRoot) -> None:
    """Refuse, with the reason, what could not work. Raises `ValueError`."""
    sft = config.sft
    for name in ("steps", "batch_size", "tokens_per_micro_batch", "digits", "layers", "log_every"):
        if getattr(sft, name) < 1:
            raise ValueError(f"sft.{name}={getattr(sft, name)}: must be at least 1")
    if sft.hidden_size < 32 or sft.hidden_size % 32:
        raise ValueError(f"sft.hidden_size={sft.hidden_size}: must be a multiple of 32, heads of 32 each")
    for name in ("evaluate", "max_tokens", "holdout"):
        if getattr(sft, name) < 0:
            raise ValueError(f"sft.{name}={getattr(sft, name)}: must not be below 0")
    if sft.holdout and not sft.data:
        raise ValueError(f"sft.holdout={sft.holdout}: generated traces have held-out problems already; set sft.data")
    if not 0 <= sft.faulty <= 1:
        raise ValueError(f"sft.faulty={sft.faulty}: is a share, must be between 0 and 1")
    if sft.model and not (Path(sft.model) / "config.json").is_file():
        raise ValueError(f"sft.model={sft.model}: must be a directory with an HF checkpoint, but has no config.json")
    check_model(config.policy, sft.device)
    check_optimizer(config.optimizer)
