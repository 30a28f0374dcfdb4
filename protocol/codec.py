"""Messages to frames and back: one msgpack header, then every array as a raw frame. No pickle, nothing trusted.

`encode` gives `[header, array, array, …]`; the header is `{"offbeat": version, "kind": name, "body": {...}}`, in which
an array is written as `[frame number, dtype, shape]`. `decode` rebuilds the message and checks every field against its
type and its marks (`protocol.fields`), so that a message which exists is a message that is right. What cannot be taken
raises `MalformedMessage` with the path of the field, e.g. `rollout.token_ids: …`.
"""

import dataclasses
import math
import types
from collections.abc import Callable, Collection, Sequence
from functools import cache
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import msgpack
import numpy as np

from protocol import messages
from protocol.errors import MalformedMessage
from protocol.fields import Array, Json, MaxLength, Range
from protocol.messages import PROTOCOL_VERSION, Message

Frame: TypeAlias = bytes | memoryview
Value = TypeVar("Value")
AnyArray: TypeAlias = np.ndarray[Any, Any]

MAX_HEADER_BYTES = 64 * 2**20
MAX_FRAME_BYTES = 2**30
MAX_FRAMES = 2**16

KINDS: dict[str, type[Any]] = {kind.kind: kind for kind in get_args(Message)}


def encode(message: Message) -> list[Frame]:
    """The frames of `message`. Arrays are not copied: do not change them until the frames are sent."""
    arrays: list[Frame] = []
    body = _plain(message, arrays)
    header = {"offbeat": PROTOCOL_VERSION, "kind": message.kind, "body": body}
    return [msgpack.packb(header, use_bin_type=True), *arrays]


def decode(frames: Sequence[Frame]) -> Message:
    """The message in `frames`; its arrays are read-only views of them. Raises `MalformedMessage`."""
    if not frames:
        raise MalformedMessage("header", "is missing")
    if len(frames) > MAX_FRAMES:
        raise MalformedMessage("frames", f"{len(frames)} of them, at most {MAX_FRAMES} are taken")
    header = _header(frames[0])
    version = header.get("offbeat")
    if version != PROTOCOL_VERSION:
        raise MalformedMessage("offbeat", f"protocol version {_shown(version)}, this side speaks {PROTOCOL_VERSION}")
    kind = header.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise MalformedMessage("kind", f"{_shown(kind)} is not a message of protocol {PROTOCOL_VERSION}")
    if extra := set(header) - {"offbeat", "kind", "body"}:
        raise MalformedMessage("header", f"has unknown keys {_shown(sorted(map(str, extra)))}")
    reader = _Reader(frames[1:])
    message: Message = _checked(KINDS[kind], header.get("body"), reader)
    if reader.unread:
        raise MalformedMessage("frames", f"{len(reader.unread)} of {len(frames) - 1} array frames belong to no field")
    return message


def pack(value: Any) -> bytes:
    """One value that travels inside messages (a `Task`, a `Rollout`, …) as bytes that a file can keep."""
    arrays: list[Frame] = []
    body = _plain(value, arrays)
    return bytes(msgpack.packb([body, [bytes(array) for array in arrays]], use_bin_type=True))


def unpack(kind: type[Value], data: bytes) -> Value:
    """What `pack` was given, checked like a message. Raises `MalformedMessage`."""
    try:
        body, arrays = msgpack.unpackb(data, raw=False, strict_map_key=True, ext_hook=_no_extension)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise MalformedMessage("body", f"is not a packed {kind.__name__}: {error or type(error).__name__}") from None
    return _checked(kind, body, _Reader(arrays))


def _checked(kind: type[Value], body: Any, reader: "_Reader") -> Value:
    check: Checker = _checker(cast("Any", kind))
    try:
        value: Value = check(body, reader)
    except MalformedMessage as error:
        raise MalformedMessage(error.field or "body", error.problem) from None
    return value


def _header(frame: Frame) -> dict[str, Any]:
    if len(frame) > MAX_HEADER_BYTES:
        raise MalformedMessage("header", f"{len(frame)} bytes, at most {MAX_HEADER_BYTES} are taken")
    try:
        header = msgpack.unpackb(frame, raw=False, strict_map_key=True, ext_hook=_no_extension)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise MalformedMessage("header", f"is not msgpack: {error or type(error).__name__}") from None
    if not isinstance(header, dict):
        raise MalformedMessage("header", f"must be a map, got {_shown(header)}")
    return header


def _no_extension(code: int, data: bytes) -> None:
    raise ValueError(f"extension type {code} is not taken")


# ---------------------------------------------------------------- encoding

Writer: TypeAlias = Callable[[Any, list[Frame]], Any]


def _plain(value: Any, arrays: list[Frame]) -> Any:
    """The dataclass `value` in msgpack's own types, its arrays moved to `arrays`."""
    write: Writer = _dataclass_writer(value.__class__)
    return write(value, arrays)


