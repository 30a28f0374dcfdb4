"""Which configurations a broker takes."""

import pytest

from learner.broker.config import BrokerRoot, SamplingConfig, StreamConfig, TaskConfig, check


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        (StreamConfig(group_size=1), "stream.group_size=1"),
        (StreamConfig(groups_per_step=0), "stream.groups_per_step=0"),
        (StreamConfig(max_staleness=-1), "stream.max_staleness=-1"),
        (StreamConfig(silence_seconds=1.0, heartbeat_seconds=1.0), "healthy peers are taken for dead"),
        (StreamConfig(zero_variance="drop"), "stream.zero_variance=drop: must be one of keep, resample"),
        (StreamConfig(resample_limit=0), "stream.resample_limit=0: must be at least 1"),
        (SamplingConfig(temperature=0.0), "sampling.temperature=0.0: .* greedy"),
        (SamplingConfig(temperature=0.001), r"sampling.temperature=0.001: must lie in \[0.01, 2.0\]"),
        (SamplingConfig(temperature=2.5), "sampling.temperature=2.5: must lie in"),
        (SamplingConfig(top_p=0.9), "sampling.top_p=0.9"),
        (SamplingConfig(max_tokens=0), "sampling.max_tokens=0"),
        (TaskConfig(name="file", retire_pass_rate=1.1), "task.retire_pass_rate=1.1: must lie in"),
        (TaskConfig(name="file", retire_pass_rate=-0.1), "task.retire_pass_rate=-0.1: must lie in"),
        (TaskConfig(name="file", retire_after=0), "task.retire_after=0"),
        (TaskConfig(retire_pass_rate=0.9), "task.retire_pass_rate=0.9: addition is endless"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(
    section: StreamConfig | SamplingConfig | TaskConfig, problem: str
) -> None:
    names = {StreamConfig: "stream", SamplingConfig: "sampling", TaskConfig: "task"}
    with pytest.raises(ValueError, match=problem):
        check(BrokerRoot(model="m", **{names[type(section)]: section}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "task", [TaskConfig(), *(TaskConfig(name=name, size=5, retire_pass_rate=0.9) for name in ("addition", "file"))]
)
def test_a_configuration_that_can_work_is_taken(task: TaskConfig) -> None:
    check(BrokerRoot(model="m", task=task, stream=StreamConfig(zero_variance="resample", resample_limit=1)))
