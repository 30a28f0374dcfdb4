"""What a reference of reward `code` says: cases of one of three kinds, checked field by field.

The reference is JSON as `protocol.reference` writes it:
- `{"kind": "stdio", "cases": [{"stdin": "1 2\\n", "stdout": "3\\n"}, …]}`;
- `{"kind": "calls", "entry": "add", "prompt": "", "cases": [{"arguments": [1, 2], "keywords": {}, "returns": 3}, …]}`;
- `{"kind": "tests", "entry": "add", "prompt": "def add(a, b):\\n", "tests": ["def check(candidate): …", …]}`.

`entry` is a function, or a method of a class without arguments: `Solution().two_sum`.
"""

from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, TypeAlias

from protocol import reference as references
from verifier.rewards.score import BadTask, described
from verifier.sandbox.functions import NAME


@dataclass(frozen=True, slots=True, kw_only=True)
class StdioCase:
    """What a program reads, and what it ought to write."""

    stdin: str
    stdout: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallCase:
    """What a function is given, and what it ought to return."""

    arguments: list[Any]
    returns: Any
    keywords: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stdio:
    """A whole program, run once a case."""

    cases: list[StdioCase]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """A function, called once a case. `prompt` is code that comes before the completion's."""

    entry: str
    cases: list[CallCase]
    prompt: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitTests:
    """Code that calls the function. `prompt` is what the completion was asked to go on from."""

    entry: str
    tests: list[str]
    prompt: str = ""


Cases: TypeAlias = Stdio | Calls | UnitTests


@lru_cache(maxsize=256)
def read(reference: str) -> Cases:
    """The cases in a reference. Raises `BadTask`, which names the culprit."""
    try:
        found = references.load(reference)
    except ValueError as error:
        raise BadTask(f"the reference is no JSON: {described(error)}") from None
    match found:
        case {"kind": "stdio", "cases": [_, *_] as cases, **rest}:
            result: Cases = _made(Stdio, {**rest, "cases": [_made(StdioCase, case) for case in cases]})
        case {"kind": "calls", "cases": [_, *_] as cases, **rest}:
            result = _made(Calls, {**rest, "cases": [_made(CallCase, case) for case in cases]})
        case {"kind": "tests", "tests": [_, *_] as tests, **rest} if all(isinstance(test, str) for test in tests):
            result = _made(UnitTests, {**rest, "tests": tests})
        case _:
            raise BadTask("the reference must have kind stdio, calls or tests, and at least one case")
    if not isinstance(result, Stdio) and not NAME.fullmatch(result.entry):
        raise BadTask(f"entry {result.entry!r}: must be a name, or Name().name")
    return result


def _made(kind: type[Any], values: Any) -> Any:
    known = {each.name: each for each in fields(kind)}
    if not isinstance(values, dict) or values.keys() - known.keys():
        raise BadTask(
            f"the reference: a case of {kind.__name__} has the fields {', '.join(known)}; got {values!r:.200}"
        )
    for name, value in values.items():
        if isinstance(value, str) != (known[name].type is str) and known[name].type is not Any:
            raise BadTask(f"the reference: {name}={value!r:.100} must be {known[name].type}")
    try:
        return kind(**values)
    except TypeError as error:
        raise BadTask(f"the reference: {error}") from None
