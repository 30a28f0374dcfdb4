"""What must be true of a journal and a ledger, whatever was killed and whenever."""

from itertools import pairwise
from typing import Any

from chaos_roles import completion, reward_of, text_of

from learner.broker.config import TaskConfig
from learner.broker.groups import sample_seeds
from learner.broker.inspect import Contents
from learner.broker.tasks import open_tasks

RUN_SEED = 0
LIVE = ("pending", "leased", "verifying", "ready", "handed_out")

Line = dict[str, Any]


def steps(ledger: list[Line]) -> dict[int, Line]:
    """Every step by the version that it consumed. A step that was made anew is the same as before, sample by sample.

    A learner begins where an earlier one stood, and then makes one step after the other: no gap, nothing twice.
    """
    made: dict[int, Line] = {}
    version = 0
    for line in ledger:
        if line["event"] == "begins":
            assert line["version"] in {0, *(version + 1 for version in made)}, f"begins at {line['version']}"
            version = line["version"]
        elif line["event"] == "trains":
            assert line["version"] == version, f"step {line['version']} after {version - 1}"
            assert made.setdefault(version, line) == line, f"step {version} was another one before"
            version += 1
    return made


def check_steps(made: dict[int, Line], *, groups_per_step: int, group_size: int, max_staleness: int) -> None:
    """No group twice, no token too old, every token and every reward as they must be, nothing void."""
    trained = [group for line in made.values() for group in line["groups"]]
    assert len(trained) == len(set(trained)) == groups_per_step * len(made), "a group is trained twice"
    tasks = open_tasks(TaskConfig(), RUN_SEED)
    for version, line in made.items():
        leased_at = dict(zip(line["groups"], line["lease_versions"], strict=True))
        for group, sample, text, reward, task, tokens, versions in line["samples"]:
            seed = sample_seeds(RUN_SEED, group, group_size)[sample]
            assert tokens == completion(seed).tolist(), f"group {group}: tokens of another sample"
            assert text == text_of(tokens)
            assert reward is not None
            assert reward == reward_of(text), f"group {group}: {text!r} got {reward}"
            assert task == tasks.task_id(group)
            assert leased_at[group] <= min(versions)
            assert version - min(versions) <= max_staleness, f"step {version} trains tokens of {min(versions)}"
        samples = [(group, sample) for group, sample, *_ in line["samples"]]
        assert len(samples) == len(set(samples))
        for group in line["groups"]:
            assert sum(each == group for each, _ in samples) >= 2


def check_journal(found: Contents, made: dict[int, Line]) -> None:
    """Every group that was ever leased is trained, dropped with a reason, or live, and one of them only."""
    trained = [group for version in range(found.policy_version) for group in made[version]["groups"]]
    live = [group for stage in LIVE for group in found.groups[stage]]
    everywhere = sorted([*trained, *live, *found.dropped])
    assert everywhere == list(range(found.next_group)), f"lost or twice: {odd(everywhere, found.next_group)}"
    assert all(found.dropped.values()), "each drop has a reason"
    assert sum(found.dropped_by_reason.values()) == len(found.dropped)
    assert found.groups_trained == len(trained)
    assert found.groups_granted == len(trained) + len(live)
    kept = {version: tuple(made[version]["groups"]) for version in range(found.retained_from, found.policy_version)}
    assert {version: ids for version, ids in found.batches.items() if version < found.policy_version} == kept
    assert sorted(found.groups["trained"]) == sorted(group for ids in kept.values() for group in ids)
    if found.policy_version in made and found.policy_version in found.batches:
        assert found.batches[found.policy_version] == tuple(made[found.policy_version]["groups"])


def odd(groups: list[int], end: int) -> str:
    """The groups that are missing and those that are there more than once."""
    missing = set(range(end)) - set(groups)
    twice = {group for group, after in pairwise(groups) if group == after}
    return f"missing {sorted(missing)[:20]}, twice {sorted(twice)[:20]}, beyond {[g for g in groups if g >= end][:20]}"
