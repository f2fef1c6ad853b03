"""An edit as the table of names sees it: what each side runs in its region, which numbers differ, what the result goes into."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from parity.capture.operations import Op

from .graph import MOVES, Graph
from .search import Edit, Region

ACTIVATIONS = frozenset(
    ["silu", "gelu", "relu", "sigmoid", "elu", "leaky_relu", "mish", "softplus", "hardtanh", "hardswish", "log_sigmoid_forward", "relu6"]
)  # fmt: skip
NORMS = frozenset(
    ["native_layer_norm", "native_group_norm", "native_batch_norm", "_fused_rms_norm", "rms_norm", "cudnn_batch_norm",
     "_native_batch_norm_legit_no_training"]
)  # fmt: skip
ROOTS = frozenset(["rsqrt", "sqrt", "reciprocal"])
REDUCTIONS = frozenset(
    ["mean", "sum", "var", "var_mean", "linalg_vector_norm", "amax", "amin", "norm", "std", "prod", "logsumexp"]
)
ORDERS = frozenset(
    [
        "lt",
        "le",
        "gt",
        "ge",
        "eq",
        "ne",
        "tril",
        "triu",
        "bitwise_and",
        "bitwise_or",
        "bitwise_not",
        "logical_and",
        "logical_or",
        "logical_not",
    ]
)
HIDING = frozenset(["masked_fill", "where", "tril", "triu"])
BOUNDS = frozenset(["clamp", "clamp_min", "clamp_max", "minimum", "maximum", "nan_to_num", "hardtanh"])
ROUNDING = frozenset(["round", "floor", "ceil", "trunc"])
PADS = frozenset(
    [
        "constant_pad_nd",
        "reflection_pad1d",
        "reflection_pad2d",
        "reflection_pad3d",
        "replication_pad1d",
        "replication_pad2d",
        "replication_pad3d",
        "pad",
    ]
)
ANGLES = frozenset(["cos", "sin", "polar"])
POOLS = frozenset(["avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool2d_with_indices", "adaptive_avg_pool2d"])
DROPOUT = frozenset(["bernoulli", "native_dropout"])
SKIPPED = frozenset(
    [
        "dtype",
        "layout",
        "device",
        "pin_memory",
        "non_blocking",
        "copy",
        "memory_format",
        "size",
        "implicit",
        "half_to_float",
    ]
)
PICTURE = frozenset(["frame", "video", "image"])


@dataclass(frozen=True)
class Named:
    """A class and a sentence. `sure`: whether the operations leave no other reading."""

    class_id: str
    text: str
    sure: bool = True
    exact: bool = False  # whether a fact about the two values says it


@dataclass(frozen=True)
class View:
    """An edit as the table sees it."""

    edit: Edit
    port: Graph
    kind: str  # of the diverging record

    @cached_property
    def ref(self) -> tuple[Op, ...]:
        return told_ops(self.edit.reference)

    @cached_property
    def own(self) -> tuple[Op, ...]:
        return told_ops(self.edit.port)

    @cached_property
    def ref_names(self) -> list[str]:
        return [op.name for op in self.ref]

    @cached_property
    def own_names(self) -> list[str]:
        return [op.name for op in self.own]

    @cached_property
    def scalars(self) -> list[tuple[Op, str, Any, Any]]:
        """Return (the port's operation, argument, reference's, port's) where the same operations run with other arguments."""
        if self.ref_names != self.own_names:
            return []
        return [
            (b, name, a.scalars.get(name), b.scalars.get(name))
            for a, b in zip(self.ref, self.own, strict=True)
            for name in dict.fromkeys([*a.scalars, *b.scalars])
            if name not in SKIPPED and not alike(a.scalars.get(name), b.scalars.get(name))
        ]

    @cached_property
    def numbers(self) -> list[tuple[Op, str, Any, Any]]:
        """Return the arguments that differ and are no axes: those depend on the layout."""
        return [
            s
            for s in self.scalars
            if s[1] not in ("dim", "dims", "normalized_shape", "dim0", "dim1", "start", "end", "index", "self")
        ]

    @cached_property
    def only(self) -> tuple[str, list[str], tuple[Op, ...]] | None:
        """Return ("left out" or "added", names, operations) where only one side runs something."""
        if self.ref and not self.own:
            return "left out", self.ref_names, self.ref
        if self.own and not self.ref:
            return "added", self.own_names, self.own
        return None

    @cached_property
    def into(self) -> frozenset[str]:
        """Return the names of the operations that the result goes into, past sums, factors and moves."""
        return frozenset(goes_into(self.port, self.edit))


def told_ops(region: Region) -> tuple[Op, ...]:
    return tuple(op for op in region.ops if op.name not in MOVES and op.name != "scalar_tensor")


def alike(a: Any, b: Any) -> bool:
    numbers = isinstance(a, (int, float)) and isinstance(b, (int, float)) and not isinstance(a, bool)
    return bool(abs(a - b) <= 1e-12 * max(abs(a), abs(b))) if numbers else a == b


def goes_into(graph: Graph, edit: Edit, more: frozenset[str] = frozenset()) -> set[str]:
    """Return the operations that an edited value reaches through moves, sums, factors, masks and `more`."""
    through = (
        MOVES
        | more
        | {"tanh", "add", "sub", "mul", "div", "masked_fill", "where", "neg", "mean", "pow", "cat", "stack"}
    )
    start = list(edit.at[1:]) if edit.kind in ("replaced", "exchanged") else []
    found: set[str] = {edit.user.name} if edit.user is not None else set()
    todo = start or (list(graph.results(edit.at[0])) if edit.user is not None and edit.user.name in through else [])
    users: dict[int, list[int]] = {}
    for i, given in enumerate(graph.inputs):
        for v in given:
            users.setdefault(v, []).append(i)
    seen: set[int] = set()
    while todo and len(seen) < 200:
        v = todo.pop()
        for i in users.get(v, ()):
            if i not in seen:
                seen.add(i)
                found.add(graph.ops[i].name)
                todo += graph.results(i) if graph.ops[i].name in through else []
    return found


def point_of(edit: Edit) -> Op | None:
    """Return the operation where an edit shows first: in the port, or in the reference where the port has nothing."""
    ref, own = told_ops(edit.reference), told_ops(edit.port)
    for a, b in zip(ref, own, strict=False):
        if a.name != b.name or any(
            not alike(a.scalars.get(k), b.scalars.get(k)) for k in {*a.scalars, *b.scalars} - SKIPPED
        ):
            return b
    if own:
        return own[min(len(ref), len(own) - 1)]
    return edit.user or (ref[-1] if ref else None)


def numbers_of(edit: Edit) -> list[tuple[Op, Any, Any]]:
    """Return (the port's operation, the reference's number, the port's) where the same operations run with other numbers."""
    ref, own = told_ops(edit.reference), told_ops(edit.port)
    if [op.name for op in ref] != [op.name for op in own]:
        return []
    return [
        (b, a.scalars.get(k), b.scalars.get(k))
        for a, b in zip(ref, own, strict=True)
        for k in dict.fromkeys([*a.scalars, *b.scalars])
        if k not in SKIPPED and not alike(a.scalars.get(k), b.scalars.get(k))
    ]


def said(edit: Edit) -> str:
    """Return an edit in words when no row has better ones."""
    ref, own = ([op.name for op in told_ops(r) or r.ops] for r in (edit.reference, edit.port))
    ops = told_ops(edit.port) or told_ops(edit.reference) or ((edit.user,) if edit.user else ())
    where = at(ops[-1]) if ops else ""
    return f"the port runs {listed(own)} where the reference runs {listed(ref)}{where}"


def describe(op: Op) -> str:
    return f"{op.name}{at(op)}"


def at(op: Op) -> str:
    """Return where an operation stands, with its line."""
    place = re.sub(r"^.*/(?=[^/]+/[^/]+$)", "", op.source)
    return f" at {place}: {op.code}" if op.source else ""


def listed(names: list[str]) -> str:
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    return shown or "nothing"


def number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def parameters_of(edit: Edit) -> Mapping[str, Any]:
    """Return the edit's regions as plain values, for the JSON."""

    def lines(region: Region) -> list[str]:
        return list(dict.fromkeys(f"{op.name} at {op.source}: {op.code}" for op in told_ops(region)))[:8]

    return {"reference": lines(edit.reference), "port": lines(edit.port), "kind": edit.kind, "times": edit.times}
