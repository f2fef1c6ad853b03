"""A log of operations on disk: tensors in one safetensors file, each value once, and what was done with them as JSON beside it. Nothing is unpickled."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from parity.boundary.json import read_json
from parity.boundary.schema import validated
from parity.boundary.text import one_line, reason
from parity.capture.module_state import ModuleState
from parity.capture.operations import PLACE, Frame, Memory, Op, Step, run_again
from parity.capture.step_log import Event, StepLog
from parity.errors import TraceError
from parity.files import replacing, write_text
from parity.trace.store import open_safetensors

_NAMED = {torch.dtype: "dtype", torch.layout: "layout", torch.memory_format: "memory_format"}
_WORDS = frozenset(
    {"approximate", "rounding_mode", "reduce", "equation", "indexing"}
)  # texts that are no names of files


@dataclass(frozen=True)
class StepItem:
    """A step as JSON. inputs, outputs: tensors of the file. again: the overload's name, then its arguments with tensors as places."""

    name: str
    inputs: list[int]
    outputs: list[int]
    scalars: dict[str, Any]
    source: str
    code: str
    makers: list[int | None]
    stack: int
    memory: list[tuple[int, list[int], list[int], int] | None]
    writes: list[int]
    tensors: list[str]
    again: tuple[str, Any, Any] | None


@dataclass(frozen=True)
class StateItem:
    """What a module held, as JSON: tensors of the file by name, and plain settings."""

    parameters: dict[str, int]
    buffers: dict[str, int]
    settings: dict[str, Any]


@dataclass(frozen=True)
class LogItem:
    """A whole log as JSON. frames: [source, code, function]; stacks: places in frames; events: [record, steps before it, stack]; modules: path -> whether it is a
    list or dict of modules, which is never called.
    """

    frames: list[tuple[str, str, str]]
    stacks: list[list[int]]
    steps: list[StepItem]
    events: list[tuple[str, int, int]]
    functions: list[str]
    states: dict[str, StateItem]
    weights: dict[str, int]
    modules: dict[str, bool]
    held: dict[str, tuple[str, str]]


def write_log(
    base: Path,
    log: StepLog,
    states: Mapping[str, ModuleState],
    weights: Mapping[str, Tensor],
    modules: Mapping[str, bool] | None = None,
    held: Mapping[str, tuple[str, str]] | None = None,
) -> None:
    """Write `base.json` and `base.safetensors`."""
    pool = _Pool()
    steps = [_step_item(step, pool) for step in log.steps]
    events = [[event.key, event.at, pool.stack(event.frames)] for event in log.events]
    stated = {path: _state_item(state, pool) for path, state in states.items()}
    named = {name: pool.tensor(value) for name, value in weights.items()}
    raw = {
        "frames": [[f.source, f.code, f.function] for f in pool.frames],
        "stacks": [list(stack) for stack in pool.stacks],
        "steps": steps,
        "events": events,
        "functions": sorted(log.functions),
        "states": stated,
        "weights": named,
        "modules": dict(modules or {}),
        "held": dict(held or {}),
    }
    with replacing(base.with_suffix(".safetensors")) as temporary:
        save_file({str(i): value for i, value in enumerate(pool.tensors)}, temporary)
    write_text(base.with_suffix(".json"), json.dumps(raw) + "\n")


