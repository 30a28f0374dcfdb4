"""The options of training checkpoints."""

from dataclasses import dataclass

from protocol.options import option


@dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    """Training checkpoints under `run.dir`/checkpoints: weights, optimizer, random state, and what was consumed."""

    every: int = option(
        20,
        "steps between two training checkpoints, and what a learner that dies makes anew at most; 0: only at the end",
    )
    keep: int = option(2, "training checkpoints kept, the newest ones")
    resume: bool = option(False, "go on from the newest training checkpoint of `run.dir`")
    required: bool = option(
        True,
        "`resume` refuses a run without a whole checkpoint, or with nothing left to train; false: it begins anew then, "
        "or writes what the end still lacks, as a learner does that the launcher starts again",
    )
    write_seconds: float = option(
        1800.0, "longest wait for a checkpoint that is written in the background, before the learner gives up"
    )


def check_checkpoint(checkpoint: CheckpointConfig) -> None:
    """Refuse what would keep no checkpoint, or wait for none. Raises `ValueError`."""
    for name, lowest in (("every", 0), ("keep", 1)):
        if getattr(checkpoint, name) < lowest:
            raise ValueError(f"checkpoint.{name}={getattr(checkpoint, name)}: must be at least {lowest}")
    if not checkpoint.write_seconds > 0:
        raise ValueError(f"checkpoint.write_seconds={checkpoint.write_seconds}: must be above 0")
