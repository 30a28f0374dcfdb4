"""Messages to frames and back: one msgpack header, then every array as a raw frame. No pickle, nothing trusted.

`encode` gives `[header, array, array, …]`; the header is `{"offbeat": version, "kind": name, "body": {...}}`, in which
an array is written as `[frame number, dtype, shape]`. `decode` rebuilds the message and checks every field against its
type and its marks (`protocol.fields`), so that a message which exists is a message that is right. What cannot be taken
raises `MalformedMessage` with the path of the field, e.g. `rollout.token_ids: …`.
"""

import dataclasses
import math
import types
from collections.abc import Callable, Sequence
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
    check: Checker = _checker(cast("Any", KINDS[kind]))
    message: Message = check(header.get("body"), "", reader)
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
    check: Checker = _checker(cast("Any", kind))
    value: Value = check(body, "", _Reader(arrays))
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


def _plain(value: Any, arrays: list[Frame]) -> Any:
    """`value` in msgpack's own types, its arrays moved to `arrays`."""
    if isinstance(value, np.ndarray):
        array = np.ascontiguousarray(value)
        arrays.append(array.data.cast("B") if array.size else b"")
        return [len(arrays) - 1, array.dtype.name, list(array.shape)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(getattr(value, name), arrays) for name in _field_names(value.__class__)}
    if isinstance(value, tuple):
        return [_plain(item, arrays) for item in value]
    return value


