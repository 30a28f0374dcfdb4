"""Coq: is a theorem proved, of the statement that the task makes, from no more axioms than it allows?

Three runs in three sandboxes, so that nothing of the answer is there when the statement is fixed:

1. `Task.v`, the task's own: its definitions and `statement`. Compiled once for all answers to a task.
2. `Answer.v`, hostile, compiled with `Task.vo` at hand. Nothing that this run prints is believed; all that leaves it is
   the file `Answer.vo`.
3. `coqchk`, Coq's independent checker, reads `Answer.vo` and types it anew; then `Check.v`, ours, names the statement
   before it loads the answer, demands that the answer's theorem has it as its type, and prints its assumptions.

Names in `Check.v` are drawn anew for each check: no answer can define them, hide them or print them. A notation, scope,
option or module of the answer changes how its own text is read; the statement was read before. Axioms, `Admitted`,
unguarded recursion, assumed positivity and `Type` in `Type` are seen twice: by the kernel's list of assumptions and by
`coqchk`'s.

Source: Coq reference manual 8.16, "Print Assumptions" and "coqchk".
"""

import re
import secrets
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from verifier.rewards.committed_code import committed_code
from verifier.rewards.parameters import Parameters
from verifier.rewards.proof.programs import Step, limits, run
from verifier.rewards.score import BadAnswer, BadTask, Score
from verifier.sandbox.program import Limits

SECONDS = 20.0  # of CPU for one of the runs, unless the task says otherwise
KNOWN = ("kind", "imports", "definitions", "statement", "name", "axioms")
_COMPILER = ("-q", "-noglob", "-coqlib", "{place}/lib/ocaml/coq", "-w", "none", "-native-compiler", "no")
_FOLDER = ("-Q", ".", "Offbeat")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_']*")
_ASSUMPTION = re.compile(r"([A-Za-z_][A-Za-z0-9_'.]*)\s*(?::.*)?")
_REFUSED = re.compile(
    r"\b(Declare\s+ML\s+Module|Redirect|Load|Cd|Pwd|Drop|Quit|Extraction|Add\s+(Rec\s+)?(LoadPath|ML)|Print\s+Universes"
    r"|Dump|Guard\s+Checking|Positivity\s+Checking|Universe\s+Checking|Bypass|bypass_check|Admitted|admit|Type\s+In\s+Type"
    r"|give_up|native_compute)\b"
)
"""What no proof needs: files, plugins, switches of the kernel. Refused before Coq runs. It is not what decides: all of
it would be contained or seen later, but so it is told why."""


def coq_proof(text: str, reference: Mapping[str, Any], metadata: Mapping[str, Any]) -> Score:
    """1 if the code in `text` proves `reference["statement"]` as a theorem called `name`, else 0.

    The reference: `statement`, a proposition in Coq; `name` of the theorem, `goal` if not given; `imports`, commands
    before the task's and the answer's text (`Require Import Arith.`); `definitions`, what the statement speaks of, in
    scope for the answer; `axioms`, the names of library axioms that a proof may
    assume (`classic` or `Classical_Prop.classic`).
    Raises `BadAnswer`, `BadTask`, and `SandboxError`.
    """
    task = Parameters(reference, "reference", KNOWN)
    imports, definitions = task.text("imports", " "), task.text("definitions", " ")
    statement, name, axioms = task.text("statement"), task.text("name", "goal"), task.texts("axioms")
    if not _NAME.fullmatch(name):
        raise task.bad("name", "must be an identifier")
    most = limits(metadata, SECONDS)
    compiled = _task(imports, definitions, statement, most)
    code = committed_code(text)
    if found := _REFUSED.search(_without_comments(code)):
        raise BadAnswer(f"{' '.join(found[0].split())!r} has no place in a proof")
    answer = _answer(f"{imports}\nFrom Offbeat Require Import Task.\n{code}\n", compiled, most)
    return _checked(name, {"Task.vo": compiled, "Answer.vo": answer}, set(axioms), most)


