"""Reward `proof`, SMT: right models, claims and formalisations win; what leaves z3 the work, or lies, does not."""

import importlib.util
import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proofs import judged

from verifier.rewards.proof import programs
from verifier.rewards.proof.sexpr import Expression, read, write
from verifier.sandbox.sandbox import Sandbox

z3 = pytest.mark.skipif(importlib.util.find_spec("z3") is None, reason="no z3: pip install 'offbeat[proof]'")

BOX = "(set-logic ALL) (declare-const x Int) (declare-fun y () Int) (assert (and (> x 2) (= (+ x y) 10))) (check-sat)"
MODEL = {"kind": "smt", "task": "model", "formula": BOX}
EQUIVALENT = {"kind": "smt", "task": "equivalent", "formula": BOX}
FUNCTION = {
    "kind": "smt",
    "task": "model",
    "formula": "(declare-fun f (Int) Int) (assert (and (= (f 1) 4) (= (f 2) 7)))",
}
HALF = {"kind": "smt", "task": "model", "formula": "(declare-const r Real) (assert (= (* 2 r) 1))"}
NAMED = EQUIVALENT | {"formula": "(declare-const x Int) (define-fun phi () Bool (> x 2)) (assert phi)"}
UNSAT = "(declare-const p Bool) (assert (and p (not p)))"


@z3
@pytest.mark.parametrize(
    ("answer", "task"),
    [
        ("(define-fun x () Int 3)\n(define-fun y () Int 7) ; so", MODEL),
        ("sat\n(\n  (define-fun y () Int (- 90))\n  (define-fun x () Int 100)\n)", MODEL),
        ("(model (define-fun x () Int 4) (define-fun y () Int 6))", MODEL),
        ("(define-fun f ((n Int)) Int (+ 1 (* 3 n)))", FUNCTION),
        ("(define-fun f ((n Int)) Int (ite (= n 1) 4 7))", FUNCTION),
        ("(define-fun r () Real (/ 1.0 2.0))", HALF),
        ("(define-fun r () Real 0.5)", HALF),
        ("(assert (>= x 3)) (assert (= y (- 10 x)))", EQUIVALENT),
        ("(declare-const x Int) (declare-fun y () Int)"
         "(define-fun ten () Int 10) (assert (and (< 2 x) (= (+ y x) ten)))",
         EQUIVALENT),
        ("(define-fun and () Int 3) (assert (>= x and)) (assert (= y (- 10 x)))", EQUIVALENT),
        ("sat", {"kind": "smt", "task": "status", "formula": BOX}),
        ("unsat", {"kind": "smt", "task": "status", "formula": UNSAT}),
    ],
)  # fmt: skip
def test_a_right_answer_is_accepted(proving: Sandbox, answer: str, task: dict[str, object]) -> None:
    assert judged(answer, task)[0] == 1.0


