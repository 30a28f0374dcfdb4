"""Lean 4: is a theorem proved, by the word of a Kimina Lean Server?

The statement is elaborated before a line of the answer, under a name drawn anew; after the answer our own lines demand
its theorem at that type, show the type, and print its axioms. The answer counts only if what is said of them is exactly
those that an honest proof leads to, and nothing anywhere is an error or a `sorry`.

Lean's elaborator runs programs that a file contains, so what decides is in reach of an answer that is let program it.
Such an answer is refused before it is sent: commands that extend the syntax, run code, switch the kernel off or bind
variables for what follows have no place in a proof. Beyond that the server is trusted, and should be locked in itself.

Source: Kimina Lean Server (project-numina/kimina-lean-server), `POST /verify`; Lean 4 reference, "axioms".
"""

import json
import re
import secrets
from collections.abc import Mapping
from typing import Any

from verifier.relay_line import Unavailable
from verifier.rewards.committed_code import committed_code
from verifier.rewards.parameters import Parameters
from verifier.rewards.score import BadAnswer, BadTask, Score
from verifier.sandbox.access import access

SECONDS = 60.0  # of the server's clock, unless the task says otherwise
STANDARD_AXIOMS = ("propext", "Classical.choice", "Quot.sound")
KNOWN = ("kind", "imports", "preamble", "binders", "statement", "name", "axioms")
_IN_CODE, _IN_COMMENT = re.compile(r'/-|-/|--[^\n]*|"'), re.compile(r"/-|-/")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_']*(\.[A-Za-z_][A-Za-z0-9_']*)*")
_REFUSED = re.compile(
    r"(?<![\w.'])(sorry|sorryAx|admit|stop|axiom|opaque|unsafe|partial|import|prelude|module|macro|macro_rules|syntax"
    r"|declare_syntax_cat|elab|elab_rules|run_cmd|run_elab|run_meta|run_tac|by_elab|initialize|builtin_initialize"
    r"|set_option|notation|notation3|infix|infixl|infixr|prefix|postfix|binder_predicate|attribute|instance|variable"
    r"|include|omit|namespace|section|mutual|end|export|universe|deriving|simproc|dsimproc|native_decide|bv_decide"
    r"|Lean|IO|unseal|local|scoped)(?![\w'])|#|@\[|«|decide\s*\+\s*native|\bnative\b"
)
"""What lets a file program its own elaboration, or bind or assume something for our lines that follow."""


def lean_proof(text: str, reference: Mapping[str, Any], metadata: Mapping[str, Any]) -> Score:
    """1 if the code in `text` proves the task's statement as a theorem called `name`, else 0.

    The reference: `imports`, lines such as `import Mathlib`; `preamble`, what else comes before (`open Nat`);
    `binders` and `statement`, a proposition such as `a + b = b + a` under `(a b : ℕ)`; `name` of the theorem, `goal`
    if not given; `axioms` that it may use, Lean's three standard ones if not given. Raises `BadAnswer`, `BadTask`, and
    `Unavailable` where no server answers. Source: Kimina Lean Server.
    """
    task = Parameters(reference, "reference", KNOWN)
    name, axioms = task.text("name", "goal"), task.texts("axioms") or list(STANDARD_AXIOMS)
    if not _NAME.fullmatch(name):
        raise task.bad("name", "must be a name")
    mark = secrets.token_hex(16)
    head = stated(task, mark)
    seconds = Parameters({"seconds": metadata.get("seconds", SECONDS)}, "metadata", ("seconds",)).number("seconds")
    code = without_comments(committed_code(text))
    if found := _REFUSED.search(code):
        raise BadAnswer(f"{found[0]!r} has no place in a proof")
    source = f"{head}\n{code.strip()}\n"
    source += (
        f"theorem checked_{mark} : stated_{mark} := @{name}\n#check @checked_{mark}\n#print axioms checked_{mark}\n"
    )
    answered = _ask(source, mark, min(seconds, access.seconds))
    judge(answered, mark, head.count("\n") + 1, set(axioms))
    return Score(1.0, "proved")


