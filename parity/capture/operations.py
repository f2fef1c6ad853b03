"""The operation log: what a side computed between two records, with values, arguments and source lines, each ready to be run again."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import linecache
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from parity.trace import Record

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_EINOPS = importlib.util.find_spec("einops")  # its frames say nothing: the caller's line does
_SKIPPED = (
    _HERE,
    os.path.dirname(os.path.abspath(torch.__file__)),
    contextlib.__file__,
    "<",
    *(os.path.dirname(_EINOPS.origin) for _ in range(1) if _EINOPS is not None and _EINOPS.origin),
)
_RECORDING = tuple(
    os.path.join(_HERE, part)
    for part in ("capture/recorder.py", "capture/nested.py", "capture/probes.py", "capture/wrapping.py", "trace/")
)
_MOST_ELEMENTS = 1 << 21  # larger values are not kept
_MOST_OPS = 4000  # of a window: the last ones before its record
_VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)
PLACE = object()  # of a tensor among the arguments of a logged operation
_UNFILLED = frozenset(["empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"])
_NO_VALUE = 0.6180339887
_RENAME = {
    "_softmax": "softmax",
    "_scaled_dot_product_flash_attention_for_cpu": "scaled_dot_product_attention",
    "_scaled_dot_product_flash_attention": "scaled_dot_product_attention",
    "_scaled_dot_product_efficient_attention": "scaled_dot_product_attention",
    "_scaled_dot_product_cudnn_attention": "scaled_dot_product_attention",
}


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
        self.kept: dict[
            str, tuple[int, int]
        ] = {}  # wanted record -> the steps of its window that earlier calls of its module ran
        self._sites: dict[str, tuple[int, int]] = {}  # site -> the steps at which it was recorded first and last

    def watch(self, record: Record, around: tuple[Frame, ...] | None = None) -> None:
        """Open windows after their first record, close them at their last, and stop the run when all are closed. around: the calls, of a run that was recorded."""
        around = calls_around(record) if around is None else around
        self.functions.update(frame.function for frame in around)
        if record.key in self._starts:
            self.calls.setdefault(record.key, around)
        if record.key in self._open:
            first = max(self._open.pop(record.key), len(self._steps) - _MOST_OPS)
            self.windows[record.key] = _cut(self._steps, first)
            self.kept[record.key] = self._earlier(record, first)
        if self._open:
            self._sites[record.site] = (self._sites.get(record.site, (len(self._steps), 0))[0], len(self._steps))
        for key, start in self._starts.items():
            if start == record.key and key not in self.windows:
                self._open[key] = len(self._steps)
        if not self._open:
            self._steps, self._makers, self._alive, self._sites = [], {}, [], {}
        if len(self.windows) == len(self._starts):
            raise WindowsClosed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        source = source_line() if self._open else None
        if source is None:  # nothing is wanted, or the recorder itself is at work
            return func(*args, **kwargs)
        if len(self._steps) >= 2 * _MOST_OPS:
            self._forget(_MOST_OPS)
        result = log_step(self._steps, self._makers, self._alive, func, args, kwargs, source, frames_around())
        self.functions.update(frame.function for frame in self._steps[-1].op.frames)
        return result

    def feed(self, number: int, recorded: Callable[[], Step]) -> None:
        """Take a step of a run that was recorded, by its number there, where a window is open."""
        if not self._open:
            return
        if len(self._steps) >= 2 * _MOST_OPS:
            self._forget(_MOST_OPS)
        step = recorded()
        self._makers[number] = len(self._steps)
        makers = tuple(self._makers.get(m) if m is not None else None for m in step.makers)
        self._steps.append(Step(step.op, makers))
        self.functions.update(frame.function for frame in step.op.frames)

    def _earlier(self, record: Record, start: int) -> tuple[int, int]:
        """Return which steps ran since the record's module was first seen and before the site's last record."""
        module = record.module
        inside = [
            a for site, (a, _) in self._sites.items() if module in ("", "model") or f"{site}.".startswith(f"{module}.")
        ]
        last = self._sites.get(record.site, (0, 0))[1]
        return max(0, min(inside, default=last) - start), max(0, last - start)

    def _forget(self, count: int) -> None:
        """Drop the first steps of a long window."""
        gone = sum(len(step.op.outputs) for step in self._steps[:count])
        self._steps, self._alive = list(_cut(self._steps, count)), self._alive[gone:]
        self._open = {key: max(0, at - count) for key, at in self._open.items()}
        self._sites = {site: (max(0, a - count), max(0, b - count)) for site, (a, b) in self._sites.items()}
        self._makers = {of: at - count for of, at in self._makers.items() if at >= count}


def log_step(
    steps: list[Step],
    made_by: dict[int, int],
    alive: list[Tensor],
    func: Any,
    args: Any,
    kwargs: Any,
    source: tuple[str, str],
    frames: tuple[Frame, ...],
) -> Any:
    """Run an operation and append it to `steps`; `made_by` maps the tensors that are kept alive to the step that made them."""
    leaves, spec = tree_flatten((args, kwargs))
    given = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    inputs = tuple(_keep(t) for t in given)
    makers = tuple(made_by.get(id(t)) for t in given)
    memory, writes = tuple(map(_memory, given)), _writes(func, args, kwargs, given)
    result = func(*args, **kwargs)
    made = tensors_in(result)
    name = op_name(func)
    if name in _UNFILLED:
        _fill(made)
    op = Op(
        name,
        inputs,
        tuple(map(_keep, made)),
        read_scalars(func, args, kwargs),
        *source,
        frames=frames,
        memory=memory,
        writes=writes,
        tensors=tensor_names(func, args, kwargs),
        again=functools.partial(run_again, func, spec, [PLACE if isinstance(x, Tensor) else x for x in leaves]),
    )
    for t in made:
        made_by[id(t)] = len(steps)
        alive.append(t)
    steps.append(Step(op, makers))
    return result


def _fill(made: Sequence[Tensor]) -> None:
    """Fill memory that no one has written yet alike on both sides, whose logs are compared by values, and as no one would fill it."""
    with torch.utils._python_dispatch._disable_current_modes(), torch.no_grad():
        for t in made:
            t.fill_(_NO_VALUE if t.is_floating_point() or t.is_complex() else t.dtype != torch.bool)


def op_name(func: Any) -> str:
    """Return the name under which an operation is logged."""
    name: str = func._schema.name.partition("::")[2]
    return _RENAME.get(name, name).rstrip("_")


def tensor_names(func: Any, args: Any, kwargs: Any) -> tuple[str, ...]:
    """Return the schema's name of each tensor that is given, in order."""
    found: list[str] = []
    for i, argument in enumerate(func._schema.arguments):
        value = args[i] if i < len(args) else kwargs.get(argument.name)
        found += [argument.name] * len(tensors_in(value))
    return tuple(found)