@z3
@pytest.mark.parametrize(
    ("answer", "task"),
    [
        ("(define-fun x () Int 3) (define-fun y () Int 8)", MODEL),
        ("(define-fun x () Int 3)", MODEL),
        ("", MODEL),
        ("sat", MODEL),
        ("(define-fun x () Int 3) (define-fun y () Int 7) (define-fun x () Int 3)", MODEL),
        ("(define-fun x () Int 3) (define-fun y () Int (- 10 x))", MODEL),
        ("(define-fun x () Int 3) (define-fun y () Int (div 7 0))", MODEL),
        ("(define-fun x () Int 3) (define-fun y () Int (ite (exists ((k Int)) (= k 7)) 7 0))", MODEL),
        ("(define-fun x () Real 3) (define-fun y () Int 7)", MODEL),
        ("(declare-const x Int) (declare-fun y () Int)", MODEL),
        ("(define-fun x () Int 3) (define-fun y () Int 8) (reset) (assert true)", MODEL),
        ("(define-fun x () Int 3) (define-fun y () Int 8) (echo \"sat\")", MODEL),
        ("(define-fun x () Int 3) (define-fun y () Int 8)) (check-sat) (exit", MODEL),
        ("(define-fun x () Int 3) (define-fun y () Int |8|)", MODEL),
        ("(define-fun r () Real (/ 1.0 0.0))", HALF),
        ("(define-fun r () Real (/ 1.0 0))", HALF),
        ("(define-fun r () Real (/ 1.0 (- 1.0 1.0)))", HALF),
        ("(define-fun f ((/ Int)) Int /)", FUNCTION),
        ("(define-fun f ((n Int)) Int (f n))", FUNCTION),
        ("(assert (> x 2))", EQUIVALENT),
        ("(assert false)", EQUIVALENT),
        ("(assert true)", EQUIVALENT),
        ("(declare-const z Int) (assert (and (> x 2) (= (+ x y) 10)))", EQUIVALENT),
        ("(declare-const x Real) (assert (and (> x 2) (= (+ x y) 10)))", EQUIVALENT),
        ("(define-fun = ((a Bool) (b Bool)) Bool true) (assert true)", EQUIVALENT),
        ("(define-fun not ((a Bool)) Bool false) (assert true)", EQUIVALENT),
        ("(define-fun x () Int 3) (assert true)", EQUIVALENT),
        ("(assert true) (push 1) (assert false)", EQUIVALENT),
        ("(assert true)) (check-sat) (assert (= 1 1)", EQUIVALENT),
        ("(assert (! true :named reference))", EQUIVALENT),
        ("(assert task!phi)", NAMED),
        ("(assert phi)", NAMED),
        ("(assert (= x 2)", EQUIVALENT),
        ("(assert " + "(not " * 300 + "true" + ")" * 301, EQUIVALENT),
        ("(set-option :produce-models true) (assert true)", EQUIVALENT),
        ("unsat", {"kind": "smt", "task": "status", "formula": BOX}),
        ("sat unsat", {"kind": "smt", "task": "status", "formula": BOX}),
    ],
)  # fmt: skip
def test_a_wrong_or_forged_answer_scores_0(proving: Sandbox, answer: str, task: dict[str, object]) -> None:
    value, reason = judged(answer, task)
    assert value == 0.0, reason


@z3
@pytest.mark.parametrize(
    "change",
    [
        {"formula": "(assert (> q 1))"},
        {"formula": "(assert"},
        {"formula": "(declare-const x Int)"},
        {"formula": "(declare-const x Int) (assert (> x 1)) (get-proof)"},
        {"task": "proof"},
        {"extra": 1},
    ],
)
def test_a_bad_formula_is_void(proving: Sandbox, change: dict[str, object]) -> None:
    assert judged("sat", {"kind": "smt", "task": "status", "formula": BOX} | change)[0] is None


HARD = """(declare-const x Int) (declare-const y Int) (declare-const z Int)
(assert (= (+ (* x x x) (* y y y) (* z z z)) 114))"""


@z3
def test_what_nobody_can_decide_is_void_without_a_say_of_the_answer_and_0_with_one(proving: Sandbox) -> None:
    assert judged("sat", {"kind": "smt", "task": "status", "formula": HARD}, seconds=1.0)[0] is None
    assert judged("(assert (= x 1))", {"kind": "smt", "task": "equivalent", "formula": HARD}, seconds=1.0)[0] == 0.0


@z3
def test_every_small_model_is_judged_as_arithmetic_says(proving: Sandbox) -> None:
    for x, y in itertools.product((2, 3, 9), (1, 7)):
        value, _ = judged(f"(define-fun x () Int {x}) (define-fun y () Int {y})", MODEL)
        assert value == float(x > 2 and x + y == 10)


def test_a_host_without_z3_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, proving: Sandbox) -> None:
    monkeypatch.setattr(programs, "PLACES", (Path("/nowhere"),))
    value, reason = judged("(define-fun x () Int 3) (define-fun y () Int 7)", MODEL)
    assert (value, "offbeat[proof]" in reason) == (None, True)


ATOMS = st.from_regex(r"[a-z!+<=-][a-z0-9!]{0,5}|[0-9]{1,3}|\"[a-z ();|]{0,4}\"", fullmatch=True)
TREES = st.recursive(ATOMS, lambda inner: st.lists(inner, max_size=4), max_leaves=20)


@settings(max_examples=60, deadline=None, database=None)
@given(st.lists(TREES, max_size=4))
def test_what_is_written_is_read_back(expressions: list[Expression]) -> None:
    assert read("\n".join(map(write, expressions))) == expressions


@settings(max_examples=100, deadline=None, database=None)
@given(st.text(alphabet='()|";a1 \n\\', max_size=30))
def test_any_text_is_read_or_refused_and_reads_the_same_again(text: str) -> None:
    try:
        expressions = read(text)
    except ValueError:
        return
    assert read(" ".join(map(write, expressions))) == expressions
