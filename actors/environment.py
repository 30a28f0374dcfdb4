"""The process as vLLM must find it: environment variables and cores, set before anything heavy is imported."""

import logging
import os

from actors.config import EngineConfig, parse_cores


def prepare(config: EngineConfig) -> None:
    """Set what vLLM and torch read when they are imported. Raises `ValueError` for cores that are not there."""
    if cores := parse_cores(config.cores):
        if missing := cores - os.sched_getaffinity(0):
            raise ValueError(f"engine.cores={config.cores}: core {min(missing)} is not available to this process")
        os.sched_setaffinity(0, cores)
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine core lives in this process, between our own steps
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # this process is bound above, where asked for
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(config.threads),
    }
    if config.enforce_eager:
        os.environ["TORCHDYNAMO_DISABLE"] = "1"  # else the first batch waits 20 s for a compiler that is not used
    level = os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    logging.getLogger("vllm").setLevel(level)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # a crash shows where
