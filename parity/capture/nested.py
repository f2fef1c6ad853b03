"""Tensors inside nested arguments and results: tuples, lists, mappings, dataclasses, model outputs."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Container, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, _ops
from torch.utils._python_dispatch import _disable_current_modes

_DEPTH = 60  # of nesting; deeper is somebody's linked list


def tensors(value: Any, path: str = "", above: tuple[int, ...] = ()) -> Iterator[tuple[str, Tensor]]:
    """Yield (path, tensor) for every tensor inside `value`; a bare tensor has the empty path. above: what holds it, which is not entered again."""
    if isinstance(value, Tensor):
        yield path, value
    else:
        for name, child in _children(value, above):
            yield from tensors(child, f"{path}.{name}" if path else name, (*above, id(value)))


Change = Callable[[str, Tensor], Tensor | None]


def replace(value: Any, change: Change, path: str = "", above: tuple[int, ...] = ()) -> Any:
    """Return `value` with tensors replaced where `change(path, tensor)` gives one; the very same object when nothing changes."""
    if isinstance(value, Tensor):
        new = change(path, value)
        return value if new is None else new
    children = _children(value, above)
    inside = (*above, id(value))
    changed = {name: replace(child, change, f"{path}.{name}" if path else name, inside) for name, child in children}
    if all(changed[name] is child for name, child in children):
        return value
    return _rebuild(value, changed)


def put(
    value: Any,
    change: Change,
    fixed: Container[int] = (),
    path: str = "",
    *,
    held: bool = False,
    above: tuple[int, ...] = (),
) -> Any:
    """Replace tensors as `replace` does, but where they live: what others hold on to stays the object that it is.

    A dict, a list or a record that can be written is somebody's state: what it holds, at any depth, is overwritten in its own storage, so that every
    alias sees it. `fixed`: storages that must not be written (weights, buffers); there, and where a tensor cannot be written, the container gets
    another tensor, or what it holds stays as it was.
    """
    if isinstance(value, Tensor):
        new = change(path, value)
        if new is None:
            return value
        if not held:
            return new
        return value if overwrite(value, new, fixed) else new
    writable = _is_writable(value)
    changed = {}
    children = _children(value, above)
    for name, child in children:
        inner = f"{path}.{name}" if path else name
        changed[name] = put(child, change, fixed, inner, held=held or writable, above=(*above, id(value)))
    if all(changed[name] is child for name, child in children):
        return value
    if writable:
        _write_children(value, changed)
        return value
    return value if held and dataclasses.is_dataclass(value) else _rebuild(value, changed)


def _is_writable(value: Any) -> bool:
    """Tell whether a container is state that its holder may go on writing; what a model returns as a record (`ModelOutput`) is none."""
    if isinstance(value, MutableMapping):
        return not hasattr(value, "to_tuple")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return not value.__dataclass_params__.frozen  # type: ignore[attr-defined]
    return isinstance(value, list)


def _write_children(value: Any, changed: Mapping[str, Any]) -> None:
    if isinstance(value, MutableMapping):
        for key, name in zip(list(value), _key_names(value), strict=True):
            if changed[name] is not value[key]:
                value[key] = changed[name]
    elif isinstance(value, list):
        value[:] = [changed[str(i)] for i in range(len(value))]
    else:
        for name, new in changed.items():
            if new is not getattr(value, name, None):
                setattr(value, name, new)


def overwrite(old: Tensor, new: Tensor, fixed: Container[int]) -> bool:
    """Write `new` into the storage of `old`; tell whether that was possible."""
    if (
        old.is_inference()
        or (old.requires_grad and torch.is_grad_enabled())
        or old.shape != new.shape
        or storage_of(old) in fixed
    ):
        return False
    if any(stride == 0 and size > 1 for stride, size in zip(old.stride(), old.shape, strict=True)):
        return False
    with torch._C.DisableTorchFunction(), no_modes():
        old.detach().copy_(new)
    return True


def storage_of(value: Tensor) -> int:
    """Return what tells the memory of one tensor from that of others."""
    try:
        return value.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # no storage of its own (sparse, wrapped)
        return 0


def _key_names(value: Mapping[Any, Any]) -> list[str]:
    """Return a name for each key; the keys 1 and "1" have two."""
    names: dict[str, None] = {}
    for key in value:
        name = str(key)
        while name in names:
            name += "'"
        names[name] = None
    return list(names)


def _children(value: Any, above: tuple[int, ...] = ()) -> list[tuple[str, Any]]:
    if id(value) in above or len(above) > _DEPTH:
        return []
    if isinstance(value, Mapping):
        return list(zip(_key_names(value), value.values(), strict=True))
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
        for key, name in zip(value, _key_names(value), strict=True):
            new[key] = changed[name]  # type: ignore[index]
        return new
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(**changed)
    if isinstance(value, (tuple, list)):
        return type(value)(changed[str(i)] for i in range(len(value)))
    new = copy.copy(value)  # not `replace`: fields that __init__ does not take, and what __post_init__ made, stay
    for name, child in changed.items():
        object.__setattr__(new, name, child)
    return new


def no_modes() -> AbstractContextManager[Any]:
    """Set torch's dispatch modes aside where there are any: it costs more than most records do."""
    before = getattr(_ops, "_len_torch_dispatch_stack_pre_dispatch", lambda: 0)  # torch 2.2 has none
    active = torch._C._len_torch_dispatch_stack() or before()
    return _disable_current_modes() if active else nullcontext()
