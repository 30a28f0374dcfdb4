"""Reward `proof`: is a formal proof complete and of the statement that the task makes? Range 0, 1.

The reference is JSON with a `kind`: `coq`, `metamath`, `smt` or `lean`. What each reads is in its file's docstring.
"""

from collections.abc import Callable, Mapping
from typing import Any

from protocol import reference as references
from verifier.rewards.proof.coq import coq_proof
from verifier.rewards.proof.lean import lean_proof
from verifier.rewards.proof.metamath import metamath_proof
from verifier.rewards.proof.smt import smt_proof
from verifier.rewards.score import BadTask, Score

KINDS: dict[str, Callable[[str, Mapping[str, Any], Mapping[str, Any]], Score]] = {
    "coq": coq_proof,
    "lean": lean_proof,
    "metamath": metamath_proof,
    "smt": smt_proof,
}


def proof_reward(text: str, reference: str, metadata: Mapping[str, Any]) -> Score:
    """1 if `text` commits to what `reference` asks for and the system of its `kind` accepts it, else 0.

    `metadata` may say `seconds` (of CPU, or of the Lean server's clock) and `memory_bytes`. Raises `BadAnswer`,
    `BadTask` (also for a system that this host lacks: the text says how to get it), `Unavailable`, `SandboxError`.
    """
    try:
        task = references.load(reference)
    except ValueError as error:
        raise BadTask(f"reference: {error}") from None
    if not isinstance(task, dict) or task.get("kind") not in KINDS:
        raise BadTask(f"reference: an object whose kind is one of {', '.join(KINDS)} is wanted")
    return KINDS[task["kind"]](text, task, metadata)
