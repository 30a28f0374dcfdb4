"""Runs hostile programs where they can harm nothing: `Sandbox().run(Program(source=…)) → Outcome`.

Owner (`sandbox.Sandbox`) → keeper (outside, cleans up) → zygote (inside namespaces, a warm interpreter) → one
locked-in process a check. The threat model is in `verifier/README.md`. Nothing is imported here: what the zygote does
not load, no check has in its memory, and no fork has to copy.
"""
