"""Randomness causes: another stream, another order or dtype of draws, draws reused, random operations on one side (BUGS.md S1–S3)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from parity.diagnose.evidence import Evidence, Explanation, Hypothesis
from parity.diagnose.roles import close, comparable, fitted, like_reference, noise

KINDS = ("latent", "input", "activation", "output")
FEWEST = 128


def looks_normal(x: Tensor) -> bool:
    """Say whether values look like independent N(0, 1) draws: mean, variance, skew, kurtosis and neighbours, each within 4 to 5 sigma."""
    flat = x.flatten()
    flat = flat if flat.numel() <= 1_000_000 else flat[:1_000_000]
    n = flat.numel()
    if n < FEWEST or not bool(torch.isfinite(flat).all()):
        return False
    mean, variance = float(flat.mean()), float(flat.var())
    if abs(mean) > 5 / math.sqrt(n) or abs(variance - 1) > 5 * math.sqrt(2 / n) + 4e-3:
        return False
    skew, kurtosis = float(flat.pow(3).mean()), float(flat.pow(4).mean()) / variance**2
    if abs(skew) > 5 * math.sqrt(15 / n) or abs(kurtosis - 3) > 4 * math.sqrt(24 / n) + 2e-2:
        return False
    for axis in range(x.dim()):
        size = x.shape[axis]
        if size > 1 and n == x.numel():
            product = x.narrow(axis, 1, size - 1) * x.narrow(axis, 0, size - 1)
            if abs(float(product.mean())) > 5 / math.sqrt(product.numel()):
                return False
    return True


def other_stream(ev: Evidence) -> Iterable[Explanation]:
    """S1, S2: R and P are both N(0, 1) noise with correlation 0: another generator, seed, device or draw."""
    if not comparable(ev) or ev.kind not in KINDS or not ev.reference.is_floating_point():
        return
    n = ev.r.numel()
    cosine = float((ev.r * ev.p).sum() / (ev.r.norm() * ev.p.norm()).clamp_min(1e-300))
    if abs(cosine) > 5 / math.sqrt(max(n, 1)) or not (looks_normal(ev.r) and looks_normal(ev.p)):
        return
    if _rearranged(ev) is not None:
        return
    first = ev.coords.get("step", 0) == 0 and ev.coords.get("frame", 0) == 0
    text = f"both are N(0, 1) noise and unrelated (cosine {cosine:+.3f}): "
    text += (
        "another generator, seed or device"
        if first
        else "a later draw differs: generator ignored or drawn in another order"
    )
    sure = (0.85 if n >= 1024 else 0.75) if ev.kind in ("latent", "input") else 0.5
    yield Explanation(text, 1.0, sure, {"cosine": cosine}, "S1" if first else "S2")


def _rearranged(ev: Evidence) -> tuple[str, dict[str, int]] | None:
    """Say how the port's draws are the reference's: the stream moved by k, or the same values in another order."""
    r, p = ev.r.flatten(), ev.p.flatten()
    near = 1e-6 * (1 + 3e3 * noise(ev))
    start = p[: min(64, len(p) // 2)]
    for name, ours, theirs in (("later", r, start), ("earlier", p, r[: len(start)])):
        at = torch.nonzero(
            (ours[: len(ours) - len(theirs) + 1] - theirs[0]).abs() <= near + 1e-6 * theirs[0].abs()
        ).flatten()
        for k in at[:8].tolist():
            if k > 0 and close(ours[k : k + len(theirs)], theirs, 1e-5 + 3 * noise(ev)):
                overlap = len(r) - k
                a, b = (r[k:], p[:overlap]) if name == "later" else (r[:overlap], p[k:])
                if close(b, a, 1e-5 + 3 * noise(ev)):
                    sign = k if name == "later" else -k
                    return f"the stream of draws is moved by {sign:+d} values", {"offset": sign}
    if not torch.equal(r, p) and close(p.sort().values, r.sort().values, 1e-6 + noise(ev)) and r.numel() >= FEWEST:
        return "the same draws in another order: drawn in another shape or layout", {}
    return None


def stream_order(ev: Evidence) -> Iterable[Explanation]:
    """S2: the same draws moved along the stream or laid out otherwise. Only for N(0, 1) noise."""
    if not comparable(ev) or ev.kind not in KINDS or ev.r.numel() < FEWEST or ev.r.numel() > 20_000_000:
        return
    if ev.error < 0.05:  # nearly the same draws in the same places
        return
    found = _rearranged(ev) if looks_normal(ev.r) else None
    if found is not None:
        yield Explanation(found[0], 0.0, 0.98 if ev.kind == "latent" else 0.6, found[1], "S2")


def noise_dtype(ev: Evidence) -> Iterable[Explanation]:
    """S2: N(0, 1) noise rounded to bf16 or fp16, P = bf16(R): drawn in, or cast to, another dtype."""
    if ev.kind not in ("latent", "input") or not ev.same_shape or ev.error <= ev.floor or ev.r.numel() < FEWEST:
        return
    if not ev.reference.is_floating_point() or not looks_normal(ev.r) or _made_of_others(ev):
        return
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        for low, high, who in ((ev.p, ev.r, "the port"), (ev.r, ev.p, "the reference")):
            if torch.equal(high.to(dtype).to(torch.float64), low) and not torch.equal(high, low):
                text = f"{who}'s noise is the other side's rounded to {name}: it is drawn in, or cast to, that dtype"
                yield Explanation(text, 0.0, 0.98, {"dtype": name}, "S2")
                return


def _made_of_others(ev: Evidence) -> bool:
    """Say whether R follows a tensor that went in: the result of a step, no fresh draw."""
    r = ev.r.flatten()
    return any(
        abs(float((r * x.flatten()).sum())) > 0.3 * float(r.norm() * x.norm()) for _, x in like_reference(ev)[:8]
    )


def reused_draw(ev: Evidence) -> Iterable[Explanation]:
    """S3: the slices of P along one axis are all alike, R's are independent noise: one draw is used for all."""
    if not comparable(ev) or ev.kind not in KINDS or ev.r.dim() < 2 or not looks_normal(ev.r):
        return
    for axis in range(ev.r.dim() - 1):
        size = ev.r.shape[axis]
        if size < 2 or ev.r.numel() // size < 16:
            continue
        first = ev.p.select(axis, 0).unsqueeze(axis)
        if close(ev.p, first.expand_as(ev.p), 1e-6 + 3 * noise(ev)):
            ours = ev.r.select(axis, 0).unsqueeze(axis)
            same = close(first, ours, 1e-6 + 3 * noise(ev))
            text = f"one draw is used for all {size} slices along axis {axis}" + (
                " (the reference's first)" if same else ""
            )
            if same:
                yield from fitted(ev, ours.expand_as(ev.p), text, 0.95, "S3", axis=axis)
            else:
                yield Explanation(text, 0.0, 0.93, {"axis": axis}, "S3")
            return


HYPOTHESES: tuple[Hypothesis, ...] = (
    Hypothesis("other noise", "S1", other_stream, 0.5),
    Hypothesis("order of draws", "S2", stream_order, 0.7),
    Hypothesis("dtype of noise", "S2", noise_dtype, 0.8),
    Hypothesis("reused draw", "S3", reused_draw, 0.8),
)
