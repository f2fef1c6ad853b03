"""Precision: rounding at a dtype boundary, overflow, NaN and where it comes from, clamps, the cast to uint8.

Classes: N4 W10 W11 P6 Q1 Q4 A4 A9 V10 C8 of the bug list.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from parity.capture.operations import Op

from .evidence import Evidence, Explanation, Hypothesis, as_float64
from .fits import HONEST_NOISE, comparable, finite, number, sample_index
from .nonfinite import HYPOTHESES as NONFINITE

NARROW = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
UNIT = {"bfloat16": 2.0**-9, "float16": 2.0**-12, "float32": 2.0**-25}
FP16_MAX = 65504.0


def grid_share(x: Tensor, dtype: torch.dtype) -> float:
    """Share of elements that are exact values of `dtype` (zeros do not count; 0 when there is nothing else)."""
    x = x.reshape(-1)[sample_index(x.numel(), 8192)]
    x = x[(x != 0) & torch.isfinite(x)]
    return float((x.to(dtype).to(torch.float64) == x).double().mean()) if x.numel() else 0.0


def rounded(ev: Evidence) -> Iterator[Explanation]:
    """P == R.to(dt) exactly, or R == P.to(dt): one rounding more on one side (N4; W11 or W10 for weights and buffers,
    P6 for tables).
    """
    if (
        not ev.same_shape
        or ev.reference.numel() < 4
        or not ev.reference.is_floating_point()
        or not finite(ev)
        or ev.error == 0
    ):
        return
    for name, dtype in NARROW.items():
        on_r, on_p = grid_share(ev.r, dtype), grid_share(ev.p, dtype)
        if max(on_r, on_p) < 0.999 or min(on_r, on_p) > 0.9:
            continue
        port_rounds = on_p > on_r
        narrow, wide = (ev.p, ev.r) if port_rounds else (ev.r, ev.p)
        side, other = ("port", "reference") if port_rounds else ("reference", "port")
        exact = float((wide.to(dtype).to(torch.float64) == narrow).double().mean())
        if exact > 0.999:
            text = f"the {side}'s value is the {other}'s rounded to {name}, exactly"
            parameters = {"dtype": name, "side": side, "exact": exact}
            yield Explanation(text, 0.0, 0.97, parameters, _rounding_class(ev))
            return
        size = ev.error / UNIT[name]
        few_levels = (
            len(torch.unique(narrow.reshape(-1)[sample_index(narrow.numel(), 4096)])) <= 256 < narrow.numel() // 2
        )
        if 0.1 < size < 60 and exact > 0.02 and (exact > 0.3 or _unbiased(ev)) and not few_levels:
            text = (
                f"the {side}'s values all lie on the {name} grid and the {other}'s do not: computed in {name} "
                f"({exact:.0%} of them are the exact rounding, error {number(ev.error)})"
            )
            yield Explanation(text, 0.5, 0.75, {"dtype": name, "side": side, "exact": exact}, _rounding_class(ev))
            return


def _rounding_class(ev: Evidence) -> str:
    if ev.kind == "weight":
        return "W10" if _is_table(ev.r) else "W11"
    return "P6" if ev.kind == "rope" else "N4"


def _is_table(r: Tensor) -> bool:
    """Whether a weight looks like a rotary or frequency buffer: a geometric run, or cosines of many angles."""
    if r.ndim == 1 and 3 <= r.numel() <= 4096 and bool((r > 0).all()):
        steps = r.log().diff()
        return float(steps.abs().max()) > 1e-6 and float((steps - steps.mean()).abs().max()) < 1e-3 * float(
            steps.abs().max() + 1e-300
        )
    return (
        r.ndim >= 2
        and float(r.abs().max()) <= 1.0
        and float(r.abs().max()) > 0.999
        and float(r.reshape(r.shape[0], -1)[0].abs().std()) < 0.5
        and bool(((r[0].abs() == 1) | (r[0] == 0)).all())
    )


def _unbiased(ev: Evidence) -> bool:
    """Whether d looks like rounding: bounded relative to |r| on the typical element and without a common factor."""
    index = sample_index(ev.r.numel(), 8192)
    r, d = ev.r.reshape(-1)[index], ev.d.reshape(-1)[index]
    slope = float((r * d).sum() / (r * r).sum()) if bool(r.any()) else 1.0
    return abs(slope) < 0.3 * ev.error


def hidden_cast(ev: Evidence) -> Iterator[Explanation]:
    """A cast that only one side's operations contain, and a difference of about that size (N4)."""
    if not comparable(ev, 8) or not (ev.ref_ops or ev.port_ops):
        return
    for name in ("bfloat16", "float16", "float32"):
        dtype = NARROW[name]
        ours, theirs = _casts(ev.ref_ops, dtype), _casts(ev.port_ops, dtype)
        # a cast of values that already lie on the grid costs nothing
        if bool(ours) == bool(theirs):
            continue
        side, other = ("port", "reference") if theirs else ("reference", "port")
        size = ev.error / UNIT[name]
        op = (theirs or ours)[0]
        if 0.02 < size < 300 and ev.error < 0.2 and HONEST_NOISE[dtype] * 2e-3 < ev.error:
            text = (
                f"the {side} casts to {name} inside this step and the {other} does not (error "
                f"{number(ev.error)}, {size:.1f} roundings of {name})"
            )
            parameters = {"dtype": name, "side": side, "source": op.source, "code": op.code}
            yield Explanation(text, 0.5, 0.72, parameters)
            return


