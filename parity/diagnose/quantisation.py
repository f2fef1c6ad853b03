"""Quantised values: the grid the port's numbers lie on, whether the scale is healthy, and what was lost at its ends.

Classes: Q2 Q3 Q6 Q7 W1 of the bug list (Q4, the overflow before the scale, is found in `nonfinite.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .evidence import Evidence, Explanation, Hypothesis
from .fits import noise_level, number, sample_index, scalar_fit

FLOAT8 = {
    "float8_e4m3fn": (torch.float8_e4m3fn, 448.0),
    "float8_e5m2": (torch.float8_e5m2, 57344.0),
    "float8_e4m3fnuz": (torch.float8_e4m3fnuz, 240.0),
    "float8_e5m2fnuz": (torch.float8_e5m2fnuz, 57344.0),
}
GROUPS = (256, 128, 64, 32, 16)


@dataclass(frozen=True)
class Grid:
    """`scope`: tensor, row, column or group of n; `rows`: the values as [groups, members]; `step`: one scale per group;
    `levels`: the largest integer used; `index`: which groups `rows` holds (all, or a sample)."""

    scope: str
    step: Tensor
    rows: Tensor
    levels: int
    index: Tensor

    def residual(self, r: Tensor) -> float:
        """‖P − snapped R‖ / ‖P − R‖ over the sampled groups, R snapped to the same scales and levels."""
        rows = next(rows for scope, rows in scopes(r) if scope == self.scope)[self.index]
        keep = self.step > 0
        step, p = self.step[keep, None], self.rows[keep]
        snapped = (rows[keep] / step).round().clamp(-self.levels, self.levels) * step
        whole = float(torch.linalg.vector_norm(p - rows[keep]))
        return float(torch.linalg.vector_norm(p - snapped)) / whole if whole > 0 else 1.0


def scopes(x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The usual scopes of a scale: tensor, row (first axis), column (last axis), groups along the last axis."""
    yield "tensor", x.reshape(1, -1)
    if x.ndim >= 2:
        yield "row", x.reshape(x.shape[0], -1)
        yield "last axis", x.reshape(-1, x.shape[-1])
        yield "column", x.reshape(-1, x.shape[-1]).T
        for group in GROUPS:
            if x.shape[-1] % group == 0 and x.shape[-1] > group:
                yield f"group of {group}", x.reshape(-1, group)


def integer_grid(x: Tensor, noise: float) -> Grid | None:
    """Find scales s with x/s whole and |x/s| ≤ 128, one per scope; None unless nearly all groups fit and use many
    levels.

    The step is the group's largest value over k for k = 127, 128, 7, 8, or the smallest distance between its distinct
    values.
    """
    for scope, rows in scopes(x):
        if rows.shape[1] < 12 or rows.shape[1] * 2 < 24:
            continue
        some = rows[sample_index(rows.shape[0], 12)]
        if rows.shape[0] >= 1 and sum(_step(row, noise) is not None for row in some) < 0.9 * len(some):
            continue
        index = sample_index(rows.shape[0], 256)
        chosen = rows[index]
        steps = [_step(row, noise) for row in chosen]
        if sum(s is not None for s in steps) < 0.95 * len(steps):
            continue
        step = torch.tensor([s if s is not None else math.nan for s in steps], dtype=torch.float64)
        levels = (chosen.abs().amax(dim=1) / step).nan_to_num().max()
        return Grid(scope, step, chosen, round(float(levels)), index)
    return None


def _step(row: Tensor, noise: float) -> float | None:
    """The scale of one group, or None. Needs more elements than levels, or exact multiples."""
    row = row[sample_index(row.numel(), 4096)]
    top = float(row.abs().max())
    if top == 0 or not math.isfinite(top):
        return None
    values = torch.unique(row)
    if len(values) > 256 or len(values) < 3 or noise > 1e-3:
        return None
    gaps = values.diff()
    smallest = float(gaps[gaps > top * 1e-6].min()) if bool((gaps > top * 1e-6).any()) else 0.0
    candidates = [top / k for k in (127, 128, 7, 8)] + ([smallest] if smallest > 0 else [])
    for step in candidates:
        k = values / step
        if float((k - k.round()).abs().max()) < max(0.01, 300 * noise) and 3 <= top / step <= 128.5:
            # many different values must share the grid: random numbers do not fall on 255 levels to 1 %
            distinct = len(torch.unique(k.round()))
            if distinct >= 3 and (len(values) >= 6 or row.numel() >= 64):
                return step
    return None


