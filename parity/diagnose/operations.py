"""Structural operations that both sides ran on equal tensors with another result: parts in another order, other
padding, another slice.

Classes: D3 C5 V3 V7 W3 of the bug list. Evidence is what was executed: the same inputs, by value, and different
outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from parity.capture.operations import Op

from .axes import LONG, axis_name, kind_of, many, roles
from .evidence import Evidence, Explanation, Hypothesis

JOINS = {"cat", "concat", "stack"}
PADS = {
    "constant_pad_nd": "zeros",
    "reflection_pad1d": "reflection",
    "reflection_pad2d": "reflection",
    "reflection_pad3d": "reflection",
    "replication_pad1d": "the edge repeated",
    "replication_pad2d": "the edge repeated",
    "replication_pad3d": "the edge repeated",
    "pad": "",
}
CUTS = {"slice", "narrow", "select"}
MOST = 400


def same(a: Tensor, b: Tensor) -> bool:
    """Equal shapes and values up to rounding (1e-6 of the largest)."""
    if a.shape != b.shape or a.is_complex() != b.is_complex():
        return False
    if a.numel() == 0:
        return True
    x, y = a.detach().double(), b.detach().double()
    return float((x - y).abs().max()) <= 1e-6 * max(float(y.abs().max()), 1e-30)


def moved_parts(ref: Sequence[Tensor], port: Sequence[Tensor]) -> list[int] | None:
    """The order in which the port joins the reference's parts, when it is another one; None when parts differ or
    nothing moved."""
    if len(ref) != len(port) or not 2 <= len(ref) <= 64:
        return None
    order: list[int] = []
    for i, part in enumerate(port):
        own = [i] if same(part, ref[i]) else []
        found = next((j for j in [*own, *range(len(ref))] if j not in order and same(part, ref[j])), None)
        if found is None:
            return None
        order.append(found)
    return order if order != sorted(order) else None


def joined(ev: Evidence) -> Iterator[Explanation]:
    """Both sides join the same parts in another order (D3 tokens, C5 channels, W3 features)."""
    for ref, port in _pairs(ev, JOINS):
        order = moved_parts(ref.inputs, port.inputs)
        if order is None or not ref.outputs or _known(port, ev.ref_ops) or _known(ref, ev.port_ops):
            continue
        out = ref.outputs[0]
        axis = int(ref.scalars.get("dim", 0)) % max(1, out.ndim)
        role = roles(out.shape, kind_of(ev))[axis]
        class_id = {"n": "D3", "c": "C5", "f": "V9", "b": "C1", "a": "D3", "d": "W3"}.get(role, "D3")
        attends = any("attention" in op.name or "softmax" in op.name for op in ev.ref_ops)
        if role == "b" and len({part.shape for part in ref.inputs}) > 1:
            class_id = "C5"  # branches of guidance have one shape
        if out.ndim == 4 and axis == 1 and not attends:
            class_id = "C5"  # feature maps: axis 1 holds the channels
        if role == "d" and out.ndim <= 2 and len(order) == 2:
            class_id = "T2"
        elif role == "d" and len(order) > 2:
            class_id = "C5"  # several conditions side by side; the two halves of a fused projection are W3
        text = f"the parts are joined in the order {order} along {axis_name(axis, out.shape, kind_of(ev))}{_at(port)}"
        yield Explanation(text, 0.0, 0.94, {"order": order, "axis": axis, "source": port.source}, class_id)
        return


def _known(op: Op, others: Sequence[Op]) -> bool:
    """Say whether an operation gives numbers that the other side has too: then the sides only went other ways to them."""
    return bool(op.outputs) and any(same(op.outputs[0], out) for other in others[:MOST] for out in other.outputs)


def cut(ev: Evidence) -> Iterator[Explanation]:
    """Both sides take another slice of the same tensor (D3 tokens, V7 frames, W3 rows of a fused projection)."""
    for ref, port in _pairs(ev, CUTS):
        if (
            not ref.outputs
            or not port.outputs
            or not same(ref.inputs[0], port.inputs[0])
            or same(ref.outputs[0], port.outputs[0])
        ):
            continue
        if any(same(port.outputs[0], op.outputs[0]) for op in ev.ref_ops if op.name in CUTS and op.outputs):
            continue  # the same slice, taken at another moment
        x = ref.inputs[0]
        if not x.is_floating_point():
            continue
        axis = int(port.scalars.get("dim", 0)) % max(1, x.ndim)
        if axis != int(ref.scalars.get("dim", 0)) % max(1, x.ndim):
            continue
        role = roles(x.shape, kind_of(ev))[axis]
        table = any(
            same(x, v) for pair in ev.parameters.values() for v in pair[:1] if v is not None and v.shape == x.shape
        )
        class_id = (
            "P2"
            if table and role in {"n", "out", "b"}
            else {"n": "D3", "f": "V7", "c": "C5", "d": "W3", "a": "W3", "out": "W3", "h": "V4", "w": "V4"}.get(
                role, "V7"
            )
        )
        if role in {"h", "w"} and ref.outputs[0].shape == port.outputs[0].shape and ev.kind in {"frame", "input"}:
            class_id = "C6"  # another crop of a picture
        verb = "takes"
        if class_id == "V7" and ref.outputs[0].shape == port.outputs[0].shape:
            if _written(ref, ev.ref_ops) and _written(port, ev.port_ops):
                class_id, verb = "V8", "writes"
            elif _reaches_end(ref, axis) and not _reaches_end(port, axis):
                class_id = "V9"  # the tail is what goes on to the next window
        text = (
            f"the port {verb} {many(LONG[role])} {_range(port)} where the reference {verb} {_range(ref)} "
            f"of the same tensor{_at(port)}"
        )
        parameters = {"axis": axis, "reference": _range(ref), "port": _range(port), "source": port.source}
        yield Explanation(text, 0.0, 0.9, parameters, class_id)
        return


def _written(op: Op, ops: Sequence[Op]) -> bool:
    """Whether the slice that an operation makes is what the next copy writes to."""
    own = next(i for i, other in enumerate(ops) if other is op)
    later = next((other for other in ops[own + 1 :] if other.name == "copy"), None)
    return later is not None and len(later.inputs) == 2 and same(later.inputs[0], op.outputs[0])


def _reaches_end(op: Op, axis: int) -> bool:
    size = op.inputs[0].shape[axis]
    if op.name == "select":
        return int(op.scalars.get("index", 0)) % size == size - 1
    end = op.scalars.get("end")
    return op.name == "slice" and (end is None or int(end) >= size)


def _range(op: Op) -> str:
    if op.name == "select":
        return str(op.scalars.get("index"))
    if op.name == "narrow":
        first = int(op.scalars.get("start", 0))
        return f"{first}..{first + int(op.scalars.get('length', 1)) - 1}"
    start, end = op.scalars.get("start"), op.scalars.get("end")
    stop = "end" if end is None or int(end) > 1 << 40 else str(end)
    step = op.scalars.get("step", 1)
    return f"{start or 0}:{stop}{f':{step}' if step not in (None, 1) else ''}"


def _pairs(ev: Evidence, names: set[str], other_names: bool = False) -> Iterator[tuple[Op, Op]]:
    """Port and reference operations of these names with inputs of equal shapes, in the port's order, each with the
    reference's nearest."""
    refs = [(i, op) for i, op in enumerate(ev.ref_ops[:MOST]) if op.name in names and op.inputs]
    ports = [(i, op) for i, op in enumerate(ev.port_ops[:MOST]) if op.name in names and op.inputs]
    for i, port in ports:
        shapes = sorted(tuple(x.shape) for x in port.inputs)
        for _, ref in sorted(refs, key=lambda item: abs(item[0] - i)):
            if (other_names or ref.name == port.name) and sorted(tuple(x.shape) for x in ref.inputs) == shapes:
                yield ref, port