def _casts(ops: Sequence[Op], dtype: torch.dtype) -> list[Op]:
    """Casts to `dtype` that really lose something."""
    found = []
    for op in ops:
        wanted = op.scalars.get("dtype")
        if op.name not in {"_to_copy", "to", "convert_element_type"} or not op.inputs:
            continue
        out = op.outputs[0].dtype if op.outputs else None
        if str(wanted).removeprefix("torch.") == str(dtype).removeprefix("torch.") or out == dtype:
            source = op.inputs[0]
            if source.is_floating_point() and source.numel() and grid_share(as_float64(source), dtype) < 0.99:
                found.append(op)
    return found


def bytes_export(ev: Evidence) -> Iterator[Explanation]:
    """Both sides are whole numbers 0..255 and differ as casts do: truncated or rounded, wrapped, unscaled (V10)."""
    if not ev.same_shape or ev.reference.numel() < 16 or not finite(ev) or ev.error == 0:
        return
    r, p = ev.r, ev.p
    if float(r.min()) < 0 or float(r.max()) > 255 or float(p.min()) < 0 or float(p.max()) > 255 or float(r.max()) <= 3:
        return
    if not (bool((r == r.round()).all()) and bool((p == p.round()).all())):
        return
    if torch.equal(torch.remainder(r * 255, 256), p):
        yield Explanation(
            "P is R·255 modulo 256: bytes were multiplied by 255 without widening", 0.0, 0.97, {"how": "unwidened"}
        )
        return
    d = ev.d
    low, high = float(d.min()), float(d.max())
    share = float((d != 0).double().mean())
    if (low, high) in {(-1.0, 0.0), (0.0, 1.0)}:
        if 0.25 < share < 0.75:
            text = (
                "is truncated where the reference is rounded"
                if low < 0
                else "is rounded where the reference is truncated"
            )
            yield Explanation(
                f"P {text}: d is {int(low or high)} in {share:.0%} of the bytes, else 0",
                0.0,
                0.93,
                {"share": share, "how": "truncated" if low < 0 else "rounded"},
            )
        return
    wrong = d != 0
    saturated = (r == 0) | (r == 255)
    inside = float((wrong & ~saturated).sum()) / max(1.0, float(wrong.sum()))
    if inside < 0.01 and bool(wrong.any()) and float((p[wrong] - r[wrong]).abs().mean()) > 100:
        text = (
            f"P differs only where R is 0 or 255 ({int(wrong.sum())} bytes, by "
            f"{number(float(d[wrong].abs().mean()))} on average): no clamp before the cast, values wrapped "
            "around"
        )
        yield Explanation(text, 0.0, 0.94, {"count": int(wrong.sum()), "how": "wrapped"})


