"""References that are more than a text: JSON that keeps tuples and non-text keys, so that a checker sees what was made.

`{"__tuple__": [...]}` stands for a tuple and `{"__pairs__": [[key, value], ...]}` for a dict whose keys are not texts.
"""

import json
from typing import Any


def dump(value: Any) -> str:
    """`value` as text. Raises `TypeError` for what is neither JSON, tuple nor dict."""
    return json.dumps(_marked(value))


def load(text: str) -> Any:
    """The value that `dump` wrote. Raises `ValueError` when the text is not its work."""
    return _unmarked(json.loads(text))


def _marked(value: Any) -> Any:
    if isinstance(value, tuple):
        return {"__tuple__": [_marked(item) for item in value]}
    if isinstance(value, list):
        return [_marked(item) for item in value]
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: _marked(item) for key, item in value.items()}
        return {"__pairs__": [[_marked(key), _marked(item)] for key, item in value.items()]}
    return value


def _unmarked(value: Any) -> Any:
    if isinstance(value, list):
        return [_unmarked(item) for item in value]
    if isinstance(value, dict):
        if value.keys() == {"__tuple__"}:
            return tuple(_unmarked(item) for item in value["__tuple__"])
        if value.keys() == {"__pairs__"}:
            return {_unmarked(key): _unmarked(item) for key, item in value["__pairs__"]}
        return {key: _unmarked(item) for key, item in value.items()}
    return value
