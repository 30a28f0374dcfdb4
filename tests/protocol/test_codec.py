"""Every message survives the wire; nothing else does."""

import dataclasses
import string
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from protocol import codec, messages
from protocol.codec import KINDS, decode, encode
from protocol.errors import MalformedMessage
from protocol.fields import Array, Json, MaxLength, Range
from protocol.messages import (
    PROTOCOL_VERSION,
    DeltaSpec,
    GroupRange,
    Heartbeat,
    LeaseRequest,
    Message,
    Rollout,
    RolloutDone,
    VerifyJob,
    VersionSpan,
)

texts = st.text(string.printable, max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Values that satisfy the type and marks of a message field, for any message."""
    scalars: dict[Any, st.SearchStrategy[Any]] = {
        int: st.integers(0, 2**40),
        float: st.floats(0, 1e6),
        str: texts,
        bool: st.booleans(),
    }
    if hint in scalars:
        return scalars[hint]
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return messages_of(hint)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return marked_values(arguments[0], arguments[1])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        return st.lists(values_of(arguments[0]), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(texts, values_of(arguments[1]), max_size=3)
    assert origin is Union or type(None) in arguments
    return st.none() | values_of(next(argument for argument in arguments if argument is not type(None)))


def marked_values(hint: Any, mark: Any) -> st.SearchStrategy[Any]:
    if isinstance(mark, Array):
        return st.lists(st.integers(0, 100), min_size=1, max_size=5).map(
            lambda items: np.array(items, dtype=mark.dtype)
        )
    if isinstance(mark, Json):
        return st.dictionaries(texts, json_values, max_size=3)
    if isinstance(mark, MaxLength):
        return texts
    assert isinstance(mark, Range)
    return st.integers(int(mark.low), int(mark.high)) if hint is int else st.floats(mark.low, mark.high)


def messages_of(kind: type[Any]) -> st.SearchStrategy[Any]:
    """Messages of one kind, those that its own checks refuse left out."""
    if kind is Rollout:
        return rollouts()
    hints = get_type_hints(kind, vars(messages), include_extras=True)
    fields = {field.name: values_of(hints[field.name]) for field in dataclasses.fields(kind)}

    def build(chosen: dict[str, Any]) -> Any:
        if "seeds" in chosen:
            chosen["seeds"] = chosen["sample_indexes"]
        if "shards" in chosen:
            chosen |= {"tensors": (), "shards": (), "deltas": ()}
        if kind is DeltaSpec:
            chosen["base"], chosen["version"] = sorted((chosen["base"], chosen["version"]))
            chosen["version"] += chosen["base"] == chosen["version"]
        if kind is GroupRange:
            chosen["first"], chosen["last"] = sorted(chosen.values())
        if "consumed" in chosen:
            chosen["consumed"] = apart(chosen["consumed"])
        return kind(**chosen)

    return st.fixed_dictionaries(fields).map(build)


def apart(ranges: tuple[GroupRange, ...]) -> tuple[GroupRange, ...]:
    """The ranges in order, those left out that touch one before them."""
    kept: list[GroupRange] = []
    for each in sorted(ranges, key=lambda each: each.first):
        if not kept or each.first > kept[-1].last + 1:
            kept.append(each)
    return tuple(kept)


@st.composite
def rollouts(draw: st.DrawFn) -> Rollout:
    """Rollouts whose arrays and spans agree."""
    spans = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    length = sum(spans)
    return Rollout(
        group_id=draw(st.integers(0, 2**40)),
        sample_index=draw(st.integers(0, 100)),
        prompt_ids=np.arange(1, draw(st.integers(2, 6)), dtype=np.int32),
        token_ids=np.arange(length, dtype=np.int32),
        behaviour_logprobs=-np.arange(length, dtype=np.float32),
        version_spans=tuple(VersionSpan(version=v, tokens=n, fingerprint=f"f{v}") for v, n in enumerate(spans)),
        finish_reason=draw(st.sampled_from(["stop", "length"])),
        text=draw(texts),
    )


any_message = st.sampled_from(sorted(KINDS)).flatmap(lambda kind: messages_of(KINDS[kind]))


def equal(one: Any, other: Any) -> bool:
    """Deep equality that compares arrays by dtype and content."""
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if dataclasses.is_dataclass(one):
        return type(one) is type(other) and all(
            equal(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(one)
        )
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def frames_of(message: Message) -> list[bytes]:
    return [bytes(frame) for frame in encode(message)]


def with_body(message: Message, changes: dict[Any, Any]) -> list[bytes]:
    """The frames of `message` with fields of its body replaced."""
    header, *arrays = frames_of(message)
    content = msgpack.unpackb(header)
    content["body"].update(changes)
    return [msgpack.packb(content), *arrays]


def a_rollout() -> RolloutDone:
    return RolloutDone(
        lease_id=1,
        rollout=Rollout(
            group_id=1,
            sample_index=0,
            prompt_ids=np.array([1, 2], dtype=np.int32),
            token_ids=np.array([3, 4, 5], dtype=np.int32),
            behaviour_logprobs=np.array([-1, -2, -3], dtype=np.float32),
            version_spans=(
                VersionSpan(version=4, tokens=1, fingerprint="a"),
                VersionSpan(version=6, tokens=2, fingerprint="b"),
            ),
            finish_reason="stop",
            text="hi",
        ),
    )


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(any_message)
def test_every_message_comes_back_equal(message: Message) -> None:
    assert equal(decode(frames_of(message)), message)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=4))
def test_arbitrary_bytes_are_malformed_and_nothing_worse(frames: list[bytes]) -> None:
    with pytest.raises(MalformedMessage):
        decode(frames)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(any_message, st.data())
def test_a_changed_byte_gives_a_message_or_malformed_and_nothing_worse(message: Message, data: st.DataObject) -> None:
    frames = frames_of(message)
    which = data.draw(st.integers(0, len(frames) - 1))
    assume(len(frames[which]) > 0)
    place = data.draw(st.integers(0, len(frames[which]) - 1))
    changed = bytearray(frames[which])
    changed[place] = data.draw(st.integers(0, 255))
    frames[which] = bytes(changed)
    problem: MalformedMessage | None = None
    try:
        decode(frames)
    except MalformedMessage as error:
        problem = error
    assert problem is None or (problem.field and problem.problem)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(any_message, st.data())
def test_a_truncated_message_is_malformed(message: Message, data: st.DataObject) -> None:
    frames = frames_of(message)
    which = data.draw(st.integers(0, len(frames) - 1))
    frames[which] = frames[which][: data.draw(st.integers(0, len(frames[which]) - 1))] if frames[which] else b"x"
    with pytest.raises(MalformedMessage):
        decode(frames)


@settings(max_examples=200, deadline=None)
@given(any_message, json_values)
def test_a_wrong_body_never_crashes_the_decoder(message: Message, body: Any) -> None:
    assume(body != {} or dataclasses.fields(message))  # an empty one is right for a message without fields
    frames = [msgpack.packb({"offbeat": PROTOCOL_VERSION, "kind": message.kind, "body": body}), *frames_of(message)[1:]]
    with pytest.raises(MalformedMessage):
        decode(frames)


@pytest.mark.parametrize(
    ("changes", "field", "problem"),
    [
        ({"capacity": "many"}, "capacity", "must be an integer"),
        ({"capacity": True}, "capacity", "must be an integer"),
        ({"capacity": -1}, "capacity", "must lie in"),
        ({"surprise": 1}, "surprise", "is not a field"),
        ({"surprise": 1, b"bytes": 1}, "b'bytes'", "is not a field"),
        ({"": 1}, "body", "is not a field"),
    ],
)
def test_a_wrong_field_is_named(changes: dict[Any, Any], field: str, problem: str) -> None:
    with pytest.raises(MalformedMessage, match=problem) as error:
        decode(with_body(LeaseRequest(capacity=3), changes))
    assert error.value.field == field


@pytest.mark.parametrize(
    ("metadata", "field", "problem"),
    [
        ({"cases": [{"deep": b"x"}]}, "metadata.cases[0].deep", "must be a JSON value"),
        ({"cases": [{b"x": 1}]}, "metadata.cases[0]", "keys must be texts"),
        ({"x" * 1000: b"x"}, f"metadata.'{'x' * 76}…", "must be a JSON value"),
    ],
)
def test_a_wrong_value_in_a_free_object_is_named_by_its_path(metadata: Any, field: str, problem: str) -> None:
    job = VerifyJob(
        job_id=0, group_id=0, sample_index=0, text="", reward="", reference="", metadata={}, deadline_seconds=1.0
    )
    with pytest.raises(MalformedMessage, match=problem) as error:
        decode(with_body(job, {"metadata": metadata}))
    assert error.value.field == field


def test_nested_fields_are_named_by_their_path() -> None:
    frames = frames_of(a_rollout())
    content = msgpack.unpackb(frames[0])
    content["body"]["rollout"]["version_spans"][1]["tokens"] = 0
    with pytest.raises(MalformedMessage) as error:
        decode([msgpack.packb(content), *frames[1:]])
    assert error.value.field == "rollout.version_spans[1].tokens"


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(number: float) -> None:
    with pytest.raises(MalformedMessage, match="must be finite"):
        decode(with_body(Heartbeat(), {"gauges": {"x": number}}))


def test_an_array_of_the_wrong_dtype_shape_or_size_is_refused() -> None:
    frames = frames_of(a_rollout())
    content = msgpack.unpackb(frames[0])
    for array, problem in [
        ([1, "float32", [3]], "must be int32"),
        ([1, "int32", [3, 1]], "must have 1 dimension"),
        ([1, "int32", [4]], "do not make int32"),
        ([1, "int32", [-3]], "negative shape"),
        ([9, "int32", [3]], "missing or used twice"),
        ([0, "int32", [2]], "missing or used twice"),
    ]:
        content["body"]["rollout"]["token_ids"] = array
        with pytest.raises(MalformedMessage, match=problem) as error:
            decode([msgpack.packb(content), *frames[1:]])
        assert error.value.field == "rollout.token_ids"


def test_frames_that_belong_to_no_field_are_refused() -> None:
    with pytest.raises(MalformedMessage, match="belong to no field"):
        decode([*frames_of(a_rollout()), b"smuggled"])


def test_oversized_messages_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = frames_of(a_rollout())
    monkeypatch.setattr(codec, "MAX_HEADER_BYTES", 20)
    with pytest.raises(MalformedMessage, match="at most 20 are taken"):
        decode(frames)
    monkeypatch.undo()
    monkeypatch.setattr(codec, "MAX_FRAME_BYTES", 4)
    with pytest.raises(MalformedMessage, match="at most 4 are taken") as error:
        decode(frames)
    assert error.value.field == "rollout.prompt_ids"
    monkeypatch.undo()
    monkeypatch.setattr(codec, "MAX_FRAMES", 2)
    with pytest.raises(MalformedMessage, match="at most 2 are taken"):
        decode(frames)


def test_another_protocol_version_is_refused_by_both_numbers() -> None:
    header = msgpack.packb({"offbeat": 99, "kind": "lease_request", "body": {"capacity": 1}})
    with pytest.raises(MalformedMessage, match=f"protocol version 99, this side speaks {PROTOCOL_VERSION}"):
        decode([header])


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"behaviour_logprobs": np.zeros(2, np.float32)}, "behaviour_logprobs"),
        ({"behaviour_logprobs": np.array([0, np.nan, 0], np.float32)}, "behaviour_logprobs"),
        ({"prompt_ids": np.zeros(0, np.int32)}, "prompt_ids"),
        ({"version_spans": (VersionSpan(version=0, tokens=2, fingerprint=""),)}, "version_spans"),
        (
            {"version_spans": tuple(VersionSpan(version=v, tokens=t, fingerprint="") for v, t in [(2, 1), (1, 2)])},
            "version_spans",
        ),
    ],
)
def test_a_rollout_whose_parts_disagree_cannot_exist(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(MalformedMessage) as error:
        dataclasses.replace(a_rollout().rollout, **changes)
    assert error.value.field == field


def test_token_versions_follow_the_spans() -> None:
    assert a_rollout().rollout.token_versions.tolist() == [4, 6, 6]
