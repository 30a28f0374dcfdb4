"""Reward `proof`, Lean: what is asked of the server, what of its answers counts, and what is the server's fault."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lean_double import LeanServer, Result, elaborated, lean_server, message
from proofs import judged
from verifier_doubles import StartVerifier

from protocol import reference as references
from verifier.relay import Relay
from verifier.relay_line import RelayLine
from verifier.sandbox.access import access

TASK = {"kind": "lean", "imports": "import Mathlib", "preamble": "open Nat", "statement": "2 + 2 = 4"}
PROOF = "theorem goal : 2 + 2 = 4 := by rfl"


class NoSandbox:
    """Lean's rewards run no program here."""


@pytest.fixture
def lean() -> Iterator[LeanServer]:
    with lean_server() as server:
        relay = Relay(server.address)
        with relay.connect() as line:
            access.grant(NoSandbox(), RelayLine(line))  # type: ignore[arg-type]
            yield server
            access.reset()
        relay.close()


def test_a_proof_is_accepted_and_the_server_is_asked_as_its_protocol_has_it(lean: LeanServer) -> None:
    assert judged(PROOF, TASK, seconds=30) == (1.0, "proved")
    (request,) = lean.requests
    assert set(request) == {"codes", "timeout", "infotree_type"}
    assert request["timeout"] == 29
    (code,) = request["codes"]
    assert set(code) == {"custom_id", "proof"}
    lines = code["proof"].splitlines()
    mark = code["custom_id"]
    assert lines[0] == "import Mathlib"
    assert lines.index(f"def stated_{mark} : Prop := 2 + 2 = 4") < lines.index(PROOF) < len(lines) - 3
    assert lines[-3:] == [
        f"theorem checked_{mark} : stated_{mark} := @goal", f"#check @checked_{mark}", f"#print axioms checked_{mark}",
    ]  # fmt: skip


def test_binders_a_name_and_comments(lean: LeanServer) -> None:
    task = TASK | {"binders": "(a b : ℕ)", "statement": "a + b = b + a", "name": "Sum.comm'"}
    code = "/- sorry /- axiom -/ -/ theorem Sum.comm' : ∀ (a b : ℕ), a + b = b + a := by rfl -- sorry"
    assert judged(code, task) == (1.0, "proved")
    assert "sorry" not in lean.requests[0]["codes"][0]["proof"]


def test_standard_axioms_may_be_used_unless_the_task_says_otherwise(lean: LeanServer) -> None:
    assert judged("theorem goal : 2 + 2 = 4 := by choose", TASK)[0] == 1.0
    value, reason = judged("theorem goal : 2 + 2 = 4 := by choose", TASK | {"axioms": ["propext"]})
    assert (value, reason) == (0.0, "it assumes Classical.choice")
    assert judged("theorem goal : 2 + 2 = 4 := by cheat", TASK) == (0.0, "it assumes trust")


@pytest.mark.parametrize(
    "code",
    [
        "theorem goal : 2 + 2 = 5 := by rfl",
        "theorem goal : 2 + 2 = 4 := by simp",
        "theorem other : 2 + 2 = 4 := by rfl",
    ],
)
def test_what_lean_refuses_scores_0(lean: LeanServer, code: str) -> None:
    assert judged(code, TASK)[0] == 0.0
    assert len(lean.requests) == 1


FORGERIES = [
    "theorem goal : 2 + 2 = 4 := by sorry",
    "theorem goal : 2 + 2 = 4 := by { simp; admit }",
    "theorem goal : 2 + 2 = 4 := sorryAx _",
    "axiom goal : 2 + 2 = 4",
    "unsafe def f := 1",
    "opaque f : 2 + 2 = 4",
    "set_option debug.skipKernelTC true",
    "open Lean Elab in run_cmd addDecl x",
    "#eval 1",
    "#print axioms goal",
    "macro_rules | `(x) => `(y)",
    'elab "x" : tactic => pure ()',
    "notation a \" = \" b => True",
    "local infixl:65 (priority := high) x => y",
    "@[simp] theorem goal : 2 + 2 = 4 := by rfl",
    "attribute [-instance] x",
    "instance : Coe True (2 + 2 = 4) := x",
    "variable [Fact False]",
    "include h",
    "namespace X",
    "end",
    "initialize x : IO Unit",
    "theorem goal : 2 + 2 = 4 := by native_decide",
    "theorem goal : 2 + 2 = 4 := by decide +native",
    "import Other",
    "/- open",
    "theorem goal : 2 + 2 = 4 := by rfl -/",
    'theorem goal : "--" = "--" := by rfl',
    "theorem «goal» : 2 + 2 = 4 := by rfl",
    "/- -- -/ axiom goal : 2 + 2 = 4",
]  # fmt: skip


@pytest.mark.parametrize("code", FORGERIES)
def test_what_could_program_the_check_is_refused_before_it_is_sent(lean: LeanServer, code: str) -> None:
    value, reason = judged(f"{code}\n{PROOF}", TASK)
    assert (value, lean.requests) == (0.0, []), reason


