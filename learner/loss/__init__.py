"""The mathematics of the learner: pure functions of arrays, each with formula, source and the way in which it fails.

One sequence at a time or fewer numbers ([S], NumPy): `rewards` (shaping), `filters`, `advantages`, `aggregation`.
One token at a time ([N], torch): `tokens` (the legend), `anchored` and `weighted` (policy objectives), `corrections`
(for data of older policies), `proximal` (the trust-region anchor), `regularisers` (KL and entropy), put together in
`compose`. Nothing here knows of sockets, ranks or the run.
"""
