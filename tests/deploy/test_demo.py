"""What `make demo-scale` tells of the steps before and after."""

from run_files import row

from deploy.local.demo import COMPARED, SCALE_AFTER, STEPS, compare


def run(joined: int) -> list[dict[str, object]]:
    """Steps of 2 s, half of which is waiting, then of 1 s without, once a second actor is there."""

    def step(number: int) -> dict[str, object]:
        after = number >= joined
        seconds = {"receive": 0.0 if after else 1.0, "total": 1.0 if after else 2.0}
        rate = 9000.0 if after else 4500.0
        return row(number, actors=2 if after else 1, seconds=seconds, generated_tokens_per_second=rate)

    return [step(number) for number in range(1, STEPS + 1)]


def test_medians_before_and_after_are_told_and_a_pause_of_the_machine_does_not_count() -> None:
    rows = run(joined=SCALE_AFTER + 5)
    rows[7]["seconds"] = {"receive": 200.0, "total": 201.0}
    before, after = compare(rows, 1)
    assert before.startswith(f"1 actor, steps 4 to {SCALE_AFTER}: 4,500 tokens/s")
    assert before.endswith("a step takes 2.00 s, the learner waits 50% of it")
    assert after.startswith(f"2 actors, steps {STEPS - COMPARED + 1} to {STEPS}: 9,000 tokens/s")
    assert after.endswith("a step takes 1.00 s, the learner waits 0% of it")


def test_actors_that_come_too_late_are_not_compared() -> None:
    assert "did not join in time" in compare(run(joined=STEPS), 1)[0]
    assert "did not join in time" in compare(run(joined=STEPS + 1), 1)[0]