def int8_grid(ev: Evidence) -> Iterator[Explanation]:
    """P/s is whole with ≤ 256 levels and R's is not: a quantised tensor. Healthy (Q6), bad range (Q2), or raw payload
    (W1).
    """
    if not _usable(ev):
        return
    grid = integer_grid(ev.p, noise_level(ev))
    own = integer_grid(ev.r, noise_level(ev)) if grid is not None else None
    if grid is not None and own is not None and grid.scope == "tensor" and own.scope != "tensor" and ev.error < 0.4:
        text = (
            f"P has one int8 scale for the whole tensor where R has one per {own.scope}: the "
            f"widest rules all (error {ev.error:.2g})"
        )
        yield Explanation(text, grid.residual(ev.r), 0.94, {"scope": grid.scope, "reference": own.scope}, "Q2")
    if grid is None or own is not None:
        return
    slope, _ = scalar_fit(ev.p, ev.r)
    bits = 4 if grid.levels <= 8 else 8
    parameters = {
        "scope": grid.scope,
        "levels": grid.levels,
        "bits": bits,
        "step": float(grid.step.nanmedian()),
        "slope": slope,
    }
    if bool((grid.step == 1).all()) and not 0.5 < slope < 2:
        yield Explanation(
            f"P holds raw int{bits} payload: the scale was never applied (P/R is about {number(slope)})",
            0.3,
            0.93,
            parameters,
            "W1",
        )
        return
    if not 0.2 < slope < 5:
        yield Explanation(
            f"P lies on an int{bits} grid with a wrong scale (P/R is about {number(slope)})",
            0.3,
            0.85,
            parameters,
            "W1",
        )
        return
    ends, residual = _at_ends(grid), grid.residual(ev.r)
    if residual > 0.6:
        return  # on a grid, but not R's rounding to it
    parameters["clipped"] = ends
    outlier = float(ev.r.abs().max()) / (float(ev.r.reshape(-1).abs().median()) * 1.4826 + 1e-300)
    trust = 0.94 - 0.1 * min(1.0, residual / 0.3)
    if slope < 0.97 and ends > 0.01:
        text = (
            f"P is int{bits} per {grid.scope} with clipping: {ends:.1%} of it sits at "
            f"±{grid.levels} steps, slope {slope:.3f}"
        )
        yield Explanation(text, residual, trust, parameters, "Q2")
    elif ev.error > 0.03 and grid.scope == "tensor" and outlier > 20:
        text = (
            f"P is int{bits} with one scale for the whole tensor, ruined by outliers ({outlier:.0f} "
            f"times the typical value): error {ev.error:.2g}"
        )
        yield Explanation(text, residual, trust, {**parameters, "outlier": outlier}, "Q2")
    elif ev.error > 0.03 and bits == 8:
        text = (
            f"P is int8 per {grid.scope} with a scale too coarse for its values: error "
            f"{ev.error:.2g} instead of about 0.01"
        )
        yield Explanation(text, residual, trust - 0.05, parameters, "Q2")
    else:
        text = (
            f"P is int{bits} per {grid.scope} where R is not quantised (error {ev.error:.2g}, as that rounding gives)"
        )
        yield Explanation(text, residual, trust - 0.02, parameters, "Q6")


def _at_ends(grid: Grid) -> float:
    """Share of elements at the largest level of their group, beyond the one that defines the scale."""
    k = (grid.rows / grid.step[:, None]).round().abs()
    top = k.amax(dim=1, keepdim=True)
    at = ((k == top).double().sum(dim=1) - 1).clamp_min(0)
    return float(at.sum() / k.numel())


def _usable(ev: Evidence) -> bool:
    return (
        ev.same_shape
        and ev.reference.numel() >= 64
        and ev.reference.is_floating_point()
        and bool(torch.isfinite(ev.r).all())
        and bool(torch.isfinite(ev.p).all())
        and ev.error > 1e-4
    )


