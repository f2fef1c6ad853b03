"""One operation too few, too many, or with its parts exchanged: proven by replay (BUGS.md N1, N2, N5, N6, N8, W2, W3, W5, W11, W12, T8, C8, C10, V3, V10)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from .evidence import Evidence, Explanation, Hypothesis, Op
from .fits import accept, allowance, comparable, sure
from .replay import MOST_EDITS, PARTS, Chain, Edit, bypasses, chain, exchanges, signs

ACTIVATIONS = frozenset(
    ["silu", "gelu", "relu", "sigmoid", "tanh", "elu", "leaky_relu", "mish", "softplus", "hardtanh"]
)
NORMS = frozenset(["native_layer_norm", "native_group_norm", "native_batch_norm", "_fused_rms_norm", "rms_norm"])
BOUNDS = frozenset(["clamp", "clamp_min", "clamp_max", "clip", "minimum", "maximum", "hardtanh", "nan_to_num"])
ROUNDING = frozenset(["round", "floor", "ceil", "trunc"])
SIGN = frozenset(["sign", "sgn", "tanh"])
RESIDUAL = frozenset(["add", "sub"])
CASTS = frozenset(["_to_copy", "clone", "alias", "detach"])
LOGIC = frozenset(["bitwise_and", "bitwise_or", "bitwise_not", "logical_and", "logical_or", "logical_not"])
LAYOUT = frozenset(["as_strided", "transpose", "permute", "view", "reshape", "expand"])
TABLES = frozenset(["rope", "schedule"])
MOVES = frozenset(
    ["index", "index_select", "gather", "flip", "roll", "permute", "transpose", "t", "take"]
)  # the layout family names these
NARROW = frozenset([torch.int8, torch.float8_e4m3fn, torch.float8_e5m2])
PICTURE = frozenset(["frame", "video", "image"])


def left_out(ev: Evidence) -> Iterator[Explanation]:
    """P is what the reference's operations give with one of them left out."""
    found = _bypassed(ev, "ref")
    if found is None:
        return
    op, kept, residual = found
    class_id = _class_of(ev, op)
    text = f"the port leaves out {_named(op)}: the reference's operations without it give P"
    yield Explanation(
        text,
        residual,
        sure(ev, residual, _trust(op)),
        {"operation": op.name, "source": op.source, "kept": kept},
        class_id,
    )


def added(ev: Evidence) -> Iterator[Explanation]:
    """R is what the port's operations give with one of them left out."""
    found = _bypassed(ev, "port")
    if found is None:
        return
    op, kept, residual = found
    class_id = "N6" if op.name in RESIDUAL else _class_of(ev, op)
    text = f"the port also runs {_named(op)}: its operations without it give R"
    yield Explanation(
        text,
        residual,
        sure(ev, residual, _trust(op)),
        {"operation": op.name, "source": op.source, "kept": kept},
        class_id,
    )


def exchanged(ev: Evidence) -> Iterator[Explanation]:
    """P is what the reference's operations give with two parts of a split exchanged."""
    graph = chain(ev, "ref") if comparable(ev, 4) else None
    if graph is None:
        return
    for i, (a, b), edit in islice(exchanges(graph), MOST_EDITS):
        residual = _residual(ev, _run(graph, {i: edit}), "ref")
        if residual is None:
            continue
        op = graph.ops[i]
        of_weight = any(
            op.inputs[0].shape == t.shape and torch.equal(op.inputs[0].double(), t.double()) for t in _parameters(ev)
        )
        one_token = op.outputs[a].dim() >= 3 and all(n == 1 for n in op.outputs[a].shape[1:-1])
        class_id = "W3" if of_weight or not one_token else "W5"
        text = f"parts {a} and {b} of the {len(op.outputs)} that {_named(op)} makes are exchanged"
        yield Explanation(text, residual, sure(ev, residual, 0.96), {"parts": (a, b), "source": op.source}, class_id)
        return


def reversed_sign(ev: Evidence) -> Iterator[Explanation]:
    """P is what the reference's operations give with a sum for a difference, or the other way round."""
    graph = chain(ev, "ref") if comparable(ev, 4) else None
    if graph is None:
        return
    for i, edit in islice(signs(graph), MOST_EDITS):
        residual = _residual(ev, _run(graph, {i: edit}), "ref")
        if residual is not None:
            other = "added" if graph.ops[i].name == "sub" else "subtracted"
            text = f"the second operand of {_named(graph.ops[i])} is {other} by the port"
            yield Explanation(
                text,
                residual,
                sure(ev, residual, 0.9),
                {"source": graph.ops[i].source},
                "T8" if ev.kind == "latent" else "N5",
            )
            return