@cache
def _dataclass_writer(kind: Any) -> Writer:
    hints = _hints(kind)
    writers = {name: writer for name, hint in hints.items() if (writer := _writer(hint))}

    def write(value: Any, arrays: list[Frame]) -> dict[str, Any]:
        body = {name: getattr(value, name) for name in hints}
        for name, writer in writers.items():
            body[name] = writer(body[name], arrays)
        return body

    return write


def _writer(hint: Any) -> Writer | None:
    """The function that turns a value of type `hint` into msgpack's own types; None where it is of these already."""
    if dataclasses.is_dataclass(hint):
        return _dataclass_writer(cast("Any", hint))
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _write_array if isinstance(arguments[1], Array) else _writer(arguments[0])
    if origin is tuple and (inner := _writer(arguments[0])):
        return _sequence_writer(inner)
    if origin in (Union, types.UnionType) and (inner := _writer(_optional(arguments))):
        return _optional_writer(inner)
    return None


def _write_array(value: AnyArray, arrays: list[Frame]) -> list[Any]:
    array = np.ascontiguousarray(value)
    arrays.append(array.data.cast("B") if array.size else b"")
    return [len(arrays) - 1, _dtype_name(array.dtype), array.shape]


@cache
def _dtype_name(dtype: np.dtype[Any]) -> str:
    return dtype.name


def _sequence_writer(inner: Writer) -> Writer:
    return lambda value, arrays: [inner(item, arrays) for item in value]


def _optional_writer(inner: Writer) -> Writer:
    return lambda value, arrays: None if value is None else inner(value, arrays)