def float8_grid(ev: Evidence) -> Iterator[Explanation]:
    """P/s is on a float8 grid and R's is not: healthy storage (Q6), or saturated / NaN at the top (Q3)."""
    if (
        not ev.same_shape
        or ev.reference.numel() < 64
        or not ev.reference.is_floating_point()
        or not bool(torch.isfinite(ev.r).all())
    ):
        return
    good = torch.isfinite(ev.p)
    if not bool(good.any()) or ev.error <= 1e-3 or not _few_values(ev.p):
        return
    values = ev.p[good]
    for name, (dtype, largest) in FLOAT8.items():
        scale = _float8_scale(values, dtype, largest)
        if scale is None or (_on_float8(ev.r, dtype, scale) > 0.9):
            continue
        beyond = ev.r.abs() / scale > largest * 1.04
        lost = beyond & (~good | (ev.p.abs() >= 0.999 * largest * scale))
        parameters = {"dtype": name, "scale": scale, "beyond": int(beyond.sum()), "nan": int((~good).sum())}
        slope, _ = scalar_fit(values, ev.r[good])
        if scale == 1.0 and not 0.5 < slope < 2:
            class_id = "W1" if ev.r.ndim <= 2 else "Q4"
            text = f"P holds raw {name} payload: the scale is not applied here (P/R is about {number(slope)})"
            yield Explanation(text, 0.0, 0.98, {**parameters, "slope": slope}, class_id)
        elif bool(beyond.any()) and float(lost.sum()) > 0.9 * float(beyond.sum()):
            how = "NaN" if int((~good).sum()) else "saturated"
            text = (
                f"P is {name} with scale {number(scale)} and {how} at {int(beyond.sum())} elements "
                f"beyond ±{number(largest * scale)}"
            )
            yield Explanation(text, 0.05, 0.94, parameters, "Q3")
        elif bool(good.all()):
            rebuilt = (ev.r / scale).clamp(-largest, largest).to(torch.float32).to(dtype).to(torch.float64) * scale
            exact = float(((rebuilt - ev.p).abs() <= 1e-5 * ev.p.abs()).double().mean())
            if exact > 0.98:
                text = (
                    f"P is R rounded to {name} with scale {number(scale)} (error {ev.error:.2g}, as that format gives)"
                )
                yield Explanation(text, ev.residual(rebuilt), 0.93, parameters, "Q6")
            else:
                text = (
                    f"P lies on the {name} grid with scale {number(scale)}, but only {exact:.0%} of it is "
                    "R's rounding: another rounding or range"
                )
                yield Explanation(text, 0.3, 0.8, parameters, "Q3")
        return


def _on_float8(x: Tensor, dtype: torch.dtype, scale: float) -> float:
    x = x.reshape(-1)[sample_index(x.numel(), 2048)] / scale
    x = x[x != 0]
    if not x.numel():
        return 0.0
    back = x.to(torch.float32).to(dtype).to(torch.float64)
    return float(((back - x).abs() <= 2e-6 * x.abs()).double().mean())


def _float8_scale(x: Tensor, dtype: torch.dtype, largest: float) -> float | None:
    """A scale s with every x/s on the grid: 1, the largest value over the format's largest, or over its top-binade
    values.
    """
    if len(torch.unique(x.reshape(-1)[sample_index(x.numel(), 4096)].abs())) > 256:
        return None
    top = float(x.abs().max())
    if top == 0:
        return None
    mantissas = (1.0, 1.125, 1.25, 1.375, 1.5, 1.625, 1.75, 1.875)
    for scale in (1.0, top / largest, *(top / m for m in mantissas)):
        if _on_float8(x, dtype, scale) == 1.0 and top / scale <= largest * 1.001:
            return scale
    return None


def _few_values(x: Tensor) -> bool:
    """Whether a sample holds few distinct magnitudes: a cheap look before any grid is tried."""
    x = x.reshape(-1)[sample_index(x.numel(), 4096)]
    return len(torch.unique(x[torch.isfinite(x)].abs())) <= 256


HYPOTHESES: tuple[Hypothesis, ...] = (
    Hypothesis("int8_grid", "Q2", int8_grid, 0.7),
    Hypothesis("float8_grid", "Q3", float8_grid, 0.7),
)
