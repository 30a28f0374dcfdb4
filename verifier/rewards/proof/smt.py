"""SMT: an answer in SMT-LIB judged against a formula by z3, which runs in a sandbox.

An answer is read by `sexpr`, refused unless it keeps to the few forms that its kind of task allows, and printed anew
behind the task's own commands; no command of its own reaches z3. So z3's last line is about our question.

What z3 cannot decide in time scores 0 where the answer had a say in it, and voids the check where it had none.

Source: SMT-LIB standard 2.6, sections 3 and 4; z3.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from verifier.rewards.committed_code import committed_code
from verifier.rewards.parameters import Parameters
from verifier.rewards.proof.programs import Step, limits, run
from verifier.rewards.proof.sexpr import Expression, atoms, read, renamed, write
from verifier.rewards.score import BadAnswer, BadTask, Score
from verifier.sandbox.program import Limits

SECONDS = 10.0
TASKS = ("model", "status", "equivalent")
_IGNORED = {"check-sat", "get-model", "exit", "set-info", "set-logic"}
_KEPT = {"declare-datatype", "declare-datatypes", "declare-sort", "define-sort"}
_NAME = re.compile(r"[A-Za-z~$%^&*_+=<>.?/@-][A-Za-z0-9~$%^&*_+=<>.?/@-]*")
_NUMBER = re.compile(r"(0|[1-9][0-9]*)(\.[0-9]+)?|#x[0-9A-Fa-f]+|#b[01]+")
_VALUE_OPERATORS = {"-", "+", "*", "ite", "=", "and", "or", "not", "=>", "distinct", "<", "<=", ">", ">=", "store"}
_THEIRS, _OURS = "answer!", "task!"


@dataclass(frozen=True, slots=True)
class _Constant:
    """A symbol that a formula declares: the sorts of its arguments and its own."""

    name: str
    arguments: tuple[str, ...]
    sort: str


@dataclass(frozen=True, slots=True)
class _Formula:
    """A task's formula, its own definitions under names that no answer may use."""

    logic: str  # a command, or nothing
    commands: tuple[tuple[str, str], ...]  # (name declared or "", command as text), in order
    constants: Mapping[str, _Constant]
    assertions: tuple[str, ...]

    def opening(self, given: Mapping[str, str]) -> list[str]:
        """Everything before the assertions; each symbol in `given` as defined there."""
        return [*([self.logic] if self.logic else []), *(given.get(name, text) for name, text in self.commands)]


def smt_proof(text: str, reference: Mapping[str, Any], metadata: Mapping[str, Any]) -> Score:
    """1 if the answer is right about `reference["formula"]`, an SMT-LIB script that declares and asserts; else 0.

    `reference["task"]` says what an answer is: `model`, one `define-fun` for each symbol that the formula declares,
    made of literals, arguments and connectives, under which all assertions hold (division by zero is any value, as
    SMT-LIB has it); `status`, the word `sat` or `unsat`, which a coin gets right half of the time; `equivalent`,
    assertions over the formula's symbols that hold exactly where the formula's do.
    Raises `BadAnswer`, `BadTask` and `SandboxError`. Source: SMT-LIB 2.6.
    """
    task = Parameters(reference, "reference", ("kind", "task", "formula"))
    kind, formula = task.choice("task", "model", TASKS), _formula(task.text("formula"))
    most = limits(metadata, SECONDS)
    code = committed_code(text).strip()
    if kind == "status":
        return _status(code, formula, most)
    try:
        answer = read(code)
    except ValueError as error:
        raise BadAnswer(str(error)) from None
    if kind == "model":
        lines = [*formula.opening(_model(answer, formula)), *(f"(assert {each})" for each in formula.assertions)]
        wanted = "sat"
    else:
        theirs, definitions = _assertions(answer, formula)
        ours = " ".join(formula.assertions)
        lines = [*formula.opening({}), *definitions, f"(assert (not (= (and true {ours}) (and true {theirs}))))"]
        wanted = "unsat"
    found = _asked(lines, most)
    if found.startswith("(error"):
        _status_of(formula, most)  # raises if the formula is the one at fault
        raise BadAnswer(f"z3 refuses it: {found[:200]}")
    return Score(float(found == wanted), {wanted: "right", "unknown": "z3 cannot decide it"}.get(found, "wrong"))


