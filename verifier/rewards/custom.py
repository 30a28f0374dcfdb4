"""Reward `custom`: a function of the user's, `custom.function=package.module:name`, one for all workers of a verifier.

    def name(text: str, reference: str, metadata: dict) -> float            # 0..1
    def name(text: str, reference: str, metadata: dict) -> tuple[float, str]  # and why

By default it runs in the sandbox, in a fresh process for each check that has its source and Python's standard library,
and whatever lies in folders of `sandbox.readable`; what it is given and what it returns are values, never code or
objects. With `custom.trusted=true` the worker imports it, once: quicker, with all packages of the verifier, locked in
as workers are, and no more careful with hostile text than its author.
"""

import importlib
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from verifier.rewards.custom_source import CustomFunction
from verifier.rewards.score import BadAnswer, BadTask, Score, described
from verifier.sandbox.access import access
from verifier.sandbox.calls import Functions, NoAnswer
from verifier.sandbox.link import Link
from verifier.sandbox.program import Limits

MOST_SECONDS = 600.0
READY = "is_there"
MOST_REASON = 300  # characters


def custom_reward(text: str, reference: str, metadata: Mapping[str, Any]) -> Score:
    """What the function returns, in 0..1. Anything else that it does, but for taking too long, is void.

    Reads `metadata["question"]`, which every source of tasks writes for this reward, if the function does.
    """
    if installed.function is None:
        raise BadTask("this verifier has no such function: start it with custom.function=package.module:name")
    if installed.problem:
        raise BadTask(installed.problem)
    function, given = installed.function, (text, reference, dict(metadata))
    if installed.imported:
        return _judged(function, _trusted(function, installed.imported, given))
    return _judged(function, _sandboxed(function, installed.files, given))


@dataclass(slots=True)
class Installed:
    """The function of this process, and of those that it forks."""

    function: CustomFunction | None = None
    files: dict[str, bytes] = field(default_factory=dict)  # of a sandboxed one
    imported: Callable[..., Any] | None = None  # a trusted one
    problem: str = ""  # why there is neither

    def install(self, function: CustomFunction) -> None:
        """Read it, or import it if it is trusted. A problem makes every check void."""
        self.function = function
        try:
            if function.trusted:
                self.imported = imported(function)
            else:
                self.files = function.files()
        except (Exception, SystemExit) as error:  # noqa: BLE001 whatever a module does when it is imported is told
            self.problem = f"{function.option} cannot be imported: {described(error)}"


installed = Installed()


def imported(function: CustomFunction) -> Callable[..., Any]:
    """The function itself, here. Raises whatever its module raises, and `TypeError` if it cannot be called."""
    for folder in (*function.packages, function.folder):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    found = getattr(importlib.import_module(function.module), function.name)
    if not callable(found):
        raise TypeError(f"{function.name} is a {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]


def await_sandboxed(link: Link, function: CustomFunction, seconds: float) -> None:
    """Import it in the sandbox once, to know that it can be. Raises `ValueError` with the reason, `SandboxError`."""
    limits = Limits(cpu_seconds=seconds, wall_seconds=seconds, memory_bytes=function.memory_bytes)
    with Functions(link, _source(function), limits, function.files()) as functions:
        try:
            if not functions.call(READY, [], {}, seconds):
                raise ValueError(f"{function.option}: {function.name} cannot be called")
        except NoAnswer as error:
            raise ValueError(f"{function.option} cannot be imported in the sandbox: {error}") from None


def _source(function: CustomFunction) -> str:
    """What the sandbox runs: the files of the package lie in its folder, the first place that is looked at."""
    return (
        f"import sys\nsys.path += {list(function.packages)!r}\nfrom {function.module} import {function.name} as judge\n"
        f"def {READY}():\n    return callable(judge)\n"
    )


def _trusted(function: CustomFunction, judge: Callable[..., Any], given: tuple[Any, ...]) -> Any:
    try:
        return judge(*given)
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:
        raise BadTask(f"{function.option} raised {described(error)}") from error


def _sandboxed(function: CustomFunction, files: Mapping[str, bytes], given: tuple[Any, ...]) -> Any:
    seconds = min(access.seconds, MOST_SECONDS)
    limits = Limits(cpu_seconds=seconds, wall_seconds=seconds, memory_bytes=function.memory_bytes)
    with Functions(access.link, _source(function), limits, files) as functions:
        try:
            return functions.call("judge", list(given), {}, seconds)
        except NoAnswer as error:
            ended = functions.outcome.ended if functions.outcome else ""
            if ended == "memory":
                raise MemoryError from None
            if ended in ("cpu", "wall") or access.seconds <= 0:
                raise BadAnswer(f"timeout after {seconds:.3g} s") from None
            raise BadTask(f"{function.option} {error}") from None


def _judged(function: CustomFunction, value: Any) -> Score:
    """The score in what the function returned. Raises `BadTask` for anything that is none."""
    reason = ""
    if isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[1], str):
        value, reason = value[0], value[1][:MOST_REASON]
    if not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= 1:
        raise BadTask(f"{function.option} returned {str(value)[:80]}: must be a number of 0 to 1, or that and a text")
    return Score(float(value), reason or f"{float(value):.4g}")