@cache
def _field_names(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


# ---------------------------------------------------------------- decoding


class _Reader:
    """The array frames of one message, each to be taken exactly once."""

    def __init__(self, frames: Sequence[Frame]) -> None:
        self.frames = frames
        self.unread = set(range(len(frames)))

    def take(self, index: int, path: str) -> Frame:
        if index not in self.unread:
            raise MalformedMessage(path, f"array frame {index} of {len(self.frames)} is missing or used twice")
        self.unread.remove(index)
        return self.frames[index]


Checker: TypeAlias = Callable[[Any, str, _Reader], Any]


@cache
def _checker(hint: Any) -> Checker:
    """The function that turns a decoded value into one of type `hint`, or raises `MalformedMessage`."""
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
    if origin in (Union, types.UnionType) and len(arguments) == 2 and type(None) in arguments:
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _optional_checker(inner)
    raise TypeError(f"no message field may have the type {hint}")


def _integer(value: Any, path: str, reader: _Reader) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise MalformedMessage(path, f"must be an integer, got {_shown(value)}")
    return value


def _number(value: Any, path: str, reader: _Reader) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise MalformedMessage(path, f"must be a number, got {_shown(value)}")
    if not math.isfinite(value):
        raise MalformedMessage(path, f"must be finite, got {value}")
    return float(value)


def _text(value: Any, path: str, reader: _Reader) -> str:
    if not isinstance(value, str):
        raise MalformedMessage(path, f"must be a text, got {_shown(value)}")
    return value


def _truth(value: Any, path: str, reader: _Reader) -> bool:
    if not isinstance(value, bool):
        raise MalformedMessage(path, f"must be true or false, got {_shown(value)}")
    return value


_SCALARS: dict[Any, Checker] = {int: _integer, float: _number, str: _text, bool: _truth}


def _dataclass_checker(kind: type[Any]) -> Checker:
    hints = get_type_hints(kind, vars(messages), include_extras=True)
    checkers = {field.name: _checker(hints[field.name]) for field in dataclasses.fields(kind)}

    def check(value: Any, path: str, reader: _Reader) -> Any:
        if not isinstance(value, dict):
            raise MalformedMessage(path or "body", f"must be a map, got {_shown(value)}")
        if missing := checkers.keys() - value.keys():
            raise MalformedMessage(_join(path, min(missing)), "is missing")
        if extra := value.keys() - checkers.keys():
            raise MalformedMessage(_join(path, min(extra)), "is not a field of this message")
        taken = {name: checker(value[name], _join(path, name), reader) for name, checker in checkers.items()}
        try:
            return kind(**taken)
        except MalformedMessage as error:
            raise MalformedMessage(_join(path, error.field), error.problem) from None

    return check


def _marked_checker(hint: Any, mark: Any) -> Checker:
    if isinstance(mark, Array):
        return _array_checker(mark)
    if isinstance(mark, Json):
        return _json_checker(mark)
    inner = _checker(hint)
    if isinstance(mark, Range):

        def check_range(value: Any, path: str, reader: _Reader) -> Any:
            number = inner(value, path, reader)
            if not mark.low <= number <= mark.high:
                raise MalformedMessage(path, f"must lie in {mark.low}..{mark.high}, got {number}")
            return number

        return check_range
    if isinstance(mark, MaxLength):

        def check_length(value: Any, path: str, reader: _Reader) -> Any:
            text = inner(value, path, reader)
            if len(text) > mark.characters:
                raise MalformedMessage(path, f"{len(text)} characters, at most {mark.characters} are taken")
            return text

        return check_length
    raise TypeError(f"unknown mark {mark!r}")


def _literal_checker(allowed: tuple[Any, ...]) -> Checker:
    def check(value: Any, path: str, reader: _Reader) -> Any:
        if not isinstance(value, str) or value not in allowed:
            raise MalformedMessage(path, f"must be one of {', '.join(allowed)}, got {_shown(value)}")
        return value

    return check


def _sequence_checker(hint: Any) -> Checker:
    inner = _checker(hint)

    def check(value: Any, path: str, reader: _Reader) -> Any:
        if not isinstance(value, list):
            raise MalformedMessage(path, f"must be a list, got {_shown(value)}")
        return tuple(inner(item, f"{path}[{index}]", reader) for index, item in enumerate(value))

    return check


def _mapping_checker(hint: Any) -> Checker:
    inner = _checker(hint)

    def check(value: Any, path: str, reader: _Reader) -> Any:
        if not isinstance(value, dict):
            raise MalformedMessage(path, f"must be a map, got {_shown(value)}")
        return {
            _text(key, f"{path} key", reader): inner(item, _join(path, str(key)), reader) for key, item in value.items()
        }

    return check


def _optional_checker(hint: Any) -> Checker:
    inner = _checker(hint)

    def check(value: Any, path: str, reader: _Reader) -> Any:
        return None if value is None else inner(value, path, reader)

    return check


def _json_checker(mark: Json) -> Checker:
    def walk(value: Any, path: str, depth: int) -> None:
        if depth > mark.max_depth:
            raise MalformedMessage(path, f"is nested deeper than {mark.max_depth}")
        if isinstance(value, dict):
            for key, item in value.items():
                if not isinstance(key, str):
                    raise MalformedMessage(path, f"has the key {_shown(key)}, keys must be texts")
                walk(item, _join(path, key), depth + 1)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                walk(item, f"{path}[{index}]", depth + 1)
        elif not isinstance(value, str | int | float | bool | None):
            raise MalformedMessage(path, f"must be a JSON value, got {_shown(value)}")

    def check(value: Any, path: str, reader: _Reader) -> Any:
        if not isinstance(value, dict):
            raise MalformedMessage(path, f"must be a map, got {_shown(value)}")
        walk(value, path, 0)
        return value

    return check


def _array_checker(mark: Array) -> Checker:
    dtype = np.dtype(mark.dtype)

    def check(value: Any, path: str, reader: _Reader) -> AnyArray:
        if not isinstance(value, list) or len(value) != 3:
            raise MalformedMessage(path, f"must be [frame, dtype, shape], got {_shown(value)}")
        index, name, shape = value
        if name != mark.dtype:
            raise MalformedMessage(path, f"must be {mark.dtype}, got {_shown(name)}")
        if not isinstance(shape, list) or len(shape) != mark.ndim:
            raise MalformedMessage(path, f"must have {mark.ndim} dimension(s), got shape {_shown(shape)}")
        lengths = [_integer(length, f"{path} shape", reader) for length in shape]
        if any(length < 0 for length in lengths):
            raise MalformedMessage(path, f"has the negative shape {lengths}")
        frame = reader.take(_integer(index, f"{path} frame", reader), path)
        if len(frame) > MAX_FRAME_BYTES:
            raise MalformedMessage(path, f"{len(frame)} bytes, at most {MAX_FRAME_BYTES} are taken")
        if len(frame) != math.prod(lengths) * dtype.itemsize:
            raise MalformedMessage(path, f"{len(frame)} bytes do not make {mark.dtype} of shape {lengths}")
        return np.frombuffer(frame, dtype=dtype).reshape(lengths)

    return check


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _shown(value: Any) -> str:
    """`value` for an error text: short, whatever a hostile peer sent."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
