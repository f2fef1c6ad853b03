"""What a function returns and what it leaves behind, as named leaves: tensors and plain values in any nesting.

Sites: `return` for a bare value, `return.<key, field or position>...` inside containers and objects; `after.inputs.<argument>` for an
input that the run changed in place, `after.buffers.<module>.<name>` for a buffer that it changed.
"""

from __future__ import annotations

import dataclasses
import enum
import types
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

RETURN, INPUTS, BUFFERS = "return", "after.inputs", "after.buffers"
_DEPTH = 12  # of nesting; deeper is somebody's linked list
_OPAQUE = (nn.Module, type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType)


@dataclasses.dataclass
class Returned:
    """The leaves of a result, and what is no value that can be compared (path -> class)."""

    leaves: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    opaque: dict[str, str] = dataclasses.field(default_factory=dict)


def read_returned(value: Any, number: torch.dtype = torch.float32, root: str = RETURN) -> Returned:
    """Return the leaves of a result; generators are run to their end, sets are taken in the order of their values.

    number: the dtype of Python's floats, which have none of their own. None is nothing: it has no leaf.
    """
    found = Returned()
    _read(value, root, found, number, (), _DEPTH)
    return found


def _read(value: Any, path: str, found: Returned, number: torch.dtype, above: tuple[int, ...], depth: int) -> None:
    if value is None:
        return
    leaf = _leaf(value, number)
    if leaf is not None:
        while path in found.leaves:  # keys 1 and "1"
            path += "'"
        found.leaves[path] = leaf
        return
    children = None if depth == 0 or id(value) in above else children_of(value)
    if children is None:
        found.opaque[path] = type(value).__name__
        return
    for name, child in children:
        _read(child, f"{path}.{name}", found, number, (*above, id(value)), depth - 1)


def _leaf(value: Any, number: torch.dtype) -> Tensor | None:
    """Return a value that has no parts as a tensor: text as its bytes, so that it compares exactly."""
    if isinstance(value, Tensor):
        return plain(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return torch.from_numpy(np.ascontiguousarray(value)).clone()
    if isinstance(value, np.generic) and value.dtype.kind in "biufc":
        return torch.from_numpy(np.asarray(value).copy())
    if isinstance(value, enum.Enum):
        value = f"{type(value).__name__}.{value.name}"
    if isinstance(value, bool):
        return torch.tensor(value)
    if isinstance(value, int):
        return torch.tensor(value) if -(2**63) <= value < 2**63 else _text(str(value))
    if isinstance(value, float):
        kept = torch.tensor(value, dtype=number)
        return (
            kept
            if bool(torch.isfinite(kept)) or value in (np.inf, -np.inf) or value != value
            else torch.tensor(value, dtype=torch.float64)
        )
    if isinstance(value, complex):
        return torch.tensor(value)
    if isinstance(value, (str, bytes, torch.dtype, torch.device)):
        return _text(value if isinstance(value, bytes) else str(value))
    return None


def _text(value: str | bytes) -> Tensor:
    raw = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
    return torch.tensor(list(raw), dtype=torch.uint8)


def plain(value: Tensor) -> Tensor:
    """Return a tensor as plain strided numbers: sparse, quantised and nested ones are written out."""
    if value.is_nested:
        value = value.to_padded_tensor(0.0)
    if value.layout is not torch.strided:
        value = value.to_dense()
    return value.dequantize() if value.is_quantized else value


def children_of(value: Any) -> list[tuple[str, Any]] | None:
    """Return the named parts of a container or object; None when it is opaque."""
    if isinstance(value, Mapping):
        return [(str(k), v) for k, v in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [(name, getattr(value, name)) for name in value._fields]
    if isinstance(value, Set):
        return [(str(i), v) for i, v in enumerate(sorted(value, key=_place))]
    if isinstance(value, np.ndarray):
        return [(str(i), v) for i, v in enumerate(value.tolist())]
    if isinstance(value, (list, tuple, Iterator)):
        return [(str(i), v) for i, v in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f.name, getattr(value, f.name, None)) for f in dataclasses.fields(value)]
    if isinstance(value, _OPAQUE):
        return None
    if hasattr(value, "__array_interface__"):  # pictures
        return (
            children_of(np.asarray(value))
            if np.asarray(value).dtype.kind not in "biufc"
            else [("pixels", np.asarray(value))]
        )
    return _attributes(value)


def _attributes(value: Any) -> list[tuple[str, Any]] | None:
    slots = [n for cls in type(value).__mro__ for n in _names(getattr(cls, "__slots__", ()))]
    names = [*getattr(value, "__dict__", {}), *slots]
    public = [(n, getattr(value, n)) for n in dict.fromkeys(names) if not n.startswith("_") and hasattr(value, n)]
    return public or None


def _names(slots: str | Iterable[str]) -> list[str]:
    return [slots] if isinstance(slots, str) else list(slots)


def _place(value: Any) -> tuple[str, float, str]:
    """Sort key of the members of a set, whose own order means nothing."""
    if isinstance(value, Tensor):
        wide = plain(value.detach()).to("cpu")
        wide = torch.view_as_real(wide) if wide.is_complex() else wide
        return f"tensor {list(value.shape)}", float(wide.double().nan_to_num().sum()), ""
    return type(value).__name__, 0.0, repr(value)


class Watch:
    """What a run leaves behind in its inputs and in the buffers of its modules: compare what they hold before and after."""

    def __init__(self, inputs: Any, modules: Mapping[str, nn.Module]) -> None:
        self._inputs = inputs
        self._modules = dict(modules)
        self._before = {path: t.detach().clone() for path, t in self._now().items()}

    def changed(self) -> dict[str, Tensor]:
        """Return, by site, what holds other values now; buffers made meanwhile are the module's own business."""
        now = self._now()
        return {path: now[path] for path, old in self._before.items() if path in now and not _same(old, now[path])}

    def _now(self) -> dict[str, Tensor]:
        found = {}
        for path, value in _tensors(self._inputs, INPUTS, (), _DEPTH):
            found[path] = value
        for prefix, module in self._modules.items():
            for name, buffer in module.named_buffers():
                if not buffer.is_meta and buffer.layout is torch.strided:
                    found[f"{BUFFERS}.{prefix}{name}"] = buffer
        return found


def _tensors(value: Any, path: str, above: tuple[int, ...], depth: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors inside inputs; nothing is used up, so iterators are left alone. Arrays of numbers hold none."""
    if isinstance(value, Tensor):
        if value.layout is torch.strided and not value.is_meta and not value.is_nested:
            yield path, value
    elif isinstance(value, np.ndarray) and value.dtype.kind != "O":
        return
    elif depth and id(value) not in above and not isinstance(value, (Iterator, str, bytes, *_OPAQUE)):
        for name, child in children_of(value) or ():
            yield from _tensors(child, f"{path}.{name}", (*above, id(value)), depth - 1)


def _same(old: Tensor, new: Tensor) -> bool:
    if old.shape != new.shape or old.dtype != new.dtype:
        return False
    if torch.equal(old, new):
        return True
    return bool(((old == new) | ((old != old) & (new != new))).all()) if old.is_floating_point() else False
