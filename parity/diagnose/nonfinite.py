"""NaN and infinity: where they are, which operation made them from finite numbers, and whether the numbers were too
large.

Classes: Q1 Q4 A4 A9 T5 W10 of the bug list.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from parity.capture.operations import Op

from .evidence import Evidence, Explanation, Hypothesis, as_float64
from .fits import number

FP16_MAX = 65504.0
PRODUCTS = {
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "matmul",
    "linear",
    "convolution",
    "conv2d",
    "conv3d",
    "einsum",
    "_int_mm",
    "mul",
    "add",
    "pow",
    "exp",
    "sum",
}
SOFTMAX = {"softmax", "_softmax", "_safe_softmax", "log_softmax", "_log_softmax"}


def census(x: Tensor) -> dict[str, int]:
    """Count NaN, +Inf, −Inf."""
    return {
        "nan": int(torch.isnan(x).sum()),
        "inf": int(torch.isposinf(x).sum()),
        "neg_inf": int(torch.isneginf(x).sum()),
    }


def port_broken(ev: Evidence) -> bool:
    """Whether P is non-finite where R is finite."""
    return ev.same_shape and ev.port.numel() > 0 and bool((~torch.isfinite(ev.p) & torch.isfinite(ev.r)).any())


def overflow(ev: Evidence) -> Iterator[Explanation]:
    """P is ±Inf, NaN or ±65504 exactly where |R| > 65504 (Q1)."""
    if not ev.same_shape or ev.port.numel() == 0:
        return
    if ev.kind == "mask":
        yield from _infinite_mask(ev)
        return
    large = ev.r.abs() > FP16_MAX
    if not bool(large.any()) or not bool(torch.isfinite(ev.r).all()):
        return
    broken = ~torch.isfinite(ev.p) | ((ev.p.abs() >= FP16_MAX * 0.999) & (ev.p.abs() <= FP16_MAX * 1.001))
    hit = float((broken & large).sum()) / float(large.sum())
    stray = (
        float((broken & ~large & (ev.r.abs() < 0.9 * FP16_MAX)).sum()) / float(broken.sum())
        if bool(broken.any())
        else 1.0
    )
    if hit > 0.95 and stray < 0.5:
        counts = census(ev.p)
        text = (
            f"R reaches {number(float(ev.r.abs().max()))}, beyond float16 (65504), and there P is "
            f"not finite or saturated ({int(large.sum())} elements)"
        )
        yield Explanation(
            text, 0.0, 0.96 if stray < 0.01 else 0.85, {"largest": float(ev.r.abs().max()), **counts}, "Q1"
        )


def _infinite_mask(ev: Evidence) -> Iterator[Explanation]:
    """A mask closes with −Inf where the reference has a large finite number, and a row has nothing open: its softmax
    is NaN (A4).
    """
    closed = torch.isneginf(ev.p)
    if ev.p.ndim and bool(closed.any()) and bool((ev.r[closed] <= -1e4).all()):
        rows = int(closed.all(dim=-1).sum())
        if rows:
            text = (
                f"{rows} rows of the mask are −Inf throughout where the reference is "
                f"{number(float(ev.r[closed].max()))}: their softmax is NaN"
            )
            yield Explanation(text, 0.0, 0.96, {"rows": rows}, "A4")


def producer(ev: Evidence) -> Iterator[Explanation]:
    """The first port operation that makes a non-finite value from finite ones: overflow (Q1, Q4), masked rows (A4),
    attention kernel (A9).
    """
    if not port_broken(ev):
        return
    for op in ev.port_ops:
        if (
            not op.outputs
            or not any(_broken(out) for out in op.outputs)
            or any(_broken(x, nan_only=op.name in SOFTMAX) for x in op.inputs)
        ):
            continue
        if "empty" in op.name or op.name in {"full", "full_like", "new_full", "scalar_tensor", "masked_fill", "where"}:
            continue  # fills and masks are meant, or memory without meaning
        class_id, why, largest = _blame(op)
        text = f"the first non-finite value comes from `{op.name}`{f' at {op.source}' if op.source else ''}: {why}"
        parameters = {"operation": op.name, "source": op.source, "largest": largest, **census(ev.p)}
        yield Explanation(text, 0.0, 0.95, parameters, class_id)
        return


def replayed_overflow(ev: Evidence) -> Iterator[Explanation]:
    """P is not finite, its operations replayed in float64 are, and one of them passes 65504 where none of the
    reference's does (Q1)."""
    if not port_broken(ev) or any(_broken(x) for op in ev.port_ops for x in op.outputs):
        return
    ours = max((_largest(x) for op in ev.ref_ops for x in op.outputs), default=0.0)
    for op in ev.port_ops:
        top = max((_largest(x) for x in op.outputs), default=0.0)
        if top > FP16_MAX > ours:
            where = f" at {op.source}" if op.source else ""
            text = (
                f"`{op.name}`{where} reaches {number(top)} in the port, beyond float16 (65504); the "
                f"reference stays below {number(ours)}"
            )
            yield Explanation(text, 0.0, 0.9, {"operation": op.name, "largest": top, "source": op.source}, "Q1")
            return