def _status(code: str, formula: _Formula, most: Limits) -> Score:
    if code not in ("sat", "unsat"):
        raise BadAnswer("the answer is neither sat nor unsat")
    found = _status_of(formula, most)
    if found not in ("sat", "unsat"):
        raise BadTask(f"reference: z3 cannot decide its formula: {found}")
    return Score(float(found == code), f"it is {found}")


@lru_cache(maxsize=256)
def _known_status(lines: tuple[str, ...], most: Limits) -> str:
    try:
        return _asked(list(lines), most)
    except BadAnswer as error:
        return str(error)


def _status_of(formula: _Formula, most: Limits) -> str:
    """What z3 says of a formula alone. Raises `BadTask` if it is none."""
    found = _known_status((*formula.opening({}), *(f"(assert {each})" for each in formula.assertions)), most)
    if found.startswith("(error"):
        raise BadTask(f"reference: z3 refuses its formula: {found[:200]}")
    return found


def _asked(lines: list[str], most: Limits) -> str:
    """z3's answer to `check-sat`, or its first error. Raises `BadAnswer` out of time or memory."""
    script = "\n".join([*lines, "(check-sat)"])
    step = Step("z3", ["-smt2", f"-T:{max(1, round(most.cpu_seconds))}", "script.smt2"])
    ran = run([step], {"script.smt2": script.encode()}, most)
    said = ran.steps[0].stdout.splitlines()
    error = next((line for line in said if line.startswith("(error")), "")
    return error or (said[-1] if said else f"(error {ran.failure!r})")


# ---------------------------------------------------------------- the task


@lru_cache(maxsize=64)
def _formula(text: str) -> _Formula:
    try:
        commands = read(text)
    except ValueError as error:
        raise BadTask(f"reference.formula: {error}") from None
    defined = {
        _name(command[1]): _OURS + _name(command[1])
        for command in commands
        if isinstance(command, list) and len(command) > 1 and command[0] in ("define-fun", "define-const")
    }
    kept: list[tuple[str, str]] = []
    constants: dict[str, _Constant] = {}
    assertions: list[str] = []
    logic = ""
    for command in commands:
        if constant := _declared(command):
            constants[constant.name] = constant
            kept.append((constant.name, write(command)))
            continue
        match command:
            case ["assert", term]:
                assertions.append(write(renamed(term, defined)))
            case ["set-logic", str(name)]:
                logic = f"(set-logic {name})"
            case ["define-fun" | "define-const", *_]:
                kept.append(("", write(renamed(command, defined))))
            case [str(head), *_] if head in _KEPT:
                kept.append(("", write(command)))
            case [str(head), *_] if head in _IGNORED:
                continue
            case _:
                raise BadTask(f"reference.formula: {write(command)[:80]} is not understood")
    if not assertions:
        raise BadTask("reference.formula asserts nothing")
    return _Formula(logic, tuple(kept), constants, tuple(assertions))


def _name(expression: Expression) -> str:
    return expression if isinstance(expression, str) else ""


def _declared(command: Expression) -> _Constant | None:
    match command:
        case ["declare-const", str(name), sort]:
            return _Constant(name, (), write(sort))
        case ["declare-fun", str(name), list(arguments), sort]:
            return _Constant(name, tuple(map(write, arguments)), write(sort))
    return None


# ---------------------------------------------------------------- answers