def _at(op: Op) -> str:
    return f" ({op.source})" if op.source else ""


GATES = {"gelu", "silu", "sigmoid", "tanh", "relu"}
SPLITS = {"split", "chunk", "unbind", "split_with_sizes", "slice", "select"}


def exchanged_halves(ev: Evidence) -> Iterator[Explanation]:
    """The activation is applied to the other part of a split (W3: gate and up exchanged)."""
    ours = [op for op in ev.ref_ops if op.name in GATES and op.inputs]
    theirs = [op for op in ev.port_ops if op.name in GATES and op.inputs]
    parts = [x for op in ev.ref_ops if op.name in SPLITS for x in op.outputs]
    for ref, port in zip(ours, theirs, strict=False):
        a, b = ref.inputs[0], port.inputs[0]
        if ref.name != port.name or a.shape != b.shape or same(a, b):
            continue
        if any(same(b, x) for x in parts) and any(same(a, x) for x in parts):
            text = f"`{port.name}` is applied to the other part of the split: gate and up are exchanged{_at(port)}"
            yield Explanation(text, 0.0, 0.95, {"operation": port.name})
            return


def reinterpreted(ev: Evidence) -> Iterator[Explanation]:
    """The port reads memory with its own strides (`as_strided`) and the reference never does (A8, V11)."""
    if any(op.name == "as_strided" for op in ev.ref_ops):
        return
    for op in ev.port_ops:
        if (
            op.name == "as_strided"
            and op.inputs
            and op.outputs
            and not same(op.outputs[0].reshape(-1), op.inputs[0].reshape(-1))
        ):
            attends = any("attention" in other.name or "softmax" in other.name for other in ev.port_ops)
            text = f"the port reads memory with strides of its own{_at(op)}: values come from other places"
            yield Explanation(text, 0.0, 0.88, {"source": op.source}, "A8" if attends else "V11")
            return


HYPOTHESES: tuple[Hypothesis, ...] = (
    Hypothesis("joined_parts", "D3", joined, 0.9),
    Hypothesis("another_slice", "V7", cut, 0.7),
    Hypothesis("exchanged_halves", "W3", exchanged_halves, 0.8),
    Hypothesis("reinterpreted_memory", "V11", reinterpreted, 0.5),
)
