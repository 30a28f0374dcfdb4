"""Reward `proof`, Coq: real proofs win, and no forgery does. `make proof` fetches the compiler."""

import re
from pathlib import Path

import pytest
from proofs import judged

from verifier.rewards.proof import programs
from verifier.rewards.proof.coq import assumed, unsafe
from verifier.sandbox.sandbox import Sandbox

coq = pytest.mark.skipif(not (programs.has("coqc") and programs.has("coqchk")), reason="no Coq: run `make proof`")

SUM = {"kind": "coq", "imports": "Require Import Arith.", "statement": "forall n m : nat, n + m = m + n"}
FALSE = {"kind": "coq", "statement": "1 = 2"}
EXCLUDED = {"kind": "coq", "statement": "forall P : Prop, P \\/ ~ P"}
COLOURS = {
    "kind": "coq",
    "definitions": "Inductive colour := red | green.\n"
    "Definition swap c := match c with red => green | green => red end.",
    "statement": "forall c, swap (swap c) = c",
    "name": "swap_twice",
}
PROOF = "Theorem goal : forall n m : nat, n + m = m + n.\nProof. intros; apply Nat.add_comm. Qed."


@coq
@pytest.mark.parametrize(
    ("code", "task"),
    [
        (PROOF, SUM),
        ("Lemma zero n : n + 0 = n. Proof. induction n; simpl; congruence. Qed.\n"
         "Lemma next n m : n + S m = S (n + m). Proof. induction n; simpl; congruence. Qed.\n"
         "Theorem goal : statement. Proof. intros n m. induction n; simpl.\n"
         "now rewrite zero. now rewrite next, IHn. Qed. (* Admitted would do *)", SUM),
        ("Definition goal : forall a b : nat, a + b = b + a := Nat.add_comm.", SUM),
        ("Lemma swap_twice c : swap (swap c) = c.\nProof. now destruct c. Qed.", COLOURS),
        ("Require Import Classical. Theorem goal : statement. Proof. exact classic. Qed.",
         EXCLUDED | {"axioms": ["classic"]}),
    ],
)  # fmt: skip
def test_a_proof_is_accepted(proving: Sandbox, code: str, task: dict[str, object]) -> None:
    assert judged(code, task) == (1.0, "proved")


FORGERIES = {
    "an axiom": "Axiom goal : 1 = 2.",
    "a parameter": "Parameter goal : 1 = 2.",
    "an axiom in a module": "Module M. Axiom a : False. End M. Theorem goal : 1 = 2. Proof. destruct M.a. Qed.",
    "an axiom behind a functor": "Module Type T. Axiom a : False. End T. Declare Module D : T."
    " Theorem goal : 1 = 2. Proof. destruct D.a. Qed.",
    "a section variable": "Section s. Variable h : 1 = 2. Theorem goal : 1 = 2. Proof. exact h. Qed. End s.",
    "an open section": "Section s. Variable h : 1 = 2. Theorem goal : 1 = 2. Proof. exact h. Qed.",
    "admitted": "Theorem goal : 1 = 2. Proof. Admitted.",
    "admitted by another name": "Theorem goal : 1 = 2. Proof. Abort. Conjecture goal : 1 = 2.",
    "an unfinished proof": "Theorem goal : 1 = 2. Proof.",
    "another statement": "Theorem goal : 1 = 1. Proof. reflexivity. Qed.",
    "a redefined statement": "Definition statement : Prop := True. Theorem goal : statement. Proof. exact I. Qed.",
    "a module that plays the task": "Module Offbeat. Module Task. Definition statement := True. End Task."
    " Module Answer. Definition goal := I. End Answer. End Offbeat. Definition goal := I.",
    "a notation of the numbers": 'Notation "1 = 2" := True. Theorem goal : 1 = 2. Proof. exact I. Qed.',
    "a redefined equality": "Definition eq {A} (a b : A) := True. Notation \"a = b\" := (eq a b) : type_scope."
    " Theorem goal : 1 = 2. Proof. exact I. Qed.",
    "other numbers": "Inductive nat := O. Definition S (n : nat) := O. Theorem goal : S O = S (S O)."
    " Proof. reflexivity. Qed.",
    "a coercion into every statement": "Definition cheat (t : True) : forall P : Prop, P -> P := fun P p => p."
    " Coercion cheat : True >-> Funclass. Definition goal := I.",
    "recursion without a guard": "#[bypass_check(guard)] Fixpoint f (n : nat) : 1 = 2 := f n. Definition goal := f 0.",
    "the guard switched off": "Unset Guard Checking. Fixpoint f (n : nat) : 1 = 2 := f n. Definition goal := f 0.",
    "the guard switched off in another spelling": "Unset (* c *) Guard (* c *) Checking."
    " Fixpoint f (n : nat) : 1 = 2 := f n. Definition goal := f 0.",
    "positivity switched off": "Unset Positivity Checking. Inductive bad := B (f : bad -> False)."
    " Lemma no (b : bad) : False. Proof. destruct b as [f]. exact (f (B f)). Qed."
    " Theorem goal : 1 = 2. Proof. destruct (no (B no)). Qed.",
    "universes switched off": "Global Unset Universe Checking. Definition T : Type := Type. Axiom goal : 1 = 2.",
    "a plugin": 'Declare ML Module "coq-core.plugins.extraction". Definition goal := I.',
    "a file of its own": 'Redirect "Check" Print nat. Definition goal := I.',
    "another file": 'Load "/etc/passwd".',
    "an early end": "Definition goal := I. Quit.",
    "output that says it is closed": 'Goal True. idtac "Closed under the global context". exact I. Qed.'
    " Axiom goal : 1 = 2.",
    "options for whoever loads it": "Global Set Warnings \"-all\". Global Set Printing All. Axiom goal : 1 = 2.",
    "a string that hides a comment": 'Definition s := "(*". Axiom goal : 1 = 2. (* *)',
    "no theorem": "Theorem other : 1 = 1. Proof. reflexivity. Qed.",
    "the text of the check": "Definition checked := I. Print Assumptions checked.",
    "nothing": "",
}  # fmt: skip


