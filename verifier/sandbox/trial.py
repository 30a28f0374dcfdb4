"""A locked-in process that runs a task's tests. The tested code is not here: it is called in another, by value.

The task's prompt is executed first, for the imports and helpers that tests may use; the function under test is then
replaced by a proxy that sends each call over descriptor 3. Results go out on descriptor 4, one line, which nothing
but this process and whoever started it has. Code under test never runs in this interpreter, and what it hands over is
rebuilt from plain data: there is no `assert`, `==`, frame or exit handler of ours that it could touch.
"""

import builtins
import json
import os
import types
from collections.abc import Mapping
from typing import Any, NoReturn

from verifier.sandbox import script, values

CHANNEL, REPORT = 3, 4
MOST_ANSWER_BYTES = 8 * 2**20


class CandidateGone(BaseException):
    """The code under test ended, or spoke nonsense. No `Exception`: tests that expect one must not take it for that."""


class CandidateError(Exception):
    """The code under test raised an exception of a type that Python does not have."""


class Candidate:
    """Stands for the function under test."""

    def __init__(self, name: str) -> None:
        self.__name__ = self.__qualname__ = name.rpartition(".")[2]
        self._name = name
        self._answers = open(CHANNEL, "rb", closefd=False)  # noqa: SIM115 open as long as this process
        self.gone = ""

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call it there. Raises what it raised, if Python has such an exception."""
        match self._asked(values.dump([self._name, list(arguments), keywords]) + b"\n"):
            case ["value", value]:
                return value
            case ["error", str(kind), str(text)]:
                raise _exception(kind)(text)
        raise self._lost("nonsense")

    def _asked(self, request: bytes) -> Any:
        try:
            while request:
                request = request[os.write(CHANNEL, request) :]
            line = self._answers.readline(MOST_ANSWER_BYTES)
            if not line.endswith(b"\n"):
                raise self._lost("too much" if line else "nothing more")
            return values.load(line)
        except (OSError, ValueError) as error:
            raise self._lost(str(error)) from None

    def _lost(self, said: str) -> CandidateGone:
        self.gone = f"the code under test said: {said}"
        return CandidateGone(self.gone)


def _exception(kind: str) -> type[Exception]:
    found = getattr(builtins, kind, None)
    return found if isinstance(found, type) and issubclass(found, Exception) else CandidateError


def run(prompt: str, parameters: Mapping[str, Any]) -> NoReturn:
    """Execute `prompt`, then each of `parameters["tests"]` with `parameters["entry"]` in place; report, and end.

    A test passes if it runs to its end and so does `check`, if it defines one. Each starts from the prompt's names.
    """
    module = script.fresh("tests")
    if status := script.execute(prompt, module):
        script.end(status)
    candidate = Candidate(parameters["entry"])
    results = [_result(test, dict(module.__dict__), candidate) for test in parameters["tests"]]
    os.write(REPORT, json.dumps(results).encode())
    script.end(0)


def _result(test: str, names: dict[str, Any], candidate: Candidate) -> str:
    """Why the test fails; empty if it passes."""
    names[candidate.__name__] = names["candidate"] = candidate
    names.pop("check", None)
    try:
        exec(compile(test, "tests.py", "exec", dont_inherit=True), names)  # the task's code, behind walls all the same
        if isinstance(names.get("check"), types.FunctionType):
            names["check"](candidate)
    except BaseException as error:  # noqa: BLE001 whatever it is, the test has failed
        return f"{type(error).__name__}: {error}"[:200] or "failed"
    return candidate.gone
