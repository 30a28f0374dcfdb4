"""The broker's options: tasks, sampling, and the admission-controlled stream."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from omegaconf import MISSING

from learner.config import RunConfig
from protocol.options import option
from protocol.security import SecurityConfig, check_security

ZERO_VARIANCE = ("keep", "resample")
SYNC = ("normal", "full")
ON_SIGTERM = ("end", "rest")
JOURNAL = "journal.sqlite"
STRAGGLER = ("wait", "drop", "train")
COLDEST, HOTTEST = 0.01, 2.0  # temperatures that vLLM samples at as they are


@dataclass(kw_only=True, slots=True)
class TaskConfig:
    """Where tasks come from."""

    name: str = option("addition", "`addition`, `reasoning_gym/<family>`, or `file`")
    files: list[str] = option(
        [], "JSONL or parquet files for `task.name=file`: prompt, reward, reference, free metadata"
    )
    reward: str = option("", "reward expression such as `0.5*accuracy + 0.5*format`; empty: the source's own")
    template: str = option(
        "plain", "how the prompt is put to the model: `plain`, `r1`, or a text with `{prompt}` in it"
    )
    digits: int = option(2, "addition: digits of each operand")
    size: int = option(0, "tasks in an epoch of a generator; 0: addition is endless, a reasoning_gym family has 10,000")
    epochs: int = option(0, "times a finite source is repeated; 0: without end")
    shuffle: bool = option(True, "shuffle a file's tasks anew each epoch")
    retire_pass_rate: float = option(
        0.0, "a task passed (reward above 0.999) in this share of its rollouts is not leased again; 0: none retires"
    )
    retire_after: int = option(16, "rollouts of a task before it may retire")
    params: dict[str, str] = option({}, "reasoning_gym: parameters of the family, as `task.params.min_terms=3`")


@dataclass(kw_only=True, slots=True)
class SamplingConfig:
    """How completions are sampled; actors and learner both learn it from the broker."""

    temperature: float = option(1.0, "sampling temperature, applied in the learner's logprobs too")
    top_p: float = option(1.0, "nucleus sampling; below 1 biases the importance weights and is refused")
    max_tokens: int = option(256, "longest completion, in tokens")
    stop: list[str] = option([], "texts that end a completion")


@dataclass(kw_only=True, slots=True)
class StreamConfig:
    """Groups, staleness and deadlines."""

    group_size: int = option(8, "rollouts a task (G)")
    groups_per_step: int = option(32, "groups a learner step")
    zero_variance: str = option(
        "keep", "groups of equal rewards: `keep` (the learner decides) or `resample` (dropped, other tasks are leased)"
    )
    resample_limit: int = option(256, "groups that `resample` drops for one batch, at most; then they are kept")
    max_staleness: int = option(2, "learner steps between sampling a token and training on it, at most; 0: synchronous")
    straggler: str = option(
        "wait",
        "a batch that would leave a group behind until it is older than max_staleness: `wait`s for it, `drop`s it, or "
        "goes on and `train`s it late",
    )
    lease_seconds: float = option(600.0, "time a lease may take before its missing samples go to another actor")
    lease_attempts: int = option(3, "leases a group may use up before it is dropped as `lease_expired`")
    drops_in_a_row: int = option(
        256, "groups dropped without one finished in between, after which the run ends with an error"
    )
    verify_seconds: float = option(10.0, "time a check may take before its worker is killed")
    verify_attempts: int = option(3, "times a void check is tried before its sample is dropped")
    heartbeat_seconds: float = option(1.0, "every role speaks at least this often")
    silence_seconds: float = option(30.0, "a peer silent for longer is taken for dead")
    return_seconds: float = option(300.0, "time for a learner or a broker that died to come back, before the run ends")
    messages_per_second: float = option(
        10000.0,
        "messages that a peer may send, ten seconds' worth at once, a large one counted as one for each 16 KiB; one "
        "that sends more is refused",
    )
    strangers_per_second: float = option(
        100.0, "messages that a connection may send before it says Hello; one that sends more is cut off"
    )
    peers: int = option(10000, "processes that may take part at the same time")
    consume_seconds: float = option(3600.0, "time the learner may take over a batch before it is taken for stuck")


@dataclass(kw_only=True, slots=True)
class JournalConfig:
    """The broker's memory, from which it goes on after it died."""

    path: str = option("", "SQLite file on a local disk; empty: `journal.sqlite` in the run's directory")
    sync: str = option(
        "normal", "`normal`: kill -9 loses nothing; `full`: a power failure neither, for an fsync a turn of the broker"
    )
    on_sigterm: str = option(
        "end",
        "`end`: SIGTERM ends the run for everybody; `rest`: it ends the broker alone, in silence, which goes on from "
        "its journal where a batch system starts it again",
    )
    full_seconds: float = option(240.0, "time for somebody to make room when its disk is full, before the run ends")