class _Pool:
    """Tensors, frames and stacks, each once."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.frames: dict[Frame, int] = {}
        self.stacks: dict[tuple[int, ...], int] = {}
        self._known: dict[tuple[str, tuple[int, ...], bytes], int] = {}

    def tensor(self, value: Tensor) -> int:
        value = value.detach().to("cpu")
        name = str(value.dtype).removeprefix("torch.")
        plain = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
        plain = plain.resolve_neg().clone(memory_format=torch.contiguous_format)
        data = plain.reshape(-1).view(torch.uint8).numpy().tobytes()
        key = (name, tuple(value.shape), blake2b(data, digest_size=16).digest())
        if key not in self._known:
            self._known[key] = len(self.tensors)
            self.tensors.append(plain)
        at = self._known[key]
        return -1 - at if value.is_complex() else at  # below zero: pairs of numbers

    def stack(self, frames: Sequence[Frame]) -> int:
        places = tuple(self.frames.setdefault(frame, len(self.frames)) for frame in frames)
        return self.stacks.setdefault(places, len(self.stacks))


def _step_item(step: Step, pool: _Pool) -> dict[str, Any]:
    op = step.op
    return {
        "name": op.name,
        "inputs": [pool.tensor(t) for t in op.inputs],
        "outputs": [pool.tensor(t) for t in op.outputs],
        "scalars": {name: _plain(value) for name, value in op.scalars.items()},
        "source": op.source,
        "code": op.code,
        "makers": list(step.makers),
        "stack": pool.stack(op.frames),
        "memory": [None if m is None else [m.storage, list(m.shape), list(m.stride), m.offset] for m in op.memory],
        "writes": list(op.writes),
        "tensors": list(op.tensors),
        "again": _again_item(op.again),
    }


def _again_item(again: Any) -> list[Any] | None:
    if not isinstance(again, functools.partial):
        return None
    func, spec, leaves = again.args
    args, kwargs = tree_unflatten([{"place": i} if leaf is PLACE else leaf for i, leaf in enumerate(leaves)], spec)
    return [f"{func._schema.name}.{func._overloadname}", _plain(args), _plain(kwargs)]


def _state_item(state: ModuleState, pool: _Pool) -> dict[str, Any]:
    return {
        "parameters": {name: pool.tensor(value) for name, value in state.parameters.items() if not value.is_meta},
        "buffers": {name: pool.tensor(value) for name, value in state.buffers.items() if not value.is_meta},
        "settings": {name: _plain(value) for name, value in state.settings.items()},
    }


def _plain(value: Any) -> Any:
    """Return a value as JSON; what has no form of its own as {"kind": text}."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, (list, tuple)):
        inside = [_plain(item) for item in value]
        return {"tuple": inside} if isinstance(value, tuple) else inside
    if isinstance(value, dict):
        return value if set(value) == {"place"} else {"dict": {str(k): _plain(v) for k, v in value.items()}}
    kind = _NAMED.get(type(value))
    if kind is not None:
        return {kind: str(value).removeprefix("torch.")}
    return {"device": str(value)} if isinstance(value, torch.device) else {"other": one_line(value, 200)}


def _value(item: Any) -> Any:
    """Return what `_plain` made JSON of. Raises ValueError for what it never makes."""
    if isinstance(item, list):
        return [_value(part) for part in item]
    if not isinstance(item, dict):
        return item
    parts: list[tuple[str, Any]] = list(item.items())
    if len(parts) != 1:
        raise ValueError(f"no value has the parts {one_line(list(item), 60)}")
    kind, content = parts[0]
    if kind == "place":
        return PLACE
    if kind == "tuple":
        return tuple(_value(part) for part in content)
    if kind == "dict":
        return {name: _value(part) for name, part in content.items()}
    if kind in _NAMED.values():
        found = getattr(torch, str(content), None)
        if type(found) not in _NAMED:
            raise ValueError(f"unknown {kind} {one_line(content, 40)!r}")
        return found
    simple: dict[Any, Any] = {
        "float": float,
        "complex": lambda parts: complex(*parts),
        "device": torch.device,
        "other": str,
    }
    if kind not in simple:
        raise ValueError(f"unknown kind of value {one_line(kind, 40)!r}")
    return simple[kind](content)


# -- reading ----------------------------------------------------------------------------------------------------------