def stated(task: Parameters, mark: str) -> str:
    """The task's part of the file, which comes first and ends with its statement under a name that nobody knows."""
    imports, preamble = task.text("imports", " ").strip(), task.text("preamble", " ").strip()
    binders, statement = task.text("binders", " ").strip(), task.text("statement").strip()
    proposition = f"∀ {binders}, {statement}" if binders else statement
    return f"{imports}\n{preamble}\ndef stated_{mark} : Prop := {proposition}\n"


def without_comments(code: str) -> str:
    """The code with a blank for each comment; comments nest. What is left has nothing that Lean could take for one.

    Raises `BadAnswer` for a comment left open, and for strings, which a proof does not need.
    """
    kept: list[str] = []
    depth = at = 0
    while found := (_IN_COMMENT if depth else _IN_CODE).search(code, at):
        kept.append("" if depth else code[at : found.start()] + " ")
        at = found.end()
        if found[0] in ('"', "-/") and not depth:
            raise BadAnswer(f"{found[0]!r} has no place in a proof")
        depth += {"/-": 1, "-/": -1}.get(found[0], 0)
    if depth:
        raise BadAnswer("a comment is not closed")
    return "".join(kept) + code[at:]


def judge(answered: Mapping[str, Any], mark: str, begins: int, axioms: set[str]) -> None:
    """Whether the server's result is an honest proof's. Lines before `begins` are the task's.

    Raises `BadAnswer`; `BadTask` for an error in the task's lines; `Unavailable` for a result that is none.
    """
    if error := answered.get("error"):
        if "header command timed out" in str(error):
            raise Unavailable(f"Lean server: {error}")
        if "timed out" in str(error):
            raise BadAnswer("timeout")
        raise Unavailable(f"Lean server: {str(error)[:300]}")
    response = answered.get("response")
    if not isinstance(response, Mapping):
        raise Unavailable(f"Lean server: no response but {str(answered)[:200]}")
    messages = [_message(each) for each in response.get("messages") or []]
    for line, severity, data in messages:
        if severity == "error":
            blame = BadTask if line < begins else BadAnswer
            raise blame(f"Lean, line {line - begins + 1}: {data[:300]}")
    if response.get("sorries") or any("sorry" in data for _, _, data in messages):
        raise BadAnswer("sorry")
    ours = [data.strip() for _, severity, data in messages if severity == "info" and mark in data]
    if len(ours) != 2:
        raise BadAnswer("the check at the end of the file was not reached as it stands")
    if re.sub(r"\s+", " ", ours[0]).removeprefix("@") != f"checked_{mark} : stated_{mark}":
        raise BadAnswer(f"it proves something else: {ours[0][:200]}")
    _compare_axioms(ours[1], mark, axioms)


def _compare_axioms(said: str, mark: str, allowed: set[str]) -> None:
    if said == f"'checked_{mark}' does not depend on any axioms":
        return
    found = re.fullmatch(rf"'checked_{mark}' depends on axioms: \[([^\]]*)\]", said)
    used = {axiom.strip() for axiom in found[1].split(",")} if found else {said[:100]}
    if refused := sorted(used - allowed):
        raise BadAnswer(f"it assumes {', '.join(refused)[:200]}")


def _message(message: Any) -> tuple[int, str, str]:
    """Line, severity and text."""
    try:
        return int(message["pos"]["line"]), str(message["severity"]), str(message["data"])
    except (KeyError, TypeError, ValueError):
        raise Unavailable(f"Lean server: a message that is none: {str(message)[:200]}") from None


def _ask(source: str, mark: str, seconds: float) -> Mapping[str, Any]:
    """The server's result for one file. Raises `Unavailable`."""
    whole = max(1, int(seconds) - 1)  # the server's timeout is in whole seconds; some of ours are for the way
    body = {"codes": [{"custom_id": mark, "proof": source}], "timeout": whole, "infotree_type": None}
    answer = access.server.ask(json.dumps(body).encode(), seconds)
    try:
        (result,) = json.loads(answer)["results"]
        other = result["custom_id"] != mark
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise Unavailable(f"Lean server: its answer is not understood: {error}") from None
    if other or not isinstance(result, Mapping):
        raise Unavailable("Lean server: its answer is about another file")
    return result
