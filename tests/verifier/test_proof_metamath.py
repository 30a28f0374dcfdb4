"""Reward `proof`, Metamath: the checker against known proofs, mutations, and Debian's `metamath` where it is there."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proofs import judged

from verifier.rewards.proof import metamath
from verifier.rewards.proof.metamath import proof_tokens, read_theorem, verify
from verifier.rewards.proof.programs import UNPACKED
from verifier.rewards.score import BadAnswer

PROGRAM = shutil.which("metamath") or shutil.which("metamath", path=str(UNPACKED / "bin"))

# demo0.mm of the Metamath book, section 2.2.2.
DEMO = """
$( a comment: th0 $a nothing $)
$c 0 + = -> ( ) term wff |- $.
$v t r s P Q $.
tt $f term t $. tr $f term r $. ts $f term s $. wp $f wff P $. wq $f wff Q $.
tze $a term 0 $.
tpl $a term ( t + r ) $.
weq $a wff t = r $.
wim $a wff ( P -> Q ) $.
a1 $a |- ( t = r -> ( t = s -> r = s ) ) $.
a2 $a |- ( t + 0 ) = t $.
${ min $e |- P $. maj $e |- ( P -> Q ) $. mp $a |- Q $. $}
"""
TASK = {"kind": "metamath", "database": DEMO, "theorem": "th1 $p |- t = t"}
NORMAL = (
    "tt tze tpl tt weq tt tt weq tt a2 tt tze tpl tt weq tt tze tpl tt weq tt tt weq wim tt a2 "
    "tt tze tpl tt tt a1 mp mp"
)
COMPRESSED = "( tze tpl weq a2 wim a1 mp ) ABCZADZAADZAEZJJKFLIAAGHH"

# A language with a rule that needs distinct variables, and one with a hypothesis of its own.
APART = """
$c set |- F $. $v x y z $. vx $f set x $. vy $f set y $. vz $f set z $.
${ $d x y $. ax $a |- F x y $. $}
${ h $e |- F x y $. rev $a |- F y x $. $}
"""


@pytest.mark.parametrize(
    "proof", [NORMAL, COMPRESSED, f"th1 $p |- t = t $= {NORMAL} $.", f"th1 $p |- 0 = t $= {COMPRESSED} $."]
)
def test_a_proof_is_accepted(proof: str) -> None:
    assert judged(proof, TASK)[0] == 1.0


def test_hypotheses_and_distinct_variables_of_the_theorem_count() -> None:
    task = {"kind": "metamath", "database": APART}
    assert judged("vx vy ax", task | {"theorem": "$d x y $. th $p |- F x y"})[0] == 1.0
    assert judged("vy vx vx vy ax rev", task | {"theorem": "$d x y $. th $p |- F y x"})[0] == 0.0
    assert judged("vx vy vx vy ax rev", task | {"theorem": "$d x y $. th $p |- F y x"})[0] == 1.0
    assert judged("vx vy th.1 rev", task | {"theorem": "th.1 $e |- F x y $. th $p |- F y x"})[0] == 1.0
    assert judged("( rev ) ABCD", task | {"theorem": "th.1 $e |- F x y $. th $p |- F y x"})[0] == 1.0
    value, reason = judged("vx vy ax", task | {"theorem": "th $p |- F x y"})
    assert (value, "must be distinct" in reason) == (0.0, True)
    value, reason = judged("vx vx ax", task | {"theorem": "$d x y $. th $p |- F x x"})
    assert (value, "must be distinct" in reason) == (0.0, True)
    assert judged("vx vy ax", task | {"theorem": "$d x z $. $d y z $. th $p |- F x y"})[0] == 0.0


@pytest.mark.parametrize(
    ("proof", "why"),
    [
        ("th1", "no 'th1'"),
        ("?", "gaps"),
        ("( ? ) ?", "gaps"),
        (NORMAL.replace("a2", "?", 1), "gaps"),
        (NORMAL.removesuffix(" mp"), "leaves"),
        (NORMAL + " tt", "leaves"),
        ("tt a2", "which is not the statement"),
        ("min", "no 'min'"),
        ("maj", "no 'maj'"),
        ("mp", "needs 4"),
        (NORMAL.replace("weq", "tpl", 1), "must be a wff"),
        (NORMAL.replace("tze", "tt", 1), "not the m"),
        (f"{NORMAL} $. bad $a |- t = t $. $( ", "no place"),
        ("bad $a |- t = t $. th1 $p |- t = t $= bad $.", "no 'bad'"),
        (f"$= {NORMAL} $. $= x $.", "no place"),
        ("$= $.", "no proof"),
        ("$[ /etc/passwd $]", "no place"),
        ("( tze tpl", "not closed"),
        ("( tt ) A", "twice"),
        ("( tze ) Z", "'Z'"),
        ("( tze ) AZZ", "'Z'"),
        ("( tze ) AU", "within a number"),
        ("( tze ) D", "no step"),
        ("( tze ) a", "'a'"),
        ("( tze ) " + "Y" * 50 + "A", "too large"),
        ("( ) ", "leaves 0"),
    ],
)
def test_a_forgery_scores_0_with_the_reason(proof: str, why: str) -> None:
    value, reason = judged(proof, TASK)
    assert (value, why in reason) == (0.0, True), reason


def test_a_proof_that_doubles_its_statement_without_end_is_stopped() -> None:
    value, reason = judged("( tpl ) A" + "Z".join(["AAB", "CCB", *[f"{c}{c}B" for c in "DEFGHIJKLMNOPQRST"] * 1]), TASK)
    assert value == 0.0
    doubling = "( tpl ) AABZ" + "".join(f"{c}{c}BZ" for c in "CDEFGHIJKLMNOPQRST") + "UAUABZ" + "UBUBBZ" * 6
    value, reason = judged(doubling, TASK)
    assert (value, reason) == (0.0, "the proof is too long to be checked")


@pytest.mark.parametrize(
    "change",
    [
        {"database": "$c a"},
        {"database": DEMO + "${"},
        {"database": DEMO + "$}"},
        {"database": DEMO + "$( open"},
        {"database": DEMO + "tze $a term 0 $."},
        {"database": DEMO + "$[ other.mm $]"},
        {"database": DEMO + "$v u $. no $a |- u = u $."},
        {"theorem": "th1 $a |- t = t $."},
        {"theorem": "th1 $p |- t = unknown"},
        {"theorem": "$p |- t = t"},
        {"theorem": "mp $p |- t = t"},
        {"database": " " * (metamath.MOST_DATABASE_CHARACTERS + 1)},
    ],
)
def test_a_bad_database_is_void(change: dict[str, str]) -> None:
    assert judged(NORMAL, TASK | change)[0] is None


LABELS = sorted(set(NORMAL.split()))
THEOREM = read_theorem(DEMO, "th1 $p |- t = t")


def accepted(proof: str) -> bool:
    try:
        verify(THEOREM, proof_tokens(proof))
    except BadAnswer:
        return False
    return True


@settings(max_examples=300, deadline=None, database=None)
@given(st.integers(0, len(NORMAL.split()) - 1), st.sampled_from(LABELS), st.sampled_from(["change", "insert", "drop"]))
def test_no_mutation_of_the_proof_is_one(at: int, label: str, way: str) -> None:
    steps = NORMAL.split()
    mutated = steps[:at] + ([] if way == "drop" else [label]) + steps[at + (way != "insert") :]
    assert accepted(" ".join(mutated)) == (mutated == steps)


@settings(max_examples=300, deadline=None, database=None)
@given(st.text(alphabet="ABCDEFGHIJKLTUYZ? ()$", max_size=30))
def test_any_text_is_judged_and_none_of_these_proves(text: str) -> None:
    assert not accepted("( tze tpl ) " + text)


@pytest.mark.skipif(PROGRAM is None, reason="no metamath: run `make proof`")
def test_debians_metamath_judges_the_same(tmp_path: Path) -> None:
    letters = COMPRESSED.rpartition(" ")[2]
    proofs = [NORMAL, COMPRESSED, "tt a2"]
    proofs += [" ".join([*NORMAL.split()[:at], *NORMAL.split()[at + 1 :]]) for at in range(0, 30, 5)]
    proofs += [COMPRESSED.replace(letters, letters[:at] + "C" + letters[at + 1 :]) for at in range(len(letters))]
    source = DEMO + "".join(f"m{number} $p |- t = t $= {proof} $.\n" for number, proof in enumerate(proofs))
    (tmp_path / "all.mm").write_text(source)
    assert PROGRAM is not None
    wanted = [accepted(proof) for proof in proofs]
    for number, right in enumerate(wanted):
        command = [PROGRAM, "set scroll continuous", "read all.mm", f"verify proof m{number}", "exit"]
        said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=20, check=False).stdout
        assert (re.search(r"\?Error|\?Warning", said.rpartition("verify proof")[2]) is None) == right, (
            proofs[number],
            said,
        )
    assert wanted.count(True) == 2 + sum(each == COMPRESSED for each in proofs[9:])
