"""What the tests of reward `proof` have in common."""

from collections.abc import Mapping
from typing import Any

from protocol import reference as references
from verifier.worker import judge


def judged(code: str, reference: Mapping[str, Any], **metadata: Any) -> tuple[float | None, str]:
    """The value, None for a void check, and the reason of an answer that is `code` in a fenced block."""
    value, _, reason = judge(
        "proof", f"<think>so</think>\n```\n{code}\n```", references.dump(dict(reference)), metadata
    )
    return value, reason
