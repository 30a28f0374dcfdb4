"""Verifier: a pool of disposable workers that judge completions under a deadline."""
