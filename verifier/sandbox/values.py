"""Values as JSON that cannot execute anything: plain data of exact built-in types, whatever was put in.

`None`, booleans, texts, lists and small numbers are themselves; all else is `{"<kind>": …}`. What is read back is built
from scratch, so that no type, method or comparison of the other side comes along.
"""

import base64
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

MOST_ITEMS = 100_000  # taken from an iterator
MOST_DEPTH = 100
_EXACT = 2**53


class Unsendable(ValueError):
    """Not a value but a thing: a function, an object of the program's own, or a value too deep or too large."""


def dump(value: Any) -> bytes:
    """`value` as one line. Raises `Unsendable`."""
    return json.dumps(_marked(value, 0)).encode()


def load(line: bytes) -> Any:
    """The value in `line`. Raises `ValueError`, whatever `line` is."""
    try:
        return _plain(json.loads(line), 0)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ValueError(f"no value: {error}") from None


def _marked(value: Any, depth: int) -> Any:
    if depth > MOST_DEPTH:
        raise Unsendable("nested too deeply, or holds itself")
    if value is None or value is True or value is False:
        return value
    for kind, write in _WRITERS:
        if isinstance(value, kind):
            return write(value, depth + 1)
    if isinstance(value, Iterator):
        return {"iterator": _items(value, depth + 1)}
    raise Unsendable(f"a {type(value).__name__} cannot be handed over")


def _items(value: Any, depth: int) -> list[Any]:
    items: list[Any] = []
    for item in value:
        if len(items) == MOST_ITEMS:
            raise Unsendable(f"more than {MOST_ITEMS} items")
        items.append(_marked(item, depth))
    return items


def _integer(value: int, depth: int) -> Any:
    number = int.__index__(value)
    return number if -_EXACT < number < _EXACT else {"int": hex(number)}


def _real(value: float, depth: int) -> Any:
    number = float.__float__(value)
    return number if math.isfinite(number) else {"float": repr(number)}


def _mapping(value: dict[Any, Any], depth: int) -> Any:
    return {"dict": [[_marked(key, depth), _marked(item, depth)] for key, item in dict.items(value)]}


_WRITERS: list[tuple[type | tuple[type, ...], Callable[[Any, int], Any]]] = [
    (int, _integer),
    (float, _real),
    (str, lambda value, depth: str.__str__(value)),
    (list, lambda value, depth: _items(list.__iter__(value), depth)),
    (tuple, lambda value, depth: {"tuple": _items(tuple.__iter__(value), depth)}),
    (dict, _mapping),
    (set, lambda value, depth: {"set": _items(set.__iter__(value), depth)}),
    (frozenset, lambda value, depth: {"frozenset": _items(frozenset.__iter__(value), depth)}),
    ((bytes, bytearray), lambda value, depth: {"bytes": base64.b64encode(value).decode()}),
    (complex, lambda value, depth: {"complex": [_real(value.real, depth), _real(value.imag, depth)]}),
    (range, lambda value, depth: {"range": [value.start, value.stop, value.step]}),
]


def _plain(value: Any, depth: int) -> Any:
    if depth > 2 * MOST_DEPTH:
        raise ValueError("nested too deeply")
    if isinstance(value, list):
        return [_plain(item, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError("no value: a mark stands alone")
    ((kind, content),) = value.items()
    if kind in ("int", "float"):
        if not isinstance(content, str) or len(content) > 10**6:
            raise ValueError(f"no {kind}")
        return int(content, 16) if kind == "int" else float(content)
    if kind == "bytes":
        return base64.b64decode(content, validate=True)
    if kind not in _READERS:
        raise ValueError(f"no value: {kind!r}")
    return _READERS[kind](_plain(content, depth + 1))


_READERS: dict[str, Callable[[Any], Any]] = {
    "tuple": tuple,
    "dict": dict,
    "set": set,
    "frozenset": frozenset,
    "complex": lambda parts: complex(*parts),
    "range": lambda parts: range(*parts),
    "iterator": iter,
}
