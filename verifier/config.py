"""The verifier's options."""

import os
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from protocol.options import option
from protocol.security import SecurityConfig, check_security


@dataclass(kw_only=True, slots=True)
class VerifierConfig:
    """The verifier's pool."""

    name: str = option("", "unique name in the run; empty: verifier-<host>-<pid>")
    workers: int = option(0, "worker processes; 0: one for each core that this process may use")
    welcome_seconds: float = option(30.0, "longest wait for the broker to answer Hello")
    backlog: int = option(32, "jobs held a worker, running one included")
    memory_bytes: int = option(
        2 * 2**30, "address space of one worker; more is an error of the check, not of the service"
    )
    checks_per_worker: int = option(10000, "checks after which a worker is replaced")
    patience_seconds: float = option(
        10.0,
        "a job lets shorter ones that came up to so long after it go first, a third of the broker's silence_seconds at "
        "most; 0: in the order of arrival",
    )
    retries: int = option(
        2,
        "times that a check is tried again after the host failed it (sandbox, lost worker, no CPU), before it is void",
    )
    drain_seconds: float = option(20.0, "time to finish what it has after SIGTERM; a second one ends it at once")
    lean_server: str = option("", "address of a Kimina Lean Server, for proofs in Lean: http://host:port")
    lean_key_file: str = option("", "file that holds the server's API key; empty: it wants none")


REQUIREMENTS = ("strict", "best_effort")


@dataclass(kw_only=True, slots=True)
class SandboxConfig:
    """The walls round workers and round model-written code; `verifier/README.md` says what they hold."""

    require: str = option(
        "strict",
        "`strict`: no namespaces or no system-call filter, no service; `best_effort`: go on with what there is",
    )
    memory_bytes: int = option(2**30, "most memory that a task may give to model-written code")
    disk_bytes: int = option(64 * 2**20, "most that it may write to files, which count as memory")
    seconds: float = option(600.0, "longest time, of the CPU and of the clock, that a task may give it")
    processes: int = option(64, "most processes and threads")
    readable: list[str] = option([], "files and folders that it may read besides the interpreter and its libraries")


@dataclass(kw_only=True, slots=True)
class CustomConfig:
    """Reward `custom`: a function of the user's."""

    function: str = option("", "`package.module:name`, called with text, reference and metadata; empty: none")
    path: list[str] = option([], "folders in which the module is looked for, before Python's own path")
    trusted: bool = option(
        False, "import it into the workers; else it runs in the sandbox, in a fresh process for each check"
    )


DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "float32", "bfloat16", "float16")
MOST_BATCH_JOBS = 64  # what is said of them must fit into one message


@dataclass(kw_only=True, slots=True)
class RewardModelConfig:
    """Reward `reward_model`: a HF checkpoint for sequence classification with one label, served beside the workers."""

    path: str = option("", "folder of the checkpoint and its tokenizer; empty: no reward model is served")
    chat_template: str = option("", "Jinja file; empty: the tokenizer's own")
    device: str = option("auto", "`cpu`, `cuda`, or `auto`: CUDA where there is a device")
    dtype: str = option("auto", "`float32`, `bfloat16`, `float16`, or `auto`: bfloat16 on CUDA, else float32")
    threads: int = option(1, "threads on the CPU")
    longest_tokens: int = option(4096, "longest conversation; a completion that makes it longer gets 0")
    batch_jobs: int = option(32, f"jobs judged together, at most; {MOST_BATCH_JOBS} can be")
    batch_tokens: int = option(32768, "tokens that go through the model together, padding included")
    centre: float = option(0.0, "the reward is sigmoid((score − centre) / width): the score that is worth one half")
    width: float = option(1.0, "see centre: what makes a difference in the scores of this model")
    load_seconds: float = option(300.0, "longest time for the model to load")


