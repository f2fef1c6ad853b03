"""Tensors inside nested arguments and results: tuples, lists, mappings, dataclasses, model outputs."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor


def tensors(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield (path, tensor) for every tensor inside `value`; a bare tensor has the empty path."""
    if isinstance(value, Tensor):
        yield path, value
    else:
        for name, child in _children(value):
            yield from tensors(child, f"{path}.{name}" if path else name)


def replace(value: Any, change: Callable[[str, Tensor], Tensor | None], path: str = "") -> Any:
    """Return `value` with tensors replaced where `change(path, tensor)` gives one; the very same object when nothing changes."""
    if isinstance(value, Tensor):
        new = change(path, value)
        return value if new is None else new
    children = list(_children(value))
    changed = {name: replace(child, change, f"{path}.{name}" if path else name) for name, child in children}
    if all(changed[name] is child for name, child in children):
        return value
    return _rebuild(value, changed)


def _children(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(str(k), v) for k, v in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [(name, getattr(value, name)) for name in value._fields]
    if isinstance(value, (tuple, list)):
        return [(str(i), v) for i, v in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f.name, getattr(value, f.name, None)) for f in dataclasses.fields(value)]
    return []


def _rebuild(value: Any, changed: dict[str, Any]) -> Any:
    if isinstance(value, Mapping):
        # Model outputs are mappings with attributes: change a shallow copy in place, so that both views agree.
        new = copy.copy(value)
        for key in value:
            new[key] = changed[str(key)]  # type: ignore[index]
        return new
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(**changed)
    if isinstance(value, (tuple, list)):
        return type(value)(changed[str(i)] for i in range(len(value)))
    new = copy.copy(value)  # not `replace`: fields that __init__ does not take, and what __post_init__ made, stay
    for name, child in changed.items():
        object.__setattr__(new, name, child)
    return new
