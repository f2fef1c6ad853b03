"""Quantised payload, whole numbers on both sides: rounded another way, with another scale, or clipped (Q2, Q3)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from .evidence import Evidence, Explanation, Hypothesis
from .fits import finite


def _payload(ev: Evidence) -> bool:
    """Whether both sides are whole numbers in [-128, 127] that use many levels and both signs (no masks, no bytes)."""
    if not ev.same_shape or ev.reference.numel() < 64 or not finite(ev) or ev.error == 0 or ev.kind == "mask":
        return False
    r, p = ev.r, ev.p
    within = max(float(r.abs().max()), float(p.abs().max())) <= 128 and float(r.min()) < 0 < float(r.max())
    return within and bool((r == r.round()).all()) and bool((p == p.round()).all()) and float(r.abs().max()) >= 7


def towards_zero(ev: Evidence) -> Iterator[Explanation]:
    """|P| is |R| or |R| − 1 with R's sign, in equal shares: truncated where the reference rounds (Q3)."""
    if not _payload(ev):
        return
    step = (ev.p.abs() - ev.r.abs())[ev.r != 0]
    same_sign = bool((ev.p * ev.r >= 0).all())
    share = float((step != 0).double().mean()) if step.numel() else 0.0
    for value, text, class_id in (
        (-1.0, "is rounded towards zero where the reference rounds to the nearest", "Q3"),
        (1.0, "is rounded to the nearest where the reference rounds towards zero", "Q3"),
    ):
        if same_sign and 0.2 < share < 0.8 and bool(((step == 0) | (step == value)).all()):
            yield Explanation(f"the payload {text} ({share:.0%} differ by one)", 0.0, 0.94, {"share": share}, class_id)


def other_scale(ev: Evidence) -> Iterator[Explanation]:
    """P == clamp(round(a·R)) up to the rounding, with one a per row: another scale; clipped when a > 1 and many sit at
    the end (Q2).
    """
    if not _payload(ev) or ev.r.ndim < 2:
        return
    r, p = ev.r.reshape(-1, ev.r.shape[-1]), ev.p.reshape(-1, ev.r.shape[-1])
    end = float(p.abs().max())
    free = (p.abs() < end) & (r.abs() > 0)
    a = ((r * p * free).sum(1, keepdim=True) / (r * r * free).sum(1, keepdim=True).clamp_min(1e-300)).clamp(0.01, 100)
    fits = (p - (a * r).clamp(-end, end)).abs() <= 0.51 + 0.51 * a + 0.01 * a * r.abs()  # both were rounded
    if float(fits.double().mean()) < 0.995:
        return
    clipped = float(((p.abs() == end) & (r.abs() < 0.95 * float(r.abs().max()))).double().mean())
    if clipped > 0.02 and float(a.median()) > 1.05:
        text = (
            f"the payload is clipped: {clipped:.1%} more of it sits at ±{end:.0f}, the rest is "
            f"{float(a.median()):.3g} times the reference's"
        )
        yield Explanation(text, 0.02, 0.93, {"clipped": clipped, "factor": float(a.median())})
    elif _full(r) > 0.9 and _full(p) < 0.6 and float(a.median()) < 0.99:
        text = (
            f"only {_full(p):.0%} of P's rows use the full range where all of R's do: one scale, "
            "set by the largest row, for all"
        )
        yield Explanation(text, 0.02, 0.94, {"factors": a.reshape(-1)[:32].tolist()})
    elif float((a - 1).abs().median()) > 0.01:
        text = f"the payload has another scale: {float(a.median()):.4g} times the reference's levels"
        yield Explanation(text, 0.02, 0.8, {"factor": float(a.median())})


def _full(x: Tensor) -> float:
    """Share of rows that reach the end of the range."""
    return float((x.abs().amax(dim=1) >= 127).double().mean())


HYPOTHESES: tuple[Hypothesis, ...] = (
    Hypothesis("payload_truncated", "Q3", towards_zero, 0.8),
    Hypothesis("payload_scale", "Q2", other_scale, 0.6),
)
