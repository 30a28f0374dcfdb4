"""Libraries that not every host has: a check that needs one is void, with what to install, and the service goes on."""

from importlib import import_module
from typing import Any

from verifier.rewards.score import BadTask


def required(module: str, extra: str) -> Any:
    """The module. Raises `BadTask` where it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        raise BadTask(f"this host lacks {module}: pip install 'offbeat[{extra}]' ({error})") from None
