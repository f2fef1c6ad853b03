"""Inside the culprit: both sides' operations on the same inputs, aligned by value; the first one without a match, with its source line.

The operations between the last agreeing record and the diverging one are logged with a dispatch mode. A value of the port is *known* when the reference has
computed the same numbers, in any layout. Working back from the diverging value through unknown values only, the operations whose inputs are all known
are where the port departs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from parity.capture.operations import Op, Step

_CLOSE = 1e-6
_MOVES = frozenset(
    [
        "view",
        "_unsafe_view",
        "reshape",
        "transpose",
        "t",
        "permute",
        "expand",
        "slice",
        "select",
        "unsqueeze",
        "squeeze",
        "clone",
        "detach",
        "alias",
        "_to_copy",
        "contiguous",
        "split",
        "split_with_sizes",
        "chunk",
        "unbind",
        "as_strided",
        "empty",
        "empty_like",
        "new_empty",
        "lift_fresh",
        "view_as_real",
        "view_as_complex",
    ]
)


@dataclass(frozen=True)
class Departure:
    """The first operation of each side without a match (None: that side has none)."""

    port: Op | None
    reference: Op | None
    detail: str = ""


def find_departure(ref_steps: Sequence[Step], port_steps: Sequence[Step], diverging: Tensor | None) -> Departure:
    """Return where the port's operations leave the reference's."""
    port = _frontier(port_steps, _values_of(ref_steps), diverging)
    reference = _frontier(ref_steps, _values_of(port_steps), None)
    if port is None and reference is None:  # every number is known: another order, or another choice of what is known
        ordered = _values_of(ref_steps, ordered=True)
        port = _frontier(port_steps, ordered, diverging, moves=True)
        reference = _frontier(ref_steps, _values_of(port_steps, ordered=True), None, moves=True) if port else None
    if port is None and reference is not None:
        return Departure(None, reference, f"the port has no counterpart of {describe_op(reference)}")
    return Departure(port, reference)


def unknown_steps(steps: Sequence[Step], others: Sequence[Step]) -> set[int]:
    """Return the places of the operations that give numbers which the other side never had, in any layout."""
    known = _values_of(others)
    return {i for i, step in enumerate(steps) if not all(known.has(t) for t in step.op.outputs)}


def _values_of(steps: Sequence[Step], ordered: bool = False) -> _Values:
    return _Values([t for step in steps for t in (*step.op.inputs, *step.op.outputs)], ordered)


def describe_op(op: Op) -> str:
    """Return one line: name, shapes, scalars."""
    return describe_values(op.name, op.inputs, op.scalars)


def describe_values(name: str, inputs: Sequence[Tensor], scalars: Mapping[str, Any]) -> str:
    """Return `name(f32[2,3], eps=1e-06)`."""
    return f"{name}({', '.join([*map(compact, inputs), *(f'{k}={_short(v)}' for k, v in scalars.items())])})"


def compact(value: Tensor) -> str:
    """Return a tensor as `f32[2,3]`."""
    names = {
        "float32": "f32",
        "float64": "f64",
        "bfloat16": "bf16",
        "float16": "f16",
        "int64": "i64",
        "int32": "i32",
        "bool": "bool",
    }
    dtype = str(value.dtype).removeprefix("torch.")
    return f"{names.get(dtype, dtype)}[{','.join(map(str, value.shape))}]"


def _frontier(steps: Sequence[Step], known: _Values, diverging: Tensor | None, moves: bool = False) -> Op | None:
    """Return the first operation with known inputs and an unknown output from which the diverging value follows through unknown ones.

    moves: operations that only move numbers count too.
    """
    good = [all(known.has(t) for t in step.op.outputs) for step in steps]
    cone = sorted(_cone(steps, good, diverging))
    ready = [
        steps[i].op
        for i in cone
        if (moves or steps[i].op.name not in _MOVES)
        and all(known.has(t) or m is None or good[m] for t, m in zip(steps[i].op.inputs, steps[i].makers, strict=True))
    ]
    if ready:
        return next(
            (op for op in ready if op.inputs), ready[0]
        )  # a fresh constant (arange) only where nothing else departs
    return next((steps[i].op for i in cone if steps[i].op.name not in _MOVES), next((steps[i].op for i in cone), None))


def _cone(steps: Sequence[Step], good: Sequence[bool], diverging: Tensor | None) -> set[int]:
    """Return the unknown operations that lead to the diverging value (or to the last unknown one) through unknown values."""
    unknown = [i for i, fine in enumerate(good) if not fine]
    if not unknown:
        return set()
    start = unknown[-1]
    if diverging is not None:
        wanted = _Values([diverging])
        start = next((i for i in reversed(unknown) if any(wanted.has(t) for t in steps[i].op.outputs)), start)
    cone, todo = {start}, [start]
    while todo:
        for maker in steps[todo.pop()].makers:
            if maker is not None and not good[maker] and maker not in cone:
                cone.add(maker)
                todo.append(maker)
    return cone


class _Values:
    """A set of tensors, up to layout and rounding: order-free sums and a second moment against a fixed function of the value.

    ordered: also against a fixed function of the place, so that another order is another value.
    """

    def __init__(self, tensors: Sequence[Tensor], ordered: bool = False) -> None:
        self.ordered = ordered
        self.prints: dict[int, list[tuple[float, ...]]] = {}
        for t in tensors:
            self.prints.setdefault(t.numel(), []).append(_moments(t, ordered))

    def has(self, value: Tensor) -> bool:
        mine = _moments(value, self.ordered)
        return any(_near(mine, other) for other in self.prints.get(value.numel(), ()))


def _moments(value: Tensor, ordered: bool = False) -> tuple[float, ...]:
    if value.numel() == 0 or value.is_meta:
        return (0.0, 0.0, 0.0, 0.0)
    wide = (torch.view_as_real(value.resolve_conj()) if value.is_complex() else value).detach().double().flatten()
    wide = torch.nan_to_num(wide, nan=1e30, posinf=1e31, neginf=-1e31)
    scale = float(wide.abs().max()) or 1.0
    unit = wide / scale
    n = math.sqrt(unit.numel())
    found = (scale, float(unit.sum()) / n, float(unit.square().sum()) / n, float(torch.sin(3.7 * unit).sum()) / n)
    if not ordered:
        return found
    place = torch.arange(unit.numel(), dtype=torch.float64, device=unit.device)
    return (*found, float((unit * torch.sin(1.0 + 0.7 * place)).sum()) / n)


def _near(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return abs(a[0] - b[0]) <= _CLOSE * max(a[0], b[0]) and all(
        abs(x - y) <= _CLOSE * max(1.0, abs(x)) for x, y in zip(a[1:], b[1:], strict=True)
    )


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
