"""Inside the culprit: both sides' operations on the same inputs, aligned by value; the first one without a match, with its source line.

The operations between the last agreeing record and the diverging one are logged with a dispatch mode. A value of the port is *known* when the reference has
computed the same numbers, in any layout. Working back from the diverging value through unknown values only, the operations whose inputs are all known
are where the port departs.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import linecache
import math
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from parity.diagnose.evidence import Frame, Op
from parity.trace import Record

_HERE = os.path.dirname(os.path.abspath(__file__))
_EINOPS = importlib.util.find_spec("einops")  # its frames say nothing: the caller's line does
_SKIPPED = (
    _HERE,
    os.path.dirname(os.path.abspath(torch.__file__)),
    contextlib.__file__,
    "<",
    *(os.path.dirname(_EINOPS.origin) for _ in range(1) if _EINOPS is not None and _EINOPS.origin),
)
_MOST_ELEMENTS = 1 << 21  # larger values are not kept
_MOST_OPS = 4000
_CLOSE = 1e-6
_PLACE = object()  # of a tensor among the arguments of a logged operation
_RENAME = {
    "_softmax": "softmax",
    "_scaled_dot_product_flash_attention_for_cpu": "scaled_dot_product_attention",
    "_scaled_dot_product_flash_attention": "scaled_dot_product_attention",
    "_scaled_dot_product_efficient_attention": "scaled_dot_product_attention",
    "_scaled_dot_product_cudnn_attention": "scaled_dot_product_attention",
}
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


class WindowsClosed(BaseException):
    """Raised inside a run once everything that was wanted has been logged: the rest of the run is not needed."""


class OpLog(TorchDispatchMode):
    """Log the operations of several windows, each between two records. `watch` is given to the recorder.

    starts: wanted record -> the last record before it that both sides have; None when there is none, so that logging begins at once.
    """

    def __init__(self, starts: Mapping[str, str | None]) -> None:
        super().__init__()
        self.windows: dict[str, tuple[Step, ...]] = {}
        self._starts = dict(starts)
        self._steps: list[Step] = []
        self._open: dict[str, int] = {
            key: 0 for key, start in starts.items() if start is None
        }  # wanted record -> first step
        self.calls: dict[str, tuple[Frame, ...]] = {}  # wanted record -> the calls around it when it was recorded
        self.functions: set[str] = set()  # that were seen running when something was recorded or computed
        self._makers: dict[int, int] = {}  # id of a live tensor -> the step that made it
        self._alive: list[Tensor] = []

    def watch(self, record: Record) -> None:
        """Open windows after their first record, close them at their last, and stop the run when all are closed."""
        around = _around(record)
        self.functions.update(frame.function for frame in around)
        if record.key in self._starts:
            self.calls.setdefault(record.key, around)
        if record.key in self._open:
            self.windows[record.key] = _cut(self._steps, self._open.pop(record.key))
        for key, start in self._starts.items():
            if start == record.key and key not in self.windows:
                self._open[key] = len(self._steps)
        if not self._open:
            self._steps, self._makers, self._alive = [], {}, []
        if len(self.windows) == len(self._starts):
            raise WindowsClosed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        source = source_line() if self._open and len(self._steps) < _MOST_OPS else None
        if source is None:  # nothing is wanted, or the recorder itself is at work
            return func(*args, **kwargs)
        leaves, spec = tree_flatten((args, kwargs))
        given = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        inputs = tuple(_keep(t) for t in given)
        makers = tuple(self._makers.get(id(t)) for t in given)
        result = func(*args, **kwargs)
        name = func._schema.name.partition("::")[2]
        made = tensors_in(result)
        op = Op(
            _RENAME.get(name, name).rstrip("_"),
            inputs,
            tuple(map(_keep, made)),
            read_scalars(func, args, kwargs),
            *source,
            frames=frames_around(),
            again=functools.partial(_again, func, spec, [_PLACE if isinstance(x, Tensor) else x for x in leaves]),
        )
        self.functions.update(frame.function for frame in op.frames)
        for t in made:
            self._makers[id(t)] = len(self._steps)
            self._alive.append(t)
        self._steps.append(Step(op, makers))
        return result


class CallLog:
    """Note which functions run, and what was running when one record was made; stops the run there. `watch` is given to the recorder."""

    def __init__(self, wanted: str | None) -> None:
        self.wanted = wanted
        self.calls: tuple[Frame, ...] = ()
        self.functions: set[str] = set()

    def watch(self, record: Record) -> None:
        around = _around(record)
        self.functions.update(frame.function for frame in around)
        if record.key == self.wanted:
            self.calls = around
            raise WindowsClosed


def _again(func: Any, spec: Any, leaves: Sequence[Any], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Run a logged operation on other tensors, which it may not change."""
    given = iter(inputs)
    filled = [next(given).clone() if leaf is _PLACE else leaf for leaf in leaves]
    args, kwargs = tree_unflatten(filled, spec)
    with torch.no_grad():
        return tensors_in(func(*args, **kwargs))