@dataclass(kw_only=True, slots=True)
class BrokerRoot:
    """All that `python -m learner.broker` reads."""

    broker: str = option("tcp://127.0.0.1:5555", "address to listen on; `tcp://127.0.0.1:*` takes a free port")
    metrics_port: int = option(0, "port of /metrics, /targets and /status; 0: a free one")
    model: str = option(MISSING, "HF checkpoint directory, told to every actor that joins")
    run: RunConfig = field(default_factory=RunConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    journal: JournalConfig = field(default_factory=JournalConfig)
    security: SecurityConfig = field(default_factory=SecurityConfig)


def identity(config: BrokerRoot) -> dict[str, object]:
    """What a journal's leases and rollouts depend on: it must be the same when a run goes on."""
    task, sampling, stream = asdict(config.task), asdict(config.sampling), config.stream
    return {
        "model": config.model,
        "run.seed": config.run.seed,
        **{f"task.{name}": value for name, value in task.items()},
        **{f"sampling.{name}": value for name, value in sampling.items()},
        **{
            f"stream.{name}": getattr(stream, name)
            for name in ("group_size", "groups_per_step", "max_staleness", "zero_variance")
        },
    }


def check(config: BrokerRoot) -> None:
    """Refuse, with the reason, what could not work. Raises `ValueError`."""
    _check_tasks(config.task)
    _check_stream(config.stream)
    _check_sampling(config.sampling)
    check_security(config.security)
    for name, allowed in (("sync", SYNC), ("on_sigterm", ON_SIGTERM)):
        if getattr(config.journal, name) not in allowed:
            raise ValueError(f"journal.{name}={getattr(config.journal, name)}: must be one of {', '.join(allowed)}")
    if not config.journal.full_seconds >= 0:
        raise ValueError(f"journal.full_seconds={config.journal.full_seconds}: must not be below 0")


def _check_tasks(task: TaskConfig) -> None:
    if not 0 <= task.retire_pass_rate <= 1:
        raise ValueError(f"task.retire_pass_rate={task.retire_pass_rate}: must lie in [0, 1]; 0: no task retires")
    if task.retire_after < 1:
        raise ValueError(f"task.retire_after={task.retire_after}: must be at least 1 rollout")
    if task.retire_pass_rate and task.name == "addition" and not task.size:
        raise ValueError(
            f"task.retire_pass_rate={task.retire_pass_rate}: addition is endless, its problems do not come again and "
            "cannot retire; set task.size, or leave it 0"
        )


def _check_stream(stream: StreamConfig) -> None:
    if stream.group_size < 2:
        raise ValueError(f"stream.group_size={stream.group_size}: a group-relative advantage needs at least 2 rollouts")
    for name in ("groups_per_step", "lease_attempts", "verify_attempts", "drops_in_a_row", "resample_limit", "peers"):
        if getattr(stream, name) < 1:
            raise ValueError(f"stream.{name}={getattr(stream, name)}: must be at least 1")
    for name in ("lease_seconds", "verify_seconds", "heartbeat_seconds", "return_seconds", "consume_seconds"):
        if getattr(stream, name) <= 0:
            raise ValueError(f"stream.{name}={getattr(stream, name)}: must be more than 0 seconds")
    for name, allowed in (("zero_variance", ZERO_VARIANCE), ("straggler", STRAGGLER)):
        if getattr(stream, name) not in allowed:
            raise ValueError(f"stream.{name}={getattr(stream, name)}: must be one of {', '.join(allowed)}")
    for name in ("messages_per_second", "strangers_per_second"):
        if not getattr(stream, name) >= 1:
            raise ValueError(f"stream.{name}={getattr(stream, name)}: must be at least 1")
    if stream.max_staleness < 0:
        raise ValueError(f"stream.max_staleness={stream.max_staleness}: must be 0 (synchronous) or more")
    if stream.silence_seconds < 3 * stream.heartbeat_seconds:
        raise ValueError(
            f"stream.silence_seconds={stream.silence_seconds}: must be at least three heartbeats "
            f"({stream.heartbeat_seconds} s each), or healthy peers are taken for dead"
        )


def _check_sampling(sampling: SamplingConfig) -> None:
    if sampling.temperature <= 0:
        raise ValueError(
            f"sampling.temperature={sampling.temperature}: must be above 0; greedy rollouts of a group are all equal "
            "and teach nothing"
        )
    if not COLDEST <= sampling.temperature <= HOTTEST:
        raise ValueError(
            f"sampling.temperature={sampling.temperature}: must lie in [{COLDEST}, {HOTTEST}]: the engine samples a "
            "lower one at the bound and takes no higher one, so that the learner's logprobs would not be the sampler's"
        )
    if sampling.top_p != 1.0:
        raise ValueError(
            f"sampling.top_p={sampling.top_p}: only 1.0 is taken: a cut-off distribution biases every importance weight"
        )
    if sampling.max_tokens < 1:
        raise ValueError(f"sampling.max_tokens={sampling.max_tokens}: must be at least 1")


def journal_path(path: str, run_directory: str) -> Path:
    """Where the journal of a run lies: at `path`, else in its directory."""
    return Path(path) if path else Path(run_directory) / JOURNAL