@lru_cache(maxsize=64)
def _task(imports: str, definitions: str, statement: str, most: Limits) -> bytes:
    """The task's part, compiled. Raises `BadTask` if Coq does not take it."""
    source = f"{imports}\n{definitions}\nDefinition statement : Prop := ({statement}).\n"
    try:
        ran = run([_compile("Task.v")], {"Task.v": source.encode()}, most, ["Task.vo"])
    except BadAnswer as error:
        raise BadTask(f"reference: its statement takes too much: {error}") from None
    if ran.failure or "Task.vo" not in ran.files:
        raise BadTask(f"reference: Coq does not take the statement: {ran.failure}")
    return ran.files["Task.vo"]


def _answer(source: str, task: bytes, most: Limits) -> bytes:
    ran = run([_compile("Answer.v")], {"Task.vo": task, "Answer.v": source.encode()}, most, ["Answer.vo"])
    if ran.failure or "Answer.vo" not in ran.files:
        raise BadAnswer(f"Coq refuses it: {ran.failure}")
    return ran.files["Answer.vo"]


def _checked(name: str, files: Mapping[str, bytes], axioms: set[str], most: Limits) -> Score:
    mark = secrets.token_hex(16)
    check = (
        "From Offbeat Require Task.\n"
        f"Definition statement_{mark} : Prop := Offbeat.Task.statement.\n"
        "From Offbeat Require Answer.\n"
        f"Definition checked_{mark} : statement_{mark} := Offbeat.Answer.{name}.\n"
        f"Print Assumptions checked_{mark}.\n"
    )
    checker = Step(
        "coqchk", ["-coqlib", "{place}/lib/ocaml/coq", *_FOLDER, "-silent", "-o", "-norec", "Offbeat.Answer"]
    )
    ran = run([checker, _compile("Check.v")], {**files, "Check.v": check.encode()}, most)
    if ran.failure:
        which = "coqchk" if len(ran.steps) == 1 else f"it does not prove the statement as {name}"
        raise BadAnswer(f"{which}: {ran.failure}")
    if why := unsafe(ran.steps[0].stderr) or assumed(ran.steps[1].stdout, axioms):
        raise BadAnswer(why)
    return Score(1.0, "proved")


def _compile(file: str) -> Step:
    return Step("coqc", [*_COMPILER, *_FOLDER, file])


def assumed(printed: str, allowed: set[str]) -> str:
    """What `Print Assumptions` lists beyond `allowed`, as a reason; empty if nothing. A line not understood is one.

    A name allows every library's axiom that ends with it: the answer's own are refused in any case (`unsafe`).
    """
    lines = printed.splitlines()
    if lines == ["Closed under the global context"]:
        return ""
    if not lines or lines[0] != "Axioms:":
        return f"assumptions that are no axioms: {' '.join(lines)[:200]}"
    for line in lines[1:]:
        if line.startswith(" "):
            continue  # the type goes on
        found = _ASSUMPTION.fullmatch(line)
        if found is None or not any(f".{found[1]}".endswith(f".{name}") for name in allowed):
            return f"it assumes {line[:200]}"
    return ""


def unsafe(summary: str) -> str:
    """What `coqchk -o` finds in the answer besides theorems from the kernel's rules, as a reason; empty if nothing.

    Axioms of libraries that the answer loads are listed whether or not it uses them: those are `assumed`'s to judge.
    """
    sections = re.split(r"^\* ", summary.partition("CONTEXT SUMMARY")[2], flags=re.MULTILINE)[1:]
    if not any(section.startswith("Axioms:") for section in sections):
        return "coqchk says nothing about axioms"
    for section in sections:
        title, _, content = section.partition(":")
        if own := [entry for entry in content.split() if entry.startswith("Offbeat.Answer.")]:
            return f"coqchk: {title.lower()}: {own[0][:200]}"
    return ""


def _without_comments(code: str) -> str:
    """The code without comments, which nest; strings go too."""
    kept, depth = [], 0
    for token in re.split(r'(\(\*|\*\)|"(?:[^"]|"")*")', code):
        if token == "(*":
            depth += 1
        elif token == "*)" and depth:
            depth -= 1
        elif not depth:
            kept.append(" " if token.startswith('"') else token)
    return " ".join(kept)
