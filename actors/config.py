"""The actor's options. What the run decides (model, sampling, group size) comes from the broker, not from here."""

from dataclasses import dataclass, field

from protocol.options import option


@dataclass(kw_only=True, slots=True)
class EngineConfig:
    """vLLM."""

    dtype: str = option("auto", "`auto` (the model's), `float32`, `bfloat16`, `float16`")
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


@dataclass(kw_only=True, slots=True)
class ActorRoot:
    """All that `python -m actors` reads."""

    broker: str = option("tcp://127.0.0.1:5555", "address of the broker")
    metrics_port: int = option(0, "port of the Prometheus exporter; 0: a free one")
    actor: ActorConfig = field(default_factory=ActorConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