@dataclass(frozen=True)
class Step:
    """A logged operation, and for each of its tensor inputs the step that made it (None: it came from outside the window)."""

    op: Op
    makers: tuple[int | None, ...]


def _cut(steps: Sequence[Step], start: int) -> tuple[Step, ...]:
    """Return the steps from `start` on, with makers counted from there."""
    return tuple(
        Step(s.op, tuple(m - start if m is not None and m >= start else None for m in s.makers)) for s in steps[start:]
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


def _keep(value: Tensor) -> Tensor:
    if value.numel() > _MOST_ELEMENTS or value.is_meta:
        return value.detach()
    with torch.utils._python_dispatch._disable_current_modes():
        return value.detach().clone()


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors inside nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (tuple, list)):
        return [t for item in value for t in tensors_in(item)]
    if isinstance(value, dict):
        return [t for item in value.values() for t in tensors_in(item)]
    return []


def read_scalars(func: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """Return the arguments that are no tensors, by their schema names, defaults included."""
    found: dict[str, Any] = {}
    for i, argument in enumerate(func._schema.arguments):
        value = args[i] if i < len(args) else kwargs.get(argument.name, argument.default_value)
        if not tensors_in(value) and value is not None:
            found[argument.name] = value
    return found


def source_line() -> tuple[str, str] | None:
    """Return file:line and text of the innermost frame outside torch; None when parity itself is at work."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(f"{_HERE}/capture/"):
            return None
        if not name.startswith(_SKIPPED):
            return f"{name}:{frame.f_lineno}", linecache.getline(name, frame.f_lineno).strip()
        frame = frame.f_back  # type: ignore[assignment]
    return None


def frames_around(most: int = 24) -> tuple[Frame, ...]:
    """Return the calls on the stack outside torch and parity, innermost first."""
    found: list[Frame] = []
    frame = sys._getframe(1)
    while frame is not None and len(found) < most:
        name, first = frame.f_code.co_filename, frame.f_code.co_firstlineno
        if not name.startswith(_SKIPPED):
            text = linecache.getline(name, frame.f_lineno).strip()
            found.append(Frame(f"{name}:{frame.f_lineno}", text, f"{name}:{first}"))
        frame = frame.f_back  # type: ignore[assignment]
    return tuple(found)


def _around(record: Record) -> tuple[Frame, ...]:
    """Return the calls around a record, with the one that has just returned it as the innermost."""
    around = frames_around()
    if not record.function or record.function.startswith(_SKIPPED):
        return around
    file, _, line = record.function.rpartition(":")
    return (Frame(record.function, linecache.getline(file, int(line)).strip(), record.function), *around)


def own_frame(frames: Sequence[Frame], common: Collection[str]) -> Frame | None:
    """Return the innermost call of a function that the other side does not run: what both run is not where they differ."""
    return next((frame for frame in frames if frame.function not in common), None)


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
