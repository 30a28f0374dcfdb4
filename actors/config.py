"""The actor's options. What the run decides (model, sampling, group size) comes from the broker, not from here."""

import re
from dataclasses import dataclass, field

from protocol.options import option
from protocol.security import SecurityConfig, check_security

DTYPES = ("auto", "float32", "bfloat16", "float16")
KV_ON_UPDATE = ("recompute", "keep")


@dataclass(kw_only=True, slots=True)
class EngineConfig:
    """vLLM."""

    dtype: str = option("auto", "`auto` (the model's), `float32`, `bfloat16`, `float16`")
    fp32_head: bool = option(False, "logits in float32 also where `dtype` has fewer bits; the learner must do the same")
    tensor_parallel_size: int = option(1, "GPUs of one actor")
    gpu_memory_utilization: float = option(0.9, "share of GPU memory for weights and KV cache")
    kv_cache_bytes: int = option(256 * 2**20, "KV cache on the CPU, in bytes")
    max_model_len: int = option(0, "longest prompt plus completion; 0: the model's own limit")
    max_num_seqs: int = option(128, "rollouts decoded at the same time")
    enforce_eager: bool = option(True, "no CUDA graphs; always so on the CPU")
    threads: int = option(1, "OpenMP threads on the CPU")
    cores: str = option("nobind", "cores to bind to on the CPU, e.g. `0` or `0-3`; `nobind`: any")


@dataclass(kw_only=True, slots=True)
class ActorConfig:
    """The actor's loop."""

    name: str = option("", "unique name in the run; empty: actor-<host>-<pid>")
    room: int = option(0, "rollouts held at the same time, waiting ones included; 0: 1.5 × engine.max_num_seqs")
    kv_on_update: str = option(
        "recompute", "running rollouts at a weight update: `recompute` their KV cache or `keep` it"
    )
    weights_seconds: float = option(120.0, "longest wait for one weight version before the actor gives up")
    welcome_seconds: float = option(30.0, "longest wait for the broker's answer when the actor joins")
    drain_seconds: float = option(30.0, "time to finish what has begun after SIGTERM; a second one ends it at once")


@dataclass(kw_only=True, slots=True)
class ActorRoot:
    """All that `python -m actors` reads."""

    broker: str = option("tcp://127.0.0.1:5555", "address of the broker, or `file:` and the path of its broker.json")
    metrics_port: int = option(0, "port of the Prometheus exporter; 0: a free one")
    actor: ActorConfig = field(default_factory=ActorConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    security: SecurityConfig = field(default_factory=SecurityConfig)


def check(config: ActorRoot) -> None:
    """Refuse, with the reason, what could not work. Raises `ValueError`."""
    check_security(config.security)
    actor, engine = config.actor, config.engine
    if actor.kv_on_update not in KV_ON_UPDATE:
        raise ValueError(f"actor.kv_on_update={actor.kv_on_update}: must be one of {', '.join(KV_ON_UPDATE)}")
    if actor.room < 0:
        raise ValueError(f"actor.room={actor.room}: must be 0 (1.5 × engine.max_num_seqs) or more")
    for name in ("weights_seconds", "welcome_seconds"):
        if getattr(actor, name) <= 0:
            raise ValueError(f"actor.{name}={getattr(actor, name)}: must be more than 0 seconds")
    if actor.drain_seconds < 0:
        raise ValueError(f"actor.drain_seconds={actor.drain_seconds}: must be 0 (leave at once) or more")
    if engine.dtype not in DTYPES:
        raise ValueError(f"engine.dtype={engine.dtype}: must be one of {', '.join(DTYPES)}")
    for name in ("tensor_parallel_size", "kv_cache_bytes", "max_num_seqs", "threads"):
        if getattr(engine, name) < 1:
            raise ValueError(f"engine.{name}={getattr(engine, name)}: must be at least 1")
    if not 0 < engine.gpu_memory_utilization <= 1:
        raise ValueError(f"engine.gpu_memory_utilization={engine.gpu_memory_utilization}: must lie in (0, 1]")
    if engine.max_model_len < 0:
        raise ValueError(f"engine.max_model_len={engine.max_model_len}: must be 0 (the model's own limit) or more")
    parse_cores(engine.cores)


def room(config: ActorRoot) -> int:
    """Rollouts that the actor asks the broker for."""
    return config.actor.room or config.engine.max_num_seqs * 3 // 2


def parse_cores(cores: str) -> set[int]:
    """The core numbers in a text such as `0`, `0-3` or `0,2-3`; none for `nobind`. Raises `ValueError`."""
    if cores == "nobind":
        return set()
    chosen: set[int] = set()
    for part in cores.split(","):
        if not (match := re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())):
            raise ValueError(f"engine.cores={cores}: give core numbers such as 0, 0-3 or 0,2-3, or nobind")
        first = int(match[1])
        last = int(match[2] or first)
        chosen.update(range(first, last + 1))
    return chosen
