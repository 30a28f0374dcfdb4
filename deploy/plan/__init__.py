"""How many actors and verifiers keep a learner busy, and what that gives: by arithmetic, then by simulation.

    python -m deploy.plan measure runs/mine seconds=30           # while the run goes on: writes runs/mine/rates.json
    python -m deploy.plan rates=runs/mine                        # how many actors and verifiers does it need?
    python -m deploy.plan rates=runs/mine actors=64 verifiers=4  # what would so many give?
    python -m deploy.plan rates=runs/mine stream.max_staleness=4 learner.tokens_per_second=80000 \\
        faults.actor_failure_hours=200 faults.slow_share=0.05 prices.actor_hour=2.5 prices.learner_hour=20

`rates.py` holds what is measured, `measure.py` takes it from a run that goes on, `records.py` from its directory,
`capacity.py` is the arithmetic, `simulation.py` the discrete events, `sizing.py` the search for the numbers. Every rate
may be given by hand: then no run is needed.

What is modelled: continuous batching (an engine step takes longer the more rollouts it decodes), the broker's
admission and order of batches, the pause and the delay of new weights, verifiers as a queue, groups that are dropped,
actors that are slow for good, actors that die and come back. What is not: prompts (their cost is in the measured step),
lengths that grow while a run learns, the network, a learner that dies (it loses the steps since its last checkpoint).
`tests/bench/plan.py` holds the predictions against real runs.
"""