def other_constants(ev: Evidence) -> Iterator[Explanation]:
    """P is what the reference's operations give with the weights and tables that the port's operations used (W2, W11, W13)."""
    ours, theirs = (chain(ev, side) for side in ("ref", "port")) if comparable(ev, 4) else (None, None)
    if ours is None or theirs is None:
        return
    moved = _moved_constants(ours, theirs)
    if not moved:
        return
    edits: dict[int, Edit] = {}
    for i in {i for i, _, _, _ in moved}:
        again = ours.ops[i].again
        if again is not None:
            edits[i] = partial(_with_constants, again, {k: new for j, k, _, new in moved if j == i})
    residual = _residual(ev, _run(ours, edits), "ref")
    if residual is None:
        return
    op, old, _new = ours.ops[moved[0][0]], moved[0][2], moved[0][3]
    many = f" and {len(moved) - 1} more" if len(moved) > 1 else ""
    what = f"the {list(old.shape)} operand of {_named(op)}{many}"
    class_id, how, trust = _kind_of_change([(a, b) for _, _, a, b in moved])
    if class_id == "W11" and ev.kind in TABLES:
        class_id = "W10"  # a table that is kept, no weight
    if class_id == "W13" and _was_right(ev) and all(_is_weight(ev, a) for _, _, a, _ in moved):
        class_id, how, trust = "W14", "was the reference's at earlier calls: its memory holds other values by now", 0.93
    yield Explanation(
        f"{what} {how}", residual, sure(ev, residual, trust), {"operands": len(moved), "source": op.source}, class_id
    )


def _is_weight(ev: Evidence, value: Tensor) -> bool:
    return any(t.shape == value.shape and torch.equal(t.double(), value.double()) for t in _parameters(ev))


def _was_right(ev: Evidence) -> bool:
    """Whether this site agreed at an earlier call, and the differing values are not only read by later ones."""
    before = list(itertools.takewhile(lambda row: dict(row[1]) != dict(ev.coords), ev.table))
    return bool(before) and all(error <= floor for _, _, error, floor in before)


def _moved_constants(ours: Chain, theirs: Chain) -> list[tuple[int, int, Tensor, Tensor]]:
    """Pair the outside values of equal shape that differ, in order; nothing when the two sides have other numbers of them."""
    left, right = ours.constants(), theirs.constants()
    lone = [(i, k, x) for i, k, x in left if not any(x.shape == y.shape and torch.equal(x, y) for _, _, y in right)]
    rest = [y for _, _, y in right if not any(x.shape == y.shape and torch.equal(x, y) for _, _, x in left)]
    found = []
    for i, k, x in lone:
        at = next((n for n, y in enumerate(rest) if y.shape == x.shape), None)
        if at is None:
            return []
        found.append((i, k, x, rest.pop(at)))
    return found if not rest else []


def _with_constants(again: Edit, constants: Mapping[int, Tensor], given: Sequence[Tensor]) -> list[Tensor]:
    return again([constants.get(k, x) for k, x in enumerate(given)])


