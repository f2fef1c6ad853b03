"""Activation causes: which curve, or none, or twice; dropout (BUGS.md N2, N5, N6, N8)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from parity.diagnose.activations import CURVES, activated, invert_from_values, operation_values
from parity.diagnose.evidence import Evidence, Explanation, relative_error
from parity.diagnose.normal_forms import Kind, norm_of, unit
from parity.diagnose.roles import (
    comparable_floats,
    confidence,
    fitted,
    limit,
    memo,
)


def repeated(ev: Evidence) -> Iterable[Explanation]:
    """N6 with an activation, or a norm whose input is not at hand: P = f(R) for an elementwise f or a parameter-free norm."""
    if not comparable_floats(ev) or ev.kind in ("rope", "mask", "schedule", "weight") or norm_of(ev) is not None:
        return
    readings = [a for a in _readings(ev) if not a.where]
    for reading in readings[:1]:
        curve = CURVES[reading.curve]
        if reading.curve != "no activation":
            yield from fitted(ev, curve(ev.r), f"the activation ({reading.curve}) was applied twice", 0.95, "N6")
    if ev.r.dim() >= 2 and ev.r.shape[-1] >= 4:
        for kind in (Kind("rms"), Kind("layer")):
            flat = unit(ev.r, kind, 1e-6)
            if relative_error(flat, ev.r) > 1e-3:
                text = f"P is the {kind.text} of R: one norm too many"
                yield from fitted(ev, flat, text, 0.93, "N6", kind=kind.name)


def _readings(ev: Evidence) -> list:  # type: ignore[type-arg]
    return memo(ev, "activated", lambda e: list(activated(e)))


def activation(ev: Evidence) -> Iterable[Explanation]:
    """N2: P = g(x) where R = f(x): exact, tanh or quick GELU, SiLU, ReLU, none; alone, gated, or next to projections."""
    if not comparable_floats(ev) or ev.kind in ("mask", "schedule", "rope", "weight"):
        return
    for reading in _readings(ev):
        whole = float(torch.linalg.vector_norm(reading.p - reading.r))
        for name, curve in CURVES.items():
            if name == reading.curve or whole <= 0:
                continue
            residual = float(torch.linalg.vector_norm(reading.build(curve) - reading.p)) / whole
            if residual <= limit(ev):
                if name == "no activation":
                    text = f"the activation ({reading.curve}) {reading.where} is missing".replace("  ", " ")
                elif reading.curve == "no activation":
                    text = f"{name} {reading.where} is applied where the reference has none".replace("  ", " ")
                else:
                    text = f"the activation {reading.where} is {name} instead of {reading.curve}".replace("  ", " ")
                values = {"reference": reading.curve, "port": name}
                missing = "no activation" in (name, reading.curve)  # a missing term rather than a variant
                sure = confidence(ev, residual, 0.96)
                yield Explanation(text, residual, sure, values, "N5" if missing else "N2")
                return
    yield from _activation_of_operations(ev)
    yield from _activation_of_values(ev)


def _activation_of_operations(ev: Evidence) -> Iterator[Explanation]:
    for x, ours, theirs in operation_values(ev):
        whole = float(torch.linalg.vector_norm(theirs - ours))
        if whole <= 0:
            continue
        mine = next((n for n, f in CURVES.items() if relative_error(f(x), ours) < 1e-5), None)
        for name, curve in CURVES.items():
            if (
                mine
                and name not in (mine, "no activation")
                and float(torch.linalg.vector_norm(curve(x) - theirs)) < 0.02 * whole
            ):
                text = f"an operation on the way ran {name} instead of {mine}"
                yield Explanation(text, 0.02, 0.93, {"reference": mine, "port": name}, "N2")
                return


def _activation_of_values(ev: Evidence) -> Iterator[Explanation]:
    """Both tensors alone: GELU and SiLU do not fall below −0.28, and one maps to the other where they are positive."""
    if ev.r.numel() < 64 or float(ev.r.min()) < -0.3 or float(ev.r.max()) < 0.3:
        return
    found = invert_from_values(ev.r.flatten(), ev.p.flatten())
    if found is not None and found[2] < 0.01:
        text = f"the activation is {found[1]} instead of {found[0]} (read off the two outputs)"
        yield Explanation(text, found[2], 0.85, {"reference": found[0], "port": found[1]}, "N2")


def dropout(ev: Evidence) -> Iterable[Explanation]:
    """N8: a share p of P is zero where R is not, and the rest is R/(1 − p)."""
    if not comparable_floats(ev) or ev.r.numel() < 256:
        return
    alive = ev.r != 0
    gone = alive & (ev.p == 0)
    share = float(gone.sum()) / max(1.0, float(alive.sum()))
    if not 0.01 < share < 0.95 or not bool((ev.p[~alive] == 0).all()):
        return
    kept = alive & ~gone
    factor = float((ev.r[kept] * ev.p[kept]).sum() / ev.r[kept].square().sum().clamp_min(1e-300))
    expected = 1 / (1 - share)
    scatter = 3 * math.sqrt(share * (1 - share) / float(alive.sum())) * expected**2
    if abs(factor - expected) > scatter + 0.01 * expected or factor < 1.005:
        return
    if not _scattered(gone):
        return
    explained = torch.where(gone, torch.zeros_like(ev.r), factor * ev.r)
    text = f"dropout is active: {share:.1%} of the values are zero and the rest is multiplied by {factor:.4g}"
    yield from fitted(ev, explained, text, 0.95, "N8", p=1 - 1 / factor)


def _scattered(gone: Tensor) -> bool:
    """Say whether zeros fall at random along every axis, rather than on whole rows, channels or tokens."""
    share = float(gone.double().mean())
    for axis in range(gone.dim()):
        size = gone.shape[axis]
        if size < 2:
            continue
        count = gone.numel() / size
        part = gone.double().mean([a for a in range(gone.dim()) if a != axis]) if gone.dim() > 1 else gone.double()
        if gone.dim() > 1 and float((part - share).abs().max()) > 6 * math.sqrt(share * (1 - share) / count) + 1e-9:
            return False
    return True
