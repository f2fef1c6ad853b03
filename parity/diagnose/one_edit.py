"""One operation or stretch too few, too many, or with its parts exchanged: proven by replay (BUGS.md N5, N6, N8, W3, W5, T8, C8, C10, V10)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch

from parity.capture.operations import Op

from .evidence import Evidence, Explanation, Hypothesis
from .fits import comparable, sure
from .replay import (
    MOST_EDITS,
    PARTS,
    attempt,
    bypasses,
    chain,
    describe,
    detours,
    exchanges,
    parameters_of,
    residual_of,
    signs,
)
from .substitutions import HYPOTHESES as SUBSTITUTIONS

BOUNDS = frozenset(["clamp", "clamp_min", "clamp_max", "clip", "minimum", "maximum", "hardtanh", "nan_to_num"])
ROUNDING = frozenset(["round", "floor", "ceil", "trunc"])
SIGN = frozenset(["sign", "sgn", "tanh"])
RESIDUAL = frozenset(["add", "sub"])
CASTS = frozenset(["_to_copy", "clone", "alias", "detach"])
LOGIC = frozenset(["bitwise_and", "bitwise_or", "bitwise_not", "logical_and", "logical_or", "logical_not"])
LAYOUT = frozenset(["as_strided", "transpose", "permute", "view", "reshape", "expand"])
MOVES = frozenset(
    ["index", "index_select", "gather", "flip", "roll", "permute", "transpose", "t", "take"]
)  # the layout family names these
NARROW = frozenset([torch.int8, torch.float8_e4m3fn, torch.float8_e5m2])
PICTURE = frozenset(["frame", "video", "image"])


def left_out(ev: Evidence) -> Iterator[Explanation]:
    """P is what the reference's operations give with one of them left out."""
    yield from _one_less(ev, "ref", "the port leaves out {}: the reference's operations without it give P")


def added(ev: Evidence) -> Iterator[Explanation]:
    """R is what the port's operations give with one of them left out."""
    yield from _one_less(ev, "port", "the port also runs {}: its operations without it give R")


def _one_less(ev: Evidence, side: str, sentence: str) -> Iterator[Explanation]:
    """One operation that only one side runs; where no single one explains it, a stretch of them."""
    found = _bypassed(ev, side)
    if found is None:
        yield from _stretch(ev, side)
        return
    op, kept, residual = found
    class_id = "N6" if side == "port" and op.name in RESIDUAL else _class_of(ev, op)
    parameters = {"operation": op.name, "source": op.source, "kept": kept}
    yield Explanation(sentence.format(describe(op)), residual, sure(ev, residual, _trust(op)), parameters, class_id)


def exchanged(ev: Evidence) -> Iterator[Explanation]:
    """P is what the reference's operations give with two parts of a split exchanged."""
    graph = chain(ev, "ref") if comparable(ev, 4) else None
    if graph is None:
        return
    for i, (a, b), edit in islice(exchanges(graph), MOST_EDITS):
        residual = residual_of(ev, attempt(graph, {i: edit}), "ref")
        if residual is None:
            continue
        op = graph.ops[i]
        of_weight = any(
            op.inputs[0].shape == t.shape and torch.equal(op.inputs[0].double(), t.double()) for t in parameters_of(ev)
        )
        one_token = op.outputs[a].dim() >= 3 and all(n == 1 for n in op.outputs[a].shape[1:-1])
        class_id = "W3" if of_weight or not one_token else "W5"
        text = f"parts {a} and {b} of the {len(op.outputs)} that {describe(op)} makes are exchanged"
        yield Explanation(text, residual, sure(ev, residual, 0.96), {"parts": (a, b), "source": op.source}, class_id)
        return


def reversed_sign(ev: Evidence) -> Iterator[Explanation]:
    """P is what the reference's operations give with a sum for a difference, or the other way round."""
    graph = chain(ev, "ref") if comparable(ev, 4) else None
    if graph is None:
        return
    for i, edit in islice(signs(graph), MOST_EDITS):
        residual = residual_of(ev, attempt(graph, {i: edit}), "ref")
        if residual is not None:
            other = "added" if graph.ops[i].name == "sub" else "subtracted"
            text = f"the second operand of {describe(graph.ops[i])} is {other} by the port"
            yield Explanation(
                text,
                residual,
                sure(ev, residual, 0.96),
                {"source": graph.ops[i].source},
                "T8" if ev.kind == "latent" else "N5",
            )
            return


def _stretch(ev: Evidence, side: str) -> Iterator[Explanation]:
    """Several operations in a row, a module say, that only one side runs."""
    graph = chain(ev, side) if comparable(ev, 4) else None
    if graph is None:
        return
    for first, last, edit in islice(detours(graph), MOST_EDITS):
        residual = residual_of(ev, attempt(graph, {last: edit}), side)
        if residual is None:
            continue
        a, b = graph.ops[first], graph.ops[last]
        who = "the port leaves out" if side == "ref" else "the port also runs"
        text = f"{who} everything from {describe(a)} to {describe(b)}"
        parameters = {"first": a.source, "source": b.source, "operations": last - first + 1}
        yield Explanation(text, residual, sure(ev, residual, 0.9), parameters, "N5")
        return


def _bypassed(ev: Evidence, side: str) -> tuple[Op, int, float] | None:
    """The operation of a side without which the other side's value comes out, which input goes on, and the residual."""
    graph = chain(ev, side) if comparable(ev, 4) else None
    if graph is None:
        return None
    for i, k, edit in islice(bypasses(graph), MOST_EDITS):
        if graph.ops[i].name in CASTS | PARTS | MOVES:
            continue
        residual = residual_of(ev, attempt(graph, {i: edit}), side)
        if residual is not None:
            return graph.ops[i], k, residual
    return None


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


HYPOTHESES = (
    *SUBSTITUTIONS,
    Hypothesis("operation left out", "N5", left_out, 0.5),
    Hypothesis("operation added", "N5", added, 0.4),
    Hypothesis("parts exchanged", "W3", exchanged, 0.5),
    Hypothesis("sign of a term", "N5", reversed_sign, 0.5),
)