def _kind_of_change(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[str, str, float]:
    """Say what became of the values: rounded, zero, or other ones."""
    for dtype in (torch.bfloat16, torch.float16, torch.float8_e4m3fn):
        name = str(dtype).removeprefix("torch.")
        if all(torch.equal(a.to(dtype).double(), b.double()) for a, b in pairs):
            return "W11", f"is the reference's rounded to {name}", 0.95
        if all(torch.equal(b.to(dtype).double(), a.double()) for a, b in pairs):
            return "W11", f"is not rounded to {name}, the reference's is", 0.95
    if all(not bool(b.any()) for _, b in pairs):
        return "W2", "is zero: never loaded or filled", 0.95
    return "W13", "has other values: another checkpoint, file or table", 0.6


def substituted(ev: Evidence) -> Iterator[Explanation]:
    """P is what the reference's operations give with one of them replaced by the port's own: another function, or another constant."""
    ours, theirs = (chain(ev, side) for side in ("ref", "port")) if comparable(ev, 4) else (None, None)
    if ours is None or theirs is None:
        return
    for i, j in islice(_counterparts(ours, theirs), MOST_EDITS):
        again = theirs.ops[j].again
        if again is None:
            continue
        residual = _residual(ev, _run(ours, {i: again}), "ref")
        if residual is None:
            continue
        a, b = ours.ops[i], theirs.ops[j]
        changed = (
            {k: (v, b.scalars.get(k)) for k, v in a.scalars.items() if b.scalars.get(k) != v}
            if a.name == b.name
            else {}
        )
        class_id, trust = _class_of_change(a, b, changed)
        what = (
            ", ".join(f"{k} {new} instead of {old}" for k, (old, new) in changed.items())
            or f"{b.name} instead of {a.name}"
        )
        text = (
            f"the port runs {_named(b)} with {what}"
            if changed
            else f"the port runs {_named(b)} where the reference runs {a.name}"
        )
        yield Explanation(
            text,
            residual,
            sure(ev, residual, trust),
            {"reference": a.name, "port": b.name, "changed": changed, "source": b.source},
            class_id,
        )
        return


def _counterparts(ours: Chain, theirs: Chain) -> Iterator[tuple[int, int]]:
    """Pair operations that take the same values and give others of the same shape."""
    for i in ours.cone:
        a = ours.ops[i]
        for j in theirs.cone:
            b = theirs.ops[j]
            if (
                len(a.inputs) != len(b.inputs)
                or not a.outputs
                or not b.outputs
                or a.outputs[0].shape != b.outputs[0].shape
            ):
                continue
            same = all(
                x.shape == y.shape and x.dtype == y.dtype and torch.equal(x, y)
                for x, y in zip(a.inputs, b.inputs, strict=True)
            )
            if same and not torch.equal(a.outputs[0], b.outputs[0]):
                yield i, j


def _class_of_change(a: Op, b: Op, changed: Mapping[str, object]) -> tuple[str, float]:
    if {a.name, b.name} <= ACTIVATIONS:
        return "N2", 0.93
    if "eps" in changed:
        return "N1", 0.93
    if {"padding", "stride", "dilation", "padding_mode"} & set(changed):
        return "V3", 0.9
    if a.name == b.name and a.name in NORMS:
        return "N7", 0.8  # other axes or groups
    if a.name in NORMS or b.name in NORMS:
        return "N3", 0.7
    if changed:
        return "W12", 0.7  # a constant of the code or of the configuration
    return "N5", 0.5


def _bypassed(ev: Evidence, side: str) -> tuple[Op, int, float] | None:
    """The operation of a side without which the other side's value comes out, which input goes on, and the residual."""
    graph = chain(ev, side) if comparable(ev, 4) else None
    if graph is None:
        return None
    for i, k, edit in islice(bypasses(graph), MOST_EDITS):
        if graph.ops[i].name in CASTS | PARTS | MOVES:
            continue
        residual = _residual(ev, _run(graph, {i: edit}), side)
        if residual is not None:
            return graph.ops[i], k, residual
    return None


def _run(graph: Chain, edits: Mapping[int, Edit]) -> Tensor | None:
    try:
        return graph.run(edits)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return None  # the rest of the operations cannot take what the edit gives


def _residual(ev: Evidence, value: Tensor | None, side: str) -> float | None:
    """Share of the difference that an edited value leaves, when it is small enough."""
    if value is None or not bool(torch.isfinite(value).all()):
        return None
    if side == "ref":
        return accept(ev, value)
    whole = float(torch.linalg.vector_norm(ev.d))
    residual = float(torch.linalg.vector_norm(value - ev.r)) / whole if whole > 0 else float("inf")
    return residual if residual <= allowance(ev) else None


def _parameters(ev: Evidence) -> list[Tensor]:
    return [t for pair in ev.parameters.values() for t in pair if t is not None and t.is_floating_point()]


def _class_of(ev: Evidence, op: Op) -> str:
    if op.name in ROUNDING:
        return "V10" if ev.kind in PICTURE else "N5"
    if op.name in BOUNDS and ev.port.dtype in NARROW:
        return "Q2"  # the range of a quantised value
    if op.name in BOUNDS:
        return "V10" if ev.kind in PICTURE else "C8"
    if op.name in ("sign", "sgn"):
        return "C8"
    if "dropout" in op.name:
        return "N8"
    if op.name in ("mul", "div") and ev.kind in PICTURE | {"latent"}:
        return "C10" if ev.kind == "latent" else "C8"
    return "N5"


def _trust(op: Op) -> float:
    """A scalar factor left out has better names elsewhere (scale, unit, time); the operation alone is only where it happened."""
    if op.name in ("mul", "div") and len(op.inputs) < 2:
        return 0.6
    if op.name in LOGIC or op.name in LAYOUT:
        return 0.6  # masks and memory layouts have names of their own
    return 0.92


def _named(op: Op) -> str:
    kind = "the activation" if op.name in ACTIVATIONS else "the norm" if op.name in NORMS else "the operation"
    place = re.sub(r"^.*/(?=[^/]+/[^/]+$)", "", op.source)
    where = f" at {place}: {op.code}" if op.source else ""
    return f"{kind} {op.name}{where}"


HYPOTHESES = (
    Hypothesis("operation left out", "N5", left_out, 0.5),
    Hypothesis("operation added", "N5", added, 0.4),
    Hypothesis("parts exchanged", "W3", exchanged, 0.5),
    Hypothesis("other constants", "W13", other_constants, 0.5),
    Hypothesis("operation replaced", "W12", substituted, 0.5),
    Hypothesis("sign of a term", "N5", reversed_sign, 0.5),
)
