"""Formal proofs as rewards: Coq, Metamath, SMT by z3, Lean by a server. `reward.py` chooses by the reference's kind."""