# ---------------------------------------------------------------- both


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """The fields of a dataclass and their types, with their marks."""
    hints = get_type_hints(kind, vars(messages), include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _optional(arguments: tuple[Any, ...]) -> Any:
    """The type that may be None."""
    (inner,) = (argument for argument in arguments if argument is not types.NoneType)
    return inner


# ---------------------------------------------------------------- decoding


class _Reader:
    """The array frames of one message, each to be taken exactly once."""

    def __init__(self, frames: Sequence[Frame]) -> None:
        self.frames = frames
        self.unread = set(range(len(frames)))

    def take(self, index: int) -> Frame:
        if index not in self.unread:
            raise MalformedMessage("", f"array frame {index} of {len(self.frames)} is missing or used twice")
        self.unread.remove(index)
        return self.frames[index]


Checker: TypeAlias = Callable[[Any, _Reader], Any]


@cache
def _checker(hint: Any) -> Checker:
    """The function that turns a decoded value into one of type `hint`, or raises `MalformedMessage`.

    The error names the culprit from the value on; who looks into a value puts the name of the part before it (`_join`),
    so that paths are made only for what is wrong.
    """
    if hint in _SCALARS:
        return _SCALARS[hint]
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _dataclass_checker(hint)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _marked_checker(arguments[0], arguments[1])
    if origin is Literal:
        return _literal_checker(arguments)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return _sequence_checker(arguments[0])
    if origin is dict and arguments[0] is str:
        return _mapping_checker(arguments[1])
    if origin in (Union, types.UnionType) and len(arguments) == 2 and types.NoneType in arguments:
        return _optional_checker(_optional(arguments))
    raise TypeError(f"no message field may have the type {hint}")


def _integer(value: Any, reader: _Reader) -> int:
    if type(value) is not int:  # a bool is none
        raise MalformedMessage("", f"must be an integer, got {_shown(value)}")
    return value


def _number(value: Any, reader: _Reader) -> float:
    if type(value) not in (float, int):
        raise MalformedMessage("", f"must be a number, got {_shown(value)}")
    if not math.isfinite(value):
        raise MalformedMessage("", f"must be finite, got {value}")
    return float(value)


def _text(value: Any, reader: _Reader) -> str:
    if not isinstance(value, str):
        raise MalformedMessage("", f"must be a text, got {_shown(value)}")
    return value


def _truth(value: Any, reader: _Reader) -> bool:
    if not isinstance(value, bool):
        raise MalformedMessage("", f"must be true or false, got {_shown(value)}")
    return value


_SCALARS: dict[Any, Checker] = {int: _integer, float: _number, str: _text, bool: _truth}


def _dataclass_checker(kind: Any) -> Checker:
    checkers = {name: _checker(hint) for name, hint in _hints(kind).items()}

    def check(value: Any, reader: _Reader) -> Any:
        if not isinstance(value, dict):
            raise MalformedMessage("", f"must be a map, got {_shown(value)}")
        if value.keys() != checkers.keys():
            raise _misfit(value.keys(), checkers.keys())
        taken, name = {}, ""
        try:
            for name, checker in checkers.items():
                taken[name] = checker(value[name], reader)
        except MalformedMessage as error:
            raise MalformedMessage(_join(name, error.field), error.problem) from None
        return kind(**taken)

    return check


def _misfit(found: Collection[Any], wanted: Collection[str]) -> MalformedMessage:
    if missing := [name for name in wanted if name not in found]:
        return MalformedMessage(min(missing), "is missing")
    extra = [_shown_key(key) for key in found if key not in wanted]
    return MalformedMessage(min(extra), "is not a field of this message")


def _marked_checker(hint: Any, mark: Any) -> Checker:
    if isinstance(mark, Array):
        return _array_checker(mark)
    if isinstance(mark, Json):
        return _json_checker(mark)
    inner = _checker(hint)
    if isinstance(mark, Range):
        low, high = mark.low, mark.high

        def check_range(value: Any, reader: _Reader) -> Any:
            number = inner(value, reader)
            if not low <= number <= high:
                raise MalformedMessage("", f"must lie in {low}..{high}, got {number}")
            return number

        return check_range
    if isinstance(mark, MaxLength):
        most = mark.characters

        def check_length(value: Any, reader: _Reader) -> Any:
            text = inner(value, reader)
            if len(text) > most:
                raise MalformedMessage("", f"{len(text)} characters, at most {most} are taken")
            return text

        return check_length
    raise TypeError(f"unknown mark {mark!r}")


def _literal_checker(allowed: tuple[Any, ...]) -> Checker:
    def check(value: Any, reader: _Reader) -> Any:
        if not isinstance(value, str) or value not in allowed:
            raise MalformedMessage("", f"must be one of {', '.join(allowed)}, got {_shown(value)}")
        return value

    return check


def _sequence_checker(hint: Any) -> Checker:
    inner = _checker(hint)

    def check(value: Any, reader: _Reader) -> Any:
        if not isinstance(value, list):
            raise MalformedMessage("", f"must be a list, got {_shown(value)}")
        taken: list[Any] = []
        try:
            for item in value:
                taken.append(inner(item, reader))
        except MalformedMessage as error:
            raise MalformedMessage(_join(f"[{len(taken)}]", error.field), error.problem) from None
        return tuple(taken)

    return check


def _mapping_checker(hint: Any) -> Checker:
    inner = _checker(hint)

    def check(value: Any, reader: _Reader) -> Any:
        if not isinstance(value, dict):
            raise MalformedMessage("", f"must be a map, got {_shown(value)}")
        taken = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise MalformedMessage("", f"has the key {_shown(key)}, keys must be texts")
            try:
                taken[key] = inner(item, reader)
            except MalformedMessage as error:
                raise MalformedMessage(_join(_shown_key(key), error.field), error.problem) from None
        return taken

    return check


def _optional_checker(hint: Any) -> Checker:
    inner = _checker(hint)

    def check(value: Any, reader: _Reader) -> Any:
        return None if value is None else inner(value, reader)

    return check


def _json_checker(mark: Json) -> Checker:
    def walk(value: Any, depth: int) -> None:
        if depth > mark.max_depth:
            raise MalformedMessage("", f"is nested deeper than {mark.max_depth}")
        if isinstance(value, str | int | float | bool | None):
            return
        if not isinstance(value, dict | list):
            raise MalformedMessage("", f"must be a JSON value, got {_shown(value)}")
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(value, dict) and not isinstance(name, str):
                raise MalformedMessage("", f"has the key {_shown(name)}, keys must be texts")
            try:
                walk(item, depth + 1)
            except MalformedMessage as error:
                part = _shown_key(name) if isinstance(value, dict) else f"[{name}]"
                raise MalformedMessage(_join(part, error.field), error.problem) from None

    def check(value: Any, reader: _Reader) -> Any:
        if not isinstance(value, dict):
            raise MalformedMessage("", f"must be a map, got {_shown(value)}")
        walk(value, 0)
        return value

    return check


def _array_checker(mark: Array) -> Checker:
    dtype, ndim = np.dtype(mark.dtype), mark.ndim

    def check(value: Any, reader: _Reader) -> AnyArray:
        if not isinstance(value, list) or len(value) != 3:
            raise MalformedMessage("", f"must be [frame, dtype, shape], got {_shown(value)}")
        index, name, shape = value
        if name != mark.dtype:
            raise MalformedMessage("", f"must be {mark.dtype}, got {_shown(name)}")
        if not isinstance(shape, list) or len(shape) != ndim:
            raise MalformedMessage("", f"must have {ndim} dimension(s), got shape {_shown(shape)}")
        if any(_integer(length, reader) < 0 for length in shape):
            raise MalformedMessage("", f"has the negative shape {shape}")
        frame = reader.take(_integer(index, reader))
        if len(frame) > MAX_FRAME_BYTES:
            raise MalformedMessage("", f"{len(frame)} bytes, at most {MAX_FRAME_BYTES} are taken")
        if len(frame) != math.prod(shape) * dtype.itemsize:
            raise MalformedMessage("", f"{len(frame)} bytes do not make {mark.dtype} of shape {shape}")
        return np.frombuffer(frame, dtype=dtype).reshape(shape)

    return check


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name and not name.startswith("[") else path + name


def _shown_key(key: Any) -> str:
    """The name of a part for an error's path, whatever a hostile peer sent."""
    return key if isinstance(key, str) and len(key) <= 80 else _shown(key)


def _shown(value: Any) -> str:
    """`value` for an error text: short, whatever a hostile peer sent."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