class CallLog:
    """Note which functions run, and what was running when one record was made; stops the run there. `watch` is given to the recorder."""

    def __init__(self, wanted: str | None) -> None:
        self.wanted = wanted
        self.calls: tuple[Frame, ...] = ()
        self.functions: set[str] = set()

    def watch(self, record: Record, around: tuple[Frame, ...] | None = None) -> None:
        around = calls_around(record) if around is None else around
        self.functions.update(frame.function for frame in around)
        if record.key == self.wanted:
            self.calls = around
            raise WindowsClosed


def run_again(func: Any, spec: Any, leaves: Sequence[Any], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Run a logged operation on other tensors, which it may not change."""
    given = iter(inputs)
    filled = [next(given).clone() if leaf is PLACE else leaf for leaf in leaves]
    args, kwargs = tree_unflatten(filled, spec)
    if func in _VIEWS:
        func = torch.ops.aten.reshape.default  # other strides than when it was logged are no other numbers
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


def _keep(value: Tensor) -> Tensor:
    if value.numel() > _MOST_ELEMENTS or value.is_meta:
        return value.detach()
    with torch.utils._python_dispatch._disable_current_modes():
        return value.detach().clone()


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors inside nested tuples, lists and dicts; those without strides hold no plain row of numbers."""
    if isinstance(value, Tensor):
        return [value] if value.layout is torch.strided else []
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


_CALL = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<name>[^\n]+)(?:\n\s*(?P<code>[^\n]*))?')


def forward_frames() -> tuple[Frame, ...] | None:
    """In a backward pass, return the calls that made the node that is running, innermost first; None in a forward pass.

    torch keeps them in anomaly mode alone (`run_side` switches it on where operations are logged).
    """
    node = torch._C._current_autograd_node()
    if node is None:
        return None
    metadata: Any = node.metadata
    calls = [call for text in metadata.get("traceback_", ()) if (call := _CALL.search(text)) is not None]
    return tuple(
        Frame(f"{c['file']}:{c['line']}", (c["code"] or "").strip(), f"{c['file']}:{c['name']}")
        for c in reversed(calls)
        if not c["file"].startswith(_SKIPPED)
    )


