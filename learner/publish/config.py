"""How weight versions are published."""

from dataclasses import dataclass

from protocol.options import option


@dataclass(kw_only=True, slots=True)
class WeightsConfig:
    """Published weights. What an actor takes, and over which way, follows from where it is and what it holds."""

    shared_memory: bool = option(True, "actors on the learner's host read published weights where they lie")
    delta: bool = option(True, "offer actors on other hosts what changed since the version that they hold, lossless")
    delta_limit: float = option(
        0.5, "a version whose delta would be larger than this share of it is offered whole, without one"
    )
    full_every: int = option(
        0, "every so many versions offer no delta; 0: never, as each version is verified as a whole anyway"
    )
    fanout: int = option(
        2, "actors on other hosts that the learner serves a version itself, and that each of them serves; 0: all by it"
    )
    group: int = option(
        0,
        "actors on other hosts that receive each version together, by one broadcast of torch.distributed (NCCL between "
        "GPUs, gloo between CPUs), once so many are there; not locked by keys; 0: none",
    )
    group_seconds: float = option(120.0, "longest time for such a broadcast, after which all fetch the version")
    threads: int = option(0, "threads that make deltas; 0: a quarter of the cores, at most 8")


def check_weights(weights: WeightsConfig) -> None:
    """Refuse, with the reason, what could not work. Raises `ValueError`."""
    if not 0 < weights.delta_limit <= 1:
        raise ValueError(f"weights.delta_limit={weights.delta_limit}: must lie in (0, 1], a share of the whole version")
    for name in ("full_every", "fanout", "group", "threads"):
        if getattr(weights, name) < 0:
            raise ValueError(f"weights.{name}={getattr(weights, name)}: must not be below 0")
    if weights.group_seconds <= 0:
        raise ValueError(f"weights.group_seconds={weights.group_seconds}: must be above 0")