def _model(answer: list[Expression], formula: _Formula) -> dict[str, str]:
    """A definition for each symbol that the formula declares. Raises `BadAnswer`."""
    definitions = [each for each in answer if each != "sat"]
    if len(definitions) == 1 and isinstance(definitions[0], list) and definitions[0][:1] != ["define-fun"]:
        definitions = [each for each in definitions[0] if each != "model"]
    found: dict[str, str] = {}
    for definition in definitions:
        match definition:
            case ["define-fun", str(name), list(arguments), sort, body]:
                constant = formula.constants.get(name)
                names, sorts = _arguments(arguments)
                if constant is None or (sorts, write(sort)) != (constant.arguments, constant.sort):
                    raise BadAnswer(f"the formula declares no such {name[:80]}")
                if name in found:
                    raise BadAnswer(f"{name[:80]} is defined twice")
                _value(body, set(names))
                found[name] = write(definition)
            case _:
                raise BadAnswer(f"no definition: {write(definition)[:80]}")
    if missing := sorted(formula.constants.keys() - found.keys()):
        raise BadAnswer(f"the model does not say what {missing[0]} is")
    return found


def _arguments(arguments: list[Expression]) -> tuple[list[str], tuple[str, ...]]:
    """Names and sorts of a function's arguments."""
    names, sorts = [], []
    for argument in arguments:
        match argument:
            case [str(name), sort] if _NAME.fullmatch(name):
                names.append(name)
                sorts.append(write(sort))
            case _:
                raise BadAnswer(f"no argument: {write(argument)[:80]}")
    if len(set(names)) != len(names) or set(names) & (_VALUE_OPERATORS | {"true", "false", "/", "as", "_", "const"}):
        raise BadAnswer("arguments of a function need names of their own")
    return names, tuple(sorts)


def _value(body: Expression, arguments: set[str]) -> None:
    """Nothing but a value, or a function by cases: nothing that z3 would have to find, as `(/ 1 0)` is.

    Raises `BadAnswer`.
    """
    match body:
        case str(atom) if atom in arguments or atom in ("true", "false") or _NUMBER.fullmatch(atom):
            return
        case str(atom) if atom.startswith('"'):
            return
        case ["/", top, str(bottom)] if re.fullmatch(r"[0-9.]+", bottom) and bottom.strip("0."):
            _value(top, arguments)
        case ["_", str(bits), str(width)] if re.fullmatch(r"bv[0-9]+", bits) and width.isdigit():
            return
        case [["as", "const", _], value]:
            _value(value, arguments)
        case [str(operator), *parts] if operator in _VALUE_OPERATORS:
            for part in parts:
                _value(part, arguments)
        case _:
            raise BadAnswer(f"no value: {write(body)[:80]}")


def _assertions(answer: list[Expression], formula: _Formula) -> tuple[str, list[str]]:
    """The terms that an answer asserts, and its definitions, under names of its own. Raises `BadAnswer`."""
    if bad := next(
        (atom for each in answer for atom in atoms(each) if atom.startswith(("|", "!", _THEIRS, _OURS))), ""
    ):
        raise BadAnswer(f"{bad[:80]} has no place in an answer")
    terms: list[Expression] = []
    definitions: list[Expression] = []
    names: dict[str, str] = {}
    for command in answer:
        match command:
            case ["assert", term]:
                terms.append(term)
            case ["define-fun", str(name), list(), _, _] if name not in formula.constants and name not in names:
                names[name] = _THEIRS + name
                definitions.append(command)
            case ["declare-const" | "declare-fun", *_] if _declared(command) in formula.constants.values():
                continue
            case [str(head), *_] if head in _IGNORED:
                continue
            case _:
                raise BadAnswer(f"no assertion over the formula's symbols: {write(command)[:80]}")
    if not terms:
        raise BadAnswer("it asserts nothing")
    return " ".join(write(renamed(term, names)) for term in terms), [
        write(renamed(each, names)) for each in definitions
    ]
