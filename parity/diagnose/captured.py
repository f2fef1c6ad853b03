"""Numbers that should change from call to call and stay those of the first one (BUGS.md K9)."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .evidence import Evidence, Explanation, Hypothesis, as_float64
from .fits import number

_MOST = 64  # elements: coefficients of a step are a few numbers
_SITES = 400


def captured(ev: Evidence) -> Iterator[Explanation]:
    """P is a value of the reference at an earlier index of the last axis, and stays it at the later ones, where R moves on (K9)."""
    axis = next((a for a in reversed(list(ev.coords)) if a != "call"), None)
    if axis is None or ev.coords[axis] == 0 or not ev.same_shape or not 0 < ev.reference.numel() <= _MOST:
        return
    if not ev.reference.is_floating_point() or not bool(torch.isfinite(ev.p).all()):
        return
    later = _following(ev, axis)
    if not later or any(_same(p, ev.r) for _, p in later) or not all(_same(p, ev.p) for _, p in later):
        return
    if all(_same(r, ev.r) for r, _ in later):
        return
    first = {a: i for a, i in ev.coords.items() if a != "call"} | {axis: 0}
    for site in [ev.site, *reversed(list(ev.sites)[-_SITES:])]:
        value = ev.ref_at(site, first)
        if value is not None and value.shape == ev.reference.shape and _same(as_float64(value), ev.p):
            text = (
                f"P is the reference's {site} at {axis} 0 ({number(float(ev.p.flatten()[0]))}) and stays so at the {len(later)} later ones: "
                "numbers of the first call were captured"
            )
            yield Explanation(text, 0.0, 0.95, {"axis": axis, "source": site})
            return


def _following(ev: Evidence, axis: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Both values of this site at the next indices of an axis, as far as both sides have them."""
    found = []
    for index in range(ev.coords[axis] + 1, ev.coords[axis] + 65):
        coords = dict(ev.coords) | {axis: index}
        r, p = ev.ref_at(ev.site, coords), ev.port_at(ev.site, coords)
        if r is None or p is None or r.shape != ev.reference.shape or p.shape != r.shape:
            break
        found.append((as_float64(r), as_float64(p)))
    return found


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(torch.allclose(a, b, rtol=1e-5, atol=0.0))


HYPOTHESES: tuple[Hypothesis, ...] = (Hypothesis("captured numbers", "K9", captured, 0.8),)