def _largest(x: Tensor) -> float:
    return float(x.detach().abs().max()) if x.is_floating_point() and x.numel() else 0.0


def _broken(x: Tensor, nan_only: bool = False) -> bool:
    if not x.is_floating_point() or x.numel() == 0:
        return False
    return bool(torch.isnan(x).any()) if nan_only else not bool(torch.isfinite(x).all())


def _blame(op: Op) -> tuple[str, str, float]:
    """Class, reason and the largest |input| of an operation that broke."""
    largest = max(
        (float(x.detach().double().abs().max()) for x in op.inputs if x.is_floating_point() and x.numel()), default=0.0
    )
    if op.name in SOFTMAX:
        x = op.inputs[0]
        rows = torch.isneginf(x).all(dim=-1)
        if bool(rows.any()):
            return "A4", f"{int(rows.sum())} rows of the scores are fully masked, their softmax is 0/0", largest
        return "A9", "softmax of non-finite or overflowing scores", largest
    if "attention" in op.name:
        masked = _masked_rows(op)
        if masked:
            return "A4", f"{masked} queries have no allowed key", largest
        return "A9", f"attention of finite inputs (largest {number(largest)}) is not finite", largest
    exact = _exact_product(op)
    if exact > FP16_MAX:
        whole = any(x.ndim >= 2 and x.numel() >= 16 and _whole(x) for x in op.inputs)
        if whole:
            why = f"the unscaled product with an integer weight reaches {number(exact)}, beyond float16: scale first"
            return "Q4", why, largest
        return "Q1", f"its exact result reaches {number(exact)}, beyond float16 (65504)", largest
    if op.name in {"div", "reciprocal", "rsqrt", "sqrt", "log", "true_divide"}:
        return "T5" if op.name in {"log"} else "N1", "a division by zero or a root of a negative number", largest
    return "Q1", f"its inputs are finite (largest {number(largest)})", largest


def _whole(x: Tensor) -> bool:
    v = x.detach().double()
    return bool((v == v.round()).all()) and float(v.abs().max()) <= 128 and float(v.abs().max()) > 1


def _masked_rows(op: Op) -> int:
    q = op.inputs[0]
    for mask in op.inputs[3:]:
        if mask.ndim < 2:
            continue
        closed = ~mask if mask.dtype == torch.bool else torch.isneginf(mask)
        if closed.shape[-2] in {1, q.shape[-2]}:
            return int(closed.all(dim=-1).sum())
    return 0


def _exact_product(op: Op) -> float:
    """Largest |element| of the operation's result in float64, for plain products; 0 when it is not one."""
    xs = [x.detach().to("cpu", torch.float64) for x in op.inputs]
    try:
        if op.name in {"mm", "bmm", "matmul"} and len(xs) == 2:
            return float((xs[0] @ xs[1]).abs().max())
        if op.name in {"addmm", "baddbmm"} and len(xs) == 3:
            return float((xs[0] + xs[1] @ xs[2]).abs().max())
        if op.name == "linear" and len(xs) >= 2:
            return float(torch.nn.functional.linear(*xs[:3]).abs().max())
        if op.name == "mul" and len(xs) == 2:
            return float((xs[0] * xs[1]).abs().max())
        if op.name == "add" and len(xs) == 2:
            return float((xs[0] + xs[1]).abs().max())
        if op.name == "exp":
            return float(xs[0].exp().abs().max())
        if op.name == "pow" and xs:
            return float((xs[0] ** float(op.scalars.get("exponent", 2))).abs().max())
    except (RuntimeError, TypeError, ValueError):
        return 0.0
    return 0.0


def unscaled_product(ev: Evidence) -> Iterator[Explanation]:
    """P not finite; x·qᵀ with an integer weight q of the module exceeds 65504 although x·(s·q)ᵀ does not (Q4)."""
    if not port_broken(ev) or ev.port_ops:
        return
    for name, pair in ev.parameters.items():
        q = pair[1] if pair[1] is not None else pair[0]
        if q is None or q.ndim != 2 or not _whole(q):
            continue
        for site, x in ev.inputs.items():
            if x.is_floating_point() and x.ndim >= 1 and x.shape[-1] == q.shape[1] and x.numel() <= 4_000_000:
                product = float((as_float64(x).reshape(-1, q.shape[1]) @ as_float64(q).T).abs().max())
                if product > FP16_MAX:
                    text = (
                        f"{site} times the integer weight {name} reaches {number(product)} before its scale, "
                        "beyond float16 (65504)"
                    )
                    yield Explanation(text, 0.0, 0.9, {"largest": product, "parameter": name}, "Q4")
                    return


HYPOTHESES: tuple[Hypothesis, ...] = (
    Hypothesis("overflow", "Q1", overflow, 0.9),
    Hypothesis("nonfinite_producer", "Q1", producer, 0.95),
    Hypothesis("replayed_overflow", "Q1", replayed_overflow, 0.7),
    Hypothesis("unscaled_product", "Q4", unscaled_product, 0.8),
)