@dataclass(kw_only=True, slots=True)
class VerifierRoot:
    """All that `python -m verifier` reads."""

    broker: str = option("tcp://127.0.0.1:5555", "address of the broker, or `file:` and the path of its broker.json")
    metrics_port: int = option(0, "port of the Prometheus exporter; 0: a free one")
    verifier: VerifierConfig = field(default_factory=VerifierConfig)
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    custom: CustomConfig = field(default_factory=CustomConfig)
    reward_model: RewardModelConfig = field(default_factory=RewardModelConfig)
    security: SecurityConfig = field(default_factory=SecurityConfig)


def check(config: VerifierRoot) -> None:
    """Refuse, with the reason, what could not work. Raises `ValueError`."""
    check_security(config.security)
    verifier = config.verifier
    if verifier.workers < 0:
        raise ValueError(f"verifier.workers={verifier.workers}: must be 0 (one a core) or more")
    for name in ("backlog", "checks_per_worker"):
        if getattr(verifier, name) < 1:
            raise ValueError(f"verifier.{name}={getattr(verifier, name)}: must be at least 1")
    for name in ("patience_seconds", "retries", "drain_seconds"):
        if not getattr(verifier, name) >= 0:
            raise ValueError(f"verifier.{name}={getattr(verifier, name)}: must be 0 or more")
    if verifier.memory_bytes < 256 * 2**20:
        raise ValueError(f"verifier.memory_bytes={verifier.memory_bytes}: Python with sympy needs at least 256 MiB")
    if verifier.welcome_seconds <= 0:
        raise ValueError(f"verifier.welcome_seconds={verifier.welcome_seconds}: must be above 0")
    _check_reward_model(config.reward_model)
    for folder in config.custom.path:
        if not os.path.isdir(folder):
            raise ValueError(f"custom.path: {folder!r} is not a folder")
    _check_server(verifier)
    sandbox = config.sandbox
    if sandbox.require not in REQUIREMENTS:
        raise ValueError(f"sandbox.require={sandbox.require}: must be one of {', '.join(REQUIREMENTS)}")
    for name in ("disk_bytes", "seconds", "processes"):
        if getattr(sandbox, name) <= 0:
            raise ValueError(f"sandbox.{name}={getattr(sandbox, name)}: must be above 0")
    if sandbox.memory_bytes < 64 * 2**20:
        raise ValueError(f"sandbox.memory_bytes={sandbox.memory_bytes}: a Python interpreter needs at least 64 MiB")
    for path in sandbox.readable:
        if not os.path.isabs(path) or not os.path.exists(path):
            raise ValueError(f"sandbox.readable: {path!r} must be the absolute path of something that exists")


def _check_reward_model(model: RewardModelConfig) -> None:
    if model.path and not os.path.isfile(os.path.join(model.path, "config.json")):
        raise ValueError(f"reward_model.path={model.path}: must be a folder with the config.json of a HF checkpoint")
    if model.chat_template and not os.path.isfile(model.chat_template):
        raise ValueError(f"reward_model.chat_template={model.chat_template}: is not a file")
    for name, choices in (("device", DEVICES), ("dtype", DTYPES)):
        if getattr(model, name) not in choices:
            raise ValueError(f"reward_model.{name}={getattr(model, name)}: must be one of {', '.join(choices)}")
    for name in ("threads", "longest_tokens", "batch_jobs", "batch_tokens"):
        if getattr(model, name) < 1:
            raise ValueError(f"reward_model.{name}={getattr(model, name)}: must be at least 1")
    if model.batch_jobs > MOST_BATCH_JOBS:
        raise ValueError(f"reward_model.batch_jobs={model.batch_jobs}: {MOST_BATCH_JOBS} at most")
    for name in ("width", "load_seconds"):
        if not getattr(model, name) > 0:
            raise ValueError(f"reward_model.{name}={getattr(model, name)}: must be above 0")


def _check_server(verifier: VerifierConfig) -> None:
    if verifier.lean_server:
        address = urlsplit(verifier.lean_server)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError(
                f"verifier.lean_server={verifier.lean_server}: must be http://host:port or https://host:port"
            )
    if verifier.lean_key_file and not os.path.isfile(verifier.lean_key_file):
        raise ValueError(f"verifier.lean_key_file={verifier.lean_key_file}: there is no such file")
