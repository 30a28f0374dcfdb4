"""Rates of a run that never was, all rollouts alike unless lengths are given."""

from deploy.plan.rates import ActorRate, LearnerRate, Rates, Stream, VerifierRate, check


def rates(
    *,
    length: int = 50,
    lengths: tuple[int, ...] = (),
    group_size: int = 4,
    groups: int = 16,
    staleness: int = 2,
    step: float = 0.01,
    rollout: float = 0.001,
    batch: int = 16,
    fetch: float = 0.0,
    swap: float = 0.0,
    check_seconds: float = 0.0,
    workers: int = 1,
    trained: float = 2000.0,
    overhead: float = 0.0,
    dropped: float = 0.0,
    silence: float = 1.0,
) -> Rates:
    """As the names say; the room of an actor is 1.5 batches."""
    return check(
        Rates(
            actor=ActorRate(
                step_seconds=step,
                rollout_seconds=rollout,
                max_num_seqs=batch,
                room=batch * 3 // 2,
                fetch_seconds=fetch,
                swap_seconds=swap,
            ),
            verifier=VerifierRate(check_seconds=check_seconds, workers=workers),
            learner=LearnerRate(tokens_per_second=trained, step_seconds=overhead),
            stream=Stream(
                group_size=group_size,
                groups_per_step=groups,
                max_staleness=staleness,
                dropped_share=dropped,
                silence_seconds=silence,
            ),
            lengths=lengths or (length,),
        )
    )
