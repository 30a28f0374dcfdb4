"""Configuration: what cannot work is refused with a sentence."""

import pytest

from actors.config import ActorConfig, ActorRoot, EngineConfig, check, parse_cores, room
from actors.environment import prepare


def test_the_defaults_are_taken_and_ask_for_half_a_batch_more_than_fits() -> None:
    check(ActorRoot())
    assert room(ActorRoot(engine=EngineConfig(max_num_seqs=64))) == 96
    assert room(ActorRoot(actor=ActorConfig(room=7))) == 7


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            ActorRoot(actor=ActorConfig(kv_on_update="drop")),
            r"actor\.kv_on_update=drop: must be one of recompute, keep",
        ),
        (ActorRoot(actor=ActorConfig(room=-1)), r"actor\.room=-1"),
        (ActorRoot(actor=ActorConfig(weights_seconds=0)), r"actor\.weights_seconds=0"),
        (ActorRoot(engine=EngineConfig(dtype="int8")), r"engine\.dtype=int8"),
        (ActorRoot(engine=EngineConfig(threads=0)), r"engine\.threads=0"),
        (ActorRoot(engine=EngineConfig(max_num_seqs=0)), r"engine\.max_num_seqs=0"),
        (ActorRoot(engine=EngineConfig(gpu_memory_utilization=1.5)), r"engine\.gpu_memory_utilization=1\.5"),
        (ActorRoot(engine=EngineConfig(max_model_len=-5)), r"engine\.max_model_len=-5"),
        (ActorRoot(engine=EngineConfig(cores="all")), r"engine\.cores=all"),
    ],
)
def test_what_cannot_work_is_named(config: ActorRoot, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check(config)


@pytest.mark.parametrize(
    ("text", "cores"), [("nobind", set()), ("0", {0}), ("0-3", {0, 1, 2, 3}), ("1,4-5", {1, 4, 5})]
)
def test_cores_are_read(text: str, cores: set[int]) -> None:
    assert parse_cores(text) == cores


def test_a_core_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="core 9999 is not available"):
        prepare(EngineConfig(cores="9999"))