@coq
@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_is_refused(proving: Sandbox, name: str) -> None:
    value, reason = judged(FORGERIES[name], FALSE)
    assert value == 0.0, reason


@coq
def test_what_decides_does_not_rest_on_forbidden_words(proving: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verifier.rewards.proof.coq._REFUSED", re.compile("(?!)"))
    for name in ("admitted", "the guard switched off", "positivity switched off", "an early end", "a file of its own"):
        value, reason = judged(FORGERIES[name], FALSE)
        assert value == 0.0, (name, reason)


@coq
def test_a_librarys_axiom_is_allowed_by_the_task_alone(proving: Sandbox) -> None:
    value, reason = judged("Require Import Classical. Definition goal := classic.", EXCLUDED)
    assert (value, "it assumes Classical_Prop.classic" in reason) == (0.0, True)
    value, reason = judged("Axiom classic : forall P : Prop, P \\/ ~ P. Definition goal := classic.",
                           EXCLUDED | {"axioms": ["classic"]})  # fmt: skip
    assert value == 0.0, reason


@coq
def test_a_proof_that_takes_too_long_scores_0_and_the_next_is_judged_right(proving: Sandbox) -> None:
    loop = "Ltac loop := idtac; loop. Theorem goal : 1 = 2. Proof. loop. Qed."
    assert judged(loop, FALSE, seconds=1.0) == (0.0, "coqc: cpu")
    assert judged(PROOF, SUM) == (1.0, "proved")


@coq
@pytest.mark.parametrize(
    "change",
    [{"statement": "forall n, n + "}, {"definitions": "Definition."}, {"name": "a b"}, {"statement": "nat"}, {"x": 1}],
)
def test_a_task_that_coq_does_not_take_is_void(proving: Sandbox, change: dict[str, object]) -> None:
    assert judged(PROOF, SUM | change)[0] is None


def test_a_host_without_coq_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, proving: Sandbox) -> None:
    monkeypatch.setattr(programs, "PLACES", (Path("/nowhere"),))
    value, reason = judged(PROOF, SUM | {"statement": "1 = 1"})
    assert (value, "make proof" in reason) == (None, True)


@pytest.mark.parametrize(
    ("printed", "allowed", "refused"),
    [
        ("Closed under the global context\n", set(), False),
        ("Axioms:\nClassical_Prop.classic : forall P : Prop, P \\/ ~ P\n", {"classic"}, False),
        ("Axioms:\nClassical_Prop.classic\n  : forall P : Prop,\n    P \\/ ~ P\n", {"Classical_Prop.classic"}, False),
        ("Axioms:\nAnticlassic : False\n", {"classic"}, True),
        ("Axioms:\nclassic : P\nbad : False\n", {"classic"}, True),
        ("Axioms:\nb.f is assumed to be guarded.\n", {"f", "b.f"}, True),
        ("Axioms:\nb.U relies on an unsafe hierarchy.\n", {"U"}, True),
        ("Section Variables:\nh : 1 = 2\n", {"h"}, True),
        ("Closed under the global context\nAxioms:\nbad : False\n", set(), True),
        ("", set(), True),
    ],
)
def test_assumptions_are_read_to_the_last_line(printed: str, allowed: set[str], refused: bool) -> None:
    assert bool(assumed(printed, allowed)) == refused


def test_coqchks_summary_is_refused_when_it_names_the_answer_or_is_not_there() -> None:
    fine = "CONTEXT SUMMARY\n===\n\n* Theory: Set is predicative\n\n* Axioms:\n    Coq.Logic.Classical_Prop.classic\n\n"
    assert unsafe(fine) == ""
    assert unsafe(fine + "* Constants/Inductives relying on unsafe (co)fixpoints:\n    Offbeat.Answer.f\n")
    assert unsafe("")
    assert unsafe("* Axioms: <none>\n")