@dataclass
class StoredLog:
    """A log that was read; tensors and operations are made when they are asked for."""

    item: LogItem
    handle: Any
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._frames = [Frame(*frame) for frame in self.item.frames]
        self._stacks = [tuple(self._frames[i] for i in stack) for stack in self.item.stacks]
        self.events = [Event(key, at, self._stacks[stack]) for key, at, stack in self.item.events]
        self._steps: dict[int, Step] = {}

    def step(self, number: int) -> Step:
        """Return a step, with its operation ready to be run again where it can be."""
        if number not in self._steps:
            item = self.item.steps[number]
            memory = tuple(None if m is None else Memory(m[0], tuple(m[1]), tuple(m[2]), m[3]) for m in item.memory)
            op = Op(
                item.name,
                tuple(map(self.tensor, item.inputs)),
                tuple(map(self.tensor, item.outputs)),
                {name: _value(value) for name, value in item.scalars.items()},
                item.source,
                item.code,
                frames=self._stacks[item.stack],
                memory=memory,
                writes=tuple(item.writes),
                tensors=tuple(item.tensors),
                again=_again(item.again),
            )
            self._steps[number] = Step(op, tuple(item.makers))
        return self._steps[number]

    def tensor(self, number: int) -> Tensor:
        """Return a tensor of the file."""
        value: Tensor = self.handle.get_tensor(str(number if number >= 0 else -1 - number))
        return value if number >= 0 else torch.view_as_complex(value)

    def states(self) -> dict[str, ModuleState]:
        """Return what the modules held."""
        return {
            path: ModuleState(
                {name: self.tensor(t) for name, t in state.parameters.items()},
                {name: self.tensor(t) for name, t in state.buffers.items()},
                {name: _value(v) for name, v in state.settings.items()},
            )
            for path, state in self.item.states.items()
        }

    def weights(self) -> dict[str, Tensor]:
        """Return the weights as the run was given them, by name."""
        return {name: self.tensor(t) for name, t in self.item.weights.items()}


def read_log(base: Path) -> StoredLog:
    """Read what `write_log` wrote. Raises TraceError, one line, for what does not fit together."""
    from pydantic import TypeAdapter

    file = base.with_suffix(".json")
    raw, handle = read_json(file), open_safetensors(base.with_suffix(".safetensors"))
    try:
        item = validated(TypeAdapter(LogItem), raw)
        _check(item, len(list(handle.keys())))
        return StoredLog(item, handle)
    except (ValueError, IndexError, TypeError, KeyError, AttributeError) as error:
        raise TraceError(f"{file} is malformed: {reason(error)}") from None


def _check(item: LogItem, count: int) -> None:
    """Check that every number points at something that is there."""
    states = [t for s in item.states.values() for t in (*s.parameters.values(), *s.buffers.values())]
    told = [t for step in item.steps for t in (*step.inputs, *step.outputs)]
    if any(not -count <= t < count for t in (*states, *told, *item.weights.values())):
        raise ValueError("a step or a state names a tensor that is not in the file")
    if any(not 0 <= i < len(item.frames) for stack in item.stacks for i in stack):
        raise ValueError("a stack names a frame that is not there")
    stacks = [*(step.stack for step in item.steps), *(stack for _, _, stack in item.events)]
    if any(not 0 <= i < len(item.stacks) for i in stacks):
        raise ValueError("a step names a stack that is not there")
    before = 0
    for _, at, _ in item.events:
        if not before <= at <= len(item.steps):
            raise ValueError("the records are not in the order of the steps")
        before = at
    for i, step in enumerate(item.steps):
        if any(m is not None and not 0 <= m < i for m in step.makers) or len(step.makers) != len(step.inputs):
            raise ValueError(f"step {i} is made by no step before it")
        if any(not 0 <= w < len(step.inputs) for w in step.writes):
            raise ValueError(f"step {i} writes into no input of its own")


def _again(item: tuple[str, Any, Any] | None) -> Any:
    """Return what runs a logged operation on other tensors; None for one that this torch does not have, or that may reach outside of its arguments."""
    if item is None:
        return None
    name, args, kwargs = item
    space, _, rest = name.partition("::")
    packet, _, overload = rest.partition(".")
    func = getattr(getattr(torch.ops.aten, packet, None), overload or "default", None) if space == "aten" else None
    if func is None or any(str(a.type).endswith("str") and a.name not in _WORDS for a in func._schema.arguments):
        return None
    leaves, spec = tree_flatten((_value(args), _value(kwargs)))
    return functools.partial(run_again, func, spec, leaves)
