"""The learner's options. Every option carries its help in `metadata`, from which the README's table is generated."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from learner.checkpoint.config import CheckpointConfig, check_checkpoint
from learner.loss.config import LossConfig, check_loss
from learner.policy.config import ModelConfig, check_model
from learner.publish.config import WeightsConfig, check_weights
from protocol.options import option
from protocol.security import SecurityConfig, check_security


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """The run: shared by the broker and the learner, which keep its files."""

    name: str = option("run", "name of the run")
    dir: str = option("runs/${.name}", "directory for metrics, checkpoints, logs and the report")
    seed: int = option(0, "seed of task order, sampling and SFT shuffling")


@dataclass(kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW with linear warm-up, then constant."""

    lr: float = option(1e-6, "learning rate")
    warmup_steps: int = option(5, "steps of linear warm-up")
    beta1: float = option(0.9, "AdamW β1")
    beta2: float = option(0.95, "AdamW β2")
    eps: float = option(1e-8, "AdamW ε")
    weight_decay: float = option(0.0, "AdamW weight decay")
    max_grad_norm: float = option(1.0, "gradient norm above which gradients are scaled down")


@dataclass(kw_only=True, slots=True)
class LearnerConfig:
    """The training loop."""

    steps: int = option(100, "optimizer steps at most")
    target_reward: float = option(
        0.0, "stop early when the mean reward over `target_window` steps reaches this; 0: never"
    )
    target_window: int = option(4, "steps over which `target_reward` is averaged")
    ranks: int = option(1, "FSDP2 ranks that the local launcher starts (torchrun sets it otherwise)")
    device: str = option("auto", "`auto`, `cpu` or `cuda`")
    tokens_per_micro_batch: int = option(16384, "packed tokens (prompt and completion) of one forward pass on one rank")
    publish_dtype: str = option("", "dtype of published weights; empty: as in the master weights")
    versions_kept: int = option(3, "weight versions served to actors at the same time")
    batch_wait_seconds: float = option(
        600.0, "longest wait for a batch before the learner gives up with the broker's reason"
    )
    samples_per_step: int = option(8, "rollouts written to samples.jsonl each step")
    threads: int = option(0, "torch threads; 0: torch decides")


@dataclass(kw_only=True, slots=True)
class SinksConfig:
    """Where else the numbers of each step go; metrics.jsonl and Prometheus always have them."""

    tensorboard: bool = option(
        False, "also write TensorBoard's files into the run's `tensorboard` directory (extra `tensorboard`)"
    )
    wandb: str = option(
        "off", "also tell Weights & Biases (extra `wandb`): `off`, `offline` (into the run's directory), or `online`"
    )
    wandb_project: str = option("offbeat", "project of Weights & Biases")


@dataclass(kw_only=True, slots=True)
class LearnerRoot:
    """All that `python -m learner` reads."""

    broker: str = option("tcp://127.0.0.1:5555", "address of the broker, or `file:` and the path of its broker.json")
    metrics_port: int = option(0, "port of the Prometheus exporter; 0: a free one")
    model: str = option(MISSING, "HF checkpoint directory to train from")
    run: RunConfig = field(default_factory=RunConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    policy: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    sinks: SinksConfig = field(default_factory=SinksConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    security: SecurityConfig = field(default_factory=SecurityConfig)


def check(config: LearnerRoot) -> None:
    """Refuse, with the reason, what could not work. Raises `ValueError`."""
    check_security(config.security)
    learner = config.learner
    for key, value, allowed in (
        ("learner.device", learner.device, ("auto", "cpu", "cuda")),
        ("learner.publish_dtype", learner.publish_dtype, ("", "float32", "bfloat16", "float16")),
        ("sinks.wandb", config.sinks.wandb, ("off", "offline", "online")),
    ):
        if value not in allowed:
            raise ValueError(f"{key}={value}: must be one of {', '.join(filter(None, allowed))}")
    for name in ("steps", "target_window", "ranks", "tokens_per_micro_batch", "versions_kept"):
        if getattr(learner, name) < 1:
            raise ValueError(f"learner.{name}={getattr(learner, name)}: must be at least 1")
    for name in ("samples_per_step", "threads"):
        if getattr(learner, name) < 0:
            raise ValueError(f"learner.{name}={getattr(learner, name)}: must not be below 0")
    if not learner.batch_wait_seconds > 0:
        raise ValueError(f"learner.batch_wait_seconds={learner.batch_wait_seconds}: must be above 0")
    check_loss(config.loss)
    check_model(config.policy, learner.device)
    check_optimizer(config.optimizer)
    check_checkpoint(config.checkpoint)
    check_weights(config.weights)


def check_optimizer(optimizer: OptimizerConfig) -> None:
    """Refuse what AdamW or the clipping could not use. Raises `ValueError`."""
    for name in ("lr", "eps", "max_grad_norm"):
        if not getattr(optimizer, name) > 0:
            raise ValueError(f"optimizer.{name}={getattr(optimizer, name)}: must be above 0")
    for name in ("warmup_steps", "weight_decay"):
        if not getattr(optimizer, name) >= 0:
            raise ValueError(f"optimizer.{name}={getattr(optimizer, name)}: must not be below 0")
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(optimizer, name) < 1:
            raise ValueError(f"optimizer.{name}={getattr(optimizer, name)}: must be at least 0 and below 1")
