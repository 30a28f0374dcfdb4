"""How every role declares an option of its configuration, so that one table of all of them can be printed."""

from dataclasses import field
from typing import Any


def option(default: Any, doc: str) -> Any:
    """A dataclass field with its one-line help in `metadata["doc"]`; list and dict defaults are copied."""
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata={"doc": doc})
    return field(default=default, metadata={"doc": doc})
