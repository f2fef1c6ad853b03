"""Scales of quantised layers: applied once more or not at all, overwritten while the model runs, or not those of an added adapter (BUGS.md W1, Q5, Q7)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .evidence import Evidence, Explanation, Hypothesis, as_float64
from .fits import comparable, near, number

_EXACT = 1e-5
_MOST = 12


def scale_again(ev: Evidence) -> Iterator[Explanation]:
    """P − b == s·(R − b), or (R − b)/s, with a scale s (and a bias b) of this very layer: it counts twice, or not at all (W1)."""
    if not comparable(ev, 8) or ev.r.ndim < 1 or ev.kind in {"mask", "rope", "schedule"}:
        return
    width = ev.r.shape[-1]
    vectors = [
        (name, as_float64(ref).flatten())
        for name, (ref, _) in ev.parameters.items()
        if ref is not None and _usable(ref, width)
    ][:_MOST]
    nothing = ("", torch.zeros(1, dtype=torch.float64))
    for bias_name, bias in [nothing, *((n, v) for n, v in vectors if v.numel() == width)]:
        left, right = ev.r - bias, ev.p - bias
        whole = float(torch.linalg.vector_norm(right))
        for name, s in vectors:
            if name == bias_name or bool((s == 0).any()) or bool(((s.abs() - 1).abs() < 1e-3).all()):
                continue
            for factor, said in ((s, "is applied once more"), (1 / s, "is not applied")):
                apart = float(torch.linalg.vector_norm(left * factor - right))
                if whole > 0 and apart <= _EXACT * whole:
                    text = f"the scale {name} of this layer {said}" + (
                        f", before the bias {bias_name}" if bias_name else ""
                    )
                    yield Explanation(text, apart / whole, 0.98, {"scale": name, "bias": bias_name})
                    return


def _usable(value: Tensor, width: int) -> bool:
    return value.is_floating_point() and value.numel() in (1, width) and value.itemsize > 1


def overwritten(ev: Evidence) -> Iterator[Explanation]:
    """R is an entry of a stored tensor, P what the port's copy of it holds there by now, and earlier calls agreed (Q5)."""
    if not ev.same_shape or ev.reference.numel() > 4 or not ev.reference.is_floating_point() or not ev.earlier:
        return
    here = next((i for i, row in enumerate(ev.table) if dict(row[1]) == dict(ev.coords)), 0)
    if here == 0 or any(error > floor for _, _, error, floor in ev.table[:here]):
        return
    for name, (ref, port) in ev.parameters.items():
        if ref is None or port is None or ref.shape != port.shape or ref.numel() > 4096 or torch.equal(ref, port):
            continue
        ours, theirs = as_float64(ref).flatten(), as_float64(port).flatten()
        at = [i for i, v in enumerate(ours.tolist()) if near(v, float(ev.r.flatten()[0]), 1e-6)]
        if len(at) == 1 and near(float(theirs[at[0]]), float(ev.p.flatten()[0]), 1e-6):
            text = f"entry {at[0]} of the stored {name} was overwritten by an earlier call: it holds {number(float(theirs[at[0]]))} by now"
            yield Explanation(text, 0.0, 0.96, {"parameter": name, "entry": at[0]})
            return


def adapter_in_units(ev: Evidence) -> Iterator[Explanation]:
    """The stored integers differ, and P − R is of low rank up to half a quantisation step: an adapter was added to the integers (Q7)."""
    if ev.kind != "weight" or not comparable(ev, 64) or ev.r.ndim != 2 or min(ev.r.shape) < 8:
        return
    moved = any(
        r is not None
        and p is not None
        and not r.is_floating_point()
        and r.shape == ev.reference.shape
        and not torch.equal(r, p)
        for r, p in ev.parameters.values()
    )
    if not moved:
        return
    values = torch.linalg.svdvals(ev.d)
    energy = values.square()
    for rank in range(1, max(2, min(ev.r.shape) // 4)):
        rest = float((energy[rank:].sum() / energy.sum()).sqrt())
        gap = float(values[rank - 1] / values[rank].clamp_min(1e-300))
        if rest < 0.1 and gap > 5:
            text = (
                f"the stored integers differ by an update of rank {rank} (all but {rest:.1%} of P − R): an adapter was added to the quantised "
                "weight in other units"
            )
            yield Explanation(text, rest, 0.9 - rest, {"rank": rank})
            return


HYPOTHESES: tuple[Hypothesis, ...] = (
    Hypothesis("scale applied again", "W1", scale_again, 0.9),
    Hypothesis("stored scale overwritten", "Q5", overwritten, 0.8),
    Hypothesis("adapter in quantised units", "Q7", adapter_in_units, 0.7),
)