def test_ordinary_proofs_are_not_taken_for_forgeries(lean: LeanServer) -> None:
    code = f"""lemma help (n : ℕ) (h : n % 2 = 0) : ∃ k, n = 2 * k := by
  obtain ⟨k, hk⟩ := Nat.dvd_of_mod_eq_zero h
  exact ⟨k, by simpa using hk⟩  -- the end
{PROOF}"""
    assert judged(code, TASK)[0] == 1.0


def forged(change: Any) -> Any:
    """A server's reply whose messages `change` has been at."""

    def reply(source: str) -> Result:
        response = elaborated(source)
        response["messages"] = change(source, response["messages"])
        return {"response": response}

    return reply


@pytest.mark.parametrize(
    "change",
    [
        lambda source, messages: [],
        lambda source, messages: messages[:1],
        lambda source, messages: messages[1:],
        lambda source, messages: messages * 2,
        lambda source, messages: [
            {**each, "data": each["data"].replace(" : ", " : [Fact False] → ")} for each in messages
        ],
        lambda source, messages: [{**each, "data": "X." + each["data"]} for each in messages],
        lambda source, messages: [*messages, message(source, "#check", "warning", "declaration uses 'sorry'")],
        lambda source, messages: [*messages, message(source, "#check", "error", "kernel: invalid")],
        lambda source, messages: [message(source, "#check", "info", "'checked' does not depend on any axioms")] * 2,
    ],
)  # fmt: skip
def test_messages_that_no_honest_proof_leads_to_score_0(lean: LeanServer, change: Any) -> None:
    lean.reply = forged(change)
    assert judged(PROOF, TASK)[0] == 0.0


def test_a_sorry_that_only_the_server_saw_scores_0(lean: LeanServer) -> None:
    lean.reply = lambda source: {"response": {**elaborated(source), "sorries": [{"goal": "⊢ False"}]}}
    assert judged(PROOF, TASK) == (0.0, "sorry")


def test_a_proof_that_takes_lean_too_long_scores_0(lean: LeanServer) -> None:
    lean.reply = lambda source: {"error": "Lean REPL command timed out in 29 seconds", "response": None}
    assert judged(PROOF, TASK) == (0.0, "timeout")


@pytest.mark.parametrize(
    "change", [{"statement": "unknown_constant"}, {"name": "a b"}, {"statement": 3}, {"extra": "x"}]
)
def test_a_task_that_lean_does_not_take_is_void(lean: LeanServer, change: dict[str, Any]) -> None:
    assert judged("theorem goal : unknown_constant := by rfl", TASK | change)[0] is None


@pytest.mark.parametrize(
    "reply",
    [
        {"error": "Lean REPL header command timed out in 29 seconds"},
        {"error": "REPL crashed"},
        {"response": None},
        {"response": {"message": "unknown environment"}, "error": "Unknown"},
        {"response": {"messages": [{"data": "x"}]}},
        {"custom_id": "another", "response": {}},
    ],
)
def test_a_server_that_fails_voids_the_check(lean: LeanServer, reply: Result) -> None:
    lean.reply = lambda source: reply
    value, reason = judged(PROOF, TASK)
    assert (value, reason.startswith("Lean server")) == (None, True), reason


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"results": []}', b'{"results": [3]}', b"[" * 100_000])
def test_an_answer_that_is_none_voids_the_check(lean: LeanServer, body: bytes) -> None:
    lean.body = body
    assert judged(PROOF, TASK)[0] is None


@pytest.mark.parametrize(("statuses", "value"), [([503], 1.0), ([429, 429], 1.0), ([500], None), ([401], None)])
def test_a_busy_server_is_asked_again_and_a_broken_one_voids(
    lean: LeanServer, statuses: list[int], value: float | None
) -> None:
    lean.statuses = statuses
    assert judged(PROOF, TASK)[0] == value


def test_no_server_voids_the_check_and_the_relay_lives_on(lean: LeanServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}"
    relay = Relay(nowhere)
    with relay.connect() as line:
        access.grant(NoSandbox(), RelayLine(line))  # type: ignore[arg-type]
        for _ in range(2):
            value, reason = judged(PROOF, TASK, seconds=0.3)
            assert (value, "cannot be asked" in reason) == (None, True), reason
    relay.close()


def test_without_a_server_the_cure_is_named() -> None:
    access.reset()
    value, reason = judged(PROOF, TASK)
    assert (value, "verifier.lean_server" in reason) == (None, True)


def test_a_server_that_never_answers_voids_the_check_in_time(lean: LeanServer) -> None:
    lean.delay_seconds = 1.5
    value, reason = judged(PROOF, TASK, seconds=0.5)
    assert (value, "timed out" in reason) == (None, True), reason


def test_the_verifier_judges_lean_from_a_worker_without_network(start_verifier: StartVerifier, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret-key\n")
    with lean_server() as server:
        verifier = start_verifier(f"verifier.lean_server={server.address}", f"verifier.lean_key_file={key}")
        task = references.dump(TASK)
        assert verifier.judge(f"```lean\n{PROOF}\n```", task, reward="proof").reward == 1.0
        assert verifier.judge(f"```lean\n{PROOF.replace('rfl', 'sorry')}\n```", task, reward="proof").reward == 0.0
        assert server.keys == ["Bearer secret-key"]
        server.body = json.dumps({"detail": "down"}).encode()
        assert verifier.judge(f"```lean\n{PROOF}\n```", task, reward="proof").reward is None