def source_line() -> tuple[str, str] | None:
    """Return file:line and text of the innermost frame outside torch; None when parity itself is at work."""
    made = forward_frames()
    if made:
        return made[0].source, made[0].code
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(_RECORDING):
            return None
        if not name.startswith(_SKIPPED):
            return f"{name}:{frame.f_lineno}", linecache.getline(name, frame.f_lineno).strip()
        frame = frame.f_back  # type: ignore[assignment]
    return None


def frames_around(most: int = 24) -> tuple[Frame, ...]:
    """Return the calls on the stack outside torch and parity, innermost first; in a backward pass those of the forward pass."""
    made = forward_frames()
    if made:
        return made[:most]
    found: list[Frame] = []
    frame = sys._getframe(1)
    while frame is not None and len(found) < most:
        name, first = frame.f_code.co_filename, frame.f_code.co_firstlineno
        if not name.startswith(_SKIPPED):
            text = linecache.getline(name, frame.f_lineno).strip()
            found.append(Frame(f"{name}:{frame.f_lineno}", text, f"{name}:{first}"))
        frame = frame.f_back  # type: ignore[assignment]
    return tuple(found)


def calls_around(record: Record) -> tuple[Frame, ...]:
    """Return the calls around a record, with the one that has just returned it as the innermost."""
    around = frames_around()
    if not record.function or record.function.startswith(_SKIPPED):
        return around
    file, _, line = record.function.rpartition(":")
    return (Frame(record.function, linecache.getline(file, int(line)).strip(), record.function), *around)


def own_frame(frames: Sequence[Frame], common: Collection[str]) -> Frame | None:
    """Return the innermost call of a function that the other side does not run: what both run is not where they differ."""
    return next((frame for frame in frames if frame.function not in common), None)


class Memory(NamedTuple):
    """Where a tensor lies: two with one `storage` are views of the same numbers."""

    storage: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


def _memory(value: Tensor) -> Memory | None:
    if value.layout != torch.strided or value.is_meta:
        return None
    return Memory(value.untyped_storage().data_ptr(), tuple(value.shape), value.stride(), int(value.storage_offset()))


def _writes(func: Any, args: Any, kwargs: Any, given: Sequence[Tensor]) -> tuple[int, ...]:
    """Return which of the tensors given the operation's schema says it changes."""
    changed = [
        args[i] if i < len(args) else kwargs.get(a.name)
        for i, a in enumerate(func._schema.arguments)
        if a.alias_info is not None and a.alias_info.is_write
    ]
    return tuple(k for k, t in enumerate(given) if any(t is c for c in changed))


@dataclass(frozen=True)
class Frame:
    """One call on the stack: the line that was running, its text, and the function ("file:first line")."""

    source: str
    code: str
    function: str


@dataclass(frozen=True, eq=False)
class Op:
    """One dispatched operation seen while a side computed the diverging record, in order of execution.

    `name` is the ATen name without overload ("softmax", "scaled_dot_product_attention", "mul", "native_layer_norm", "add").
    `inputs` are its tensor arguments (flattened, values as they were), `outputs` its tensor results, `scalars` its other
    arguments by schema name ({"eps": 1e-6, "scale": None, "dim": -1, "approximate": "tanh"}). `source` is "file:line" of the innermost
    frame outside torch, `code` that line. `makers` says for each input which operation of the same log made it (None: it came from outside),
    `again` runs the operation on other inputs. `frames` are the calls around it, innermost first, outside torch and parity. `memory` is where
    each input lies, `writes` are the inputs that the operation changes in place.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    scalars: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    code: str = ""
    makers: tuple[int | None, ...] = ()
    again: Callable[[Sequence[Tensor]], list[Tensor]] | None = None
    frames: tuple[Frame, ...] = ()
    memory: tuple[Memory | None, ...] = ()
    writes: tuple[int, ...] = ()
    tensors: tuple[str, ...] = ()  # the schema's names of the inputs
    earlier: bool = False  # it ran before the last record of the window's site: in an earlier call
    whole: str = ""  # of a part of a composite operation that was written out: its name
