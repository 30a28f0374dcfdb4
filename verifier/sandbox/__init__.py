"""Runs hostile programs where they can harm nothing: `Sandbox.run(Program(source=…)) → Outcome`.

Owner → keeper (outside, cleans up) → zygote (inside namespaces, a warm interpreter) → one locked-in process a check.
The threat model is in `verifier/README.md`.
"""

from verifier.sandbox.program import Limits, Outcome, Program
from verifier.sandbox.run import Run, SandboxError
from verifier.sandbox.sandbox import Sandbox

__all__ = ["Limits", "Outcome", "Program", "Run", "Sandbox", "SandboxError"]