def float_to_bytes(ev: Evidence) -> Iterator[Explanation]:
    """One side is bytes, the other the float picture they were made of: P == trunc or round(255·x) for x = R or
    (R+1)/2 (V10).
    """
    if not comparable(ev, 16):
        return
    for side, whole, picture in (("port", ev.p, ev.r), ("reference", ev.r, ev.p)):
        index = sample_index(whole.numel())
        b, x = whole.reshape(-1)[index], picture.reshape(-1)[index]
        if (
            not bool((b == b.round()).all())
            or float(b.max()) <= 3
            or float(b.min()) < 0
            or float(b.max()) > 255
            or bool((x == x.round()).all())
        ):
            continue
        for label, scaled in (("x", x), ("(x + 1)/2", (x + 1) / 2)):
            for how, bytes_ in (
                ("truncated", (scaled.clamp(0, 1) * 255).trunc()),
                ("rounded", (scaled.clamp(0, 1) * 255).round()),
            ):
                if float((bytes_ == b).double().mean()) > 0.995:
                    text = f"the {side} holds bytes of 255·{label} ({how}), the other side the float picture"
                    yield Explanation(text, 0.0, 0.9, {"side": side, "how": how}, "V10")
                    return


def dtype_differs(ev: Evidence) -> Iterator[Explanation]:
    """The two records have another dtype and differ by about one rounding of the coarser one (N4)."""
    r, p = ev.reference.dtype, ev.port.dtype
    if (
        r == p
        or not (r.is_floating_point and p.is_floating_point)
        or not ev.same_shape
        or ev.reference.numel() < 8
        or not finite(ev)
    ):
        return
    coarse = r if torch.finfo(r).eps > torch.finfo(p).eps else p
    name = str(coarse).removeprefix("torch.")
    if name in UNIT and 0.2 * UNIT[name] < ev.error < 60 * UNIT[name] and _unbiased(ev):
        side = "port" if coarse == p else "reference"
        text = (
            f"the reference holds {str(r).removeprefix('torch.')} and the port "
            f"{str(p).removeprefix('torch.')}: the {side} is {name} here (error {number(ev.error)})"
        )
        yield Explanation(text, 0.6, 0.6, {"reference": str(r), "port": str(p)}, _rounding_class(ev))


def cleaned_nan(ev: Evidence) -> Iterator[Explanation]:
    """NaN replaced by 0: P is 0 exactly where R is not finite (V10: the cleaning hides the fault)."""
    if not ev.same_shape or ev.reference.numel() < 4 or finite(ev):
        return
    bad = ~torch.isfinite(ev.r)
    if bool(bad.any()) and bool(torch.isfinite(ev.p).all()) and not bool(ev.p[bad].any()):
        text = f"the reference has {int(bad.sum())} non-finite elements where the port has 0: they were cleaned away"
        yield Explanation(text, 0.0, 0.9, {"count": int(bad.sum())})


HYPOTHESES: tuple[Hypothesis, ...] = (
    Hypothesis("rounded", "N4", rounded, 0.95),
    Hypothesis("hidden_cast", "N4", hidden_cast, 0.6),
    Hypothesis("dtype_differs", "N4", dtype_differs, 0.4),
    Hypothesis("bytes_export", "V10", bytes_export, 0.9),
    Hypothesis("float_to_bytes", "V10", float_to_bytes, 0.7),
    Hypothesis("cleaned_nan", "V10", cleaned_nan, 0.8),
    *NONFINITE,
)
