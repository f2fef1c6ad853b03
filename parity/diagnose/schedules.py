"""Schedules and time embeddings as numbers: the flow shift of a sigma table, the frequencies of a sinusoid (BUGS.md T1–T6)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from parity.diagnose.rotary import Line, geometric_line

ROUNDINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "rounded to bf16": lambda t: t.to(torch.bfloat16).to(torch.float64),
    "rounded to fp16": lambda t: t.to(torch.float16).to(torch.float64),
    "rounded down to a whole number": torch.floor,
    "rounded to a whole number": torch.round,
}


@dataclass(frozen=True)
class FlowTable:
    """A table σ_i = s·u_i / (1 + (s − 1)·u_i) with u linear from `first` to `last`; `error` is the largest deviation."""

    shift: float
    first: float
    last: float
    error: float
    count: int

    def sigmas(self) -> Tensor:
        u = torch.linspace(self.first, self.last, self.count, dtype=torch.float64)
        return self.shift * u / (1 + (self.shift - 1) * u)


def flow_table(sigmas: Tensor) -> FlowTable | None:
    """Fit a shifted linear schedule to σ in (0, 1], leaving out a closing zero; None when the table is not one."""
    values = sigmas[:-1] if len(sigmas) > 3 and float(sigmas[-1]) == 0.0 else sigmas
    if (
        len(values) < 3
        or float(values.min()) <= 0
        or float(values.max()) > 1.0 + 1e-6
        or not bool((values.diff() < 0).all())
    ):
        return None

    def bent(shift: float) -> float:
        u = values / (shift - (shift - 1) * values)
        straight = torch.linspace(float(u[0]), float(u[-1]), len(u), dtype=torch.float64)
        return float((u - straight).abs().max() / (u[0] - u[-1]).abs().clamp_min(1e-300))

    best = min((math.exp(n / 8) for n in range(-40, 57)), key=bent)
    low, high = math.log(best) - 0.15, math.log(best) + 0.15
    for _ in range(60):
        third = (high - low) / 3
        if bent(math.exp(low + third)) < bent(math.exp(high - third)):
            high -= third
        else:
            low += third
    shift = math.exp((low + high) / 2)
    found = _flow(values, shift)
    if len(values) == 3:  # three values fit some schedule always: only a round shift is one that somebody chose
        tidy = _flow(values, round(shift * 2) / 2) if shift > 0.4 else found
        return tidy if tidy.error < 1e-5 else None
    for simple in (float(round(shift)), round(shift * 100) / 100):
        if simple > 0 and abs(shift - simple) < 2e-3 * shift:
            tidy = _flow(values, simple)
            if tidy.error <= 1.5 * found.error + 1e-9:
                found = tidy
                break
    return found if found.error < 2e-4 else None


def _flow(values: Tensor, shift: float) -> FlowTable:
    """Take the end points at a given shift and measure how far the table is from the schedule that they span."""
    u = values / (shift - (shift - 1) * values)
    table = FlowTable(shift, float(u[0]), float(u[-1]), 0.0, len(values))
    return replace(table, error=float((table.sigmas() - values).abs().max()))


@dataclass(frozen=True)
class Sinusoid:
    """An embedding [n, 2m] read as amplitude·(cos θ, sin θ) with θ[n, j] = t_n·f_j, f geometric."""

    order: str
    amplitude: float
    lines: tuple[Line, ...]

    @property
    def times(self) -> Tensor:
        """t·f_0 for every row."""
        return torch.tensor([line.amount for line in self.lines], dtype=torch.float64)

    @property
    def rate(self) -> float:
        """log f_j − log f_(j+1), from the row with the largest time."""
        line = max(self.lines, key=lambda one: abs(one.amount))
        return math.log(line.base) / line.distinct


ORDERS = ("cos, sin halves", "sin, cos halves", "cos, sin interleaved", "sin, cos interleaved")


def angle_parts(x: Tensor, order: str) -> tuple[Tensor, Tensor]:
    """Return (cos part, sin part) of the last axis under one order."""
    half = x.shape[-1] // 2
    a, b = (x[..., :half], x[..., half:]) if "halves" in order else (x[..., 0::2], x[..., 1::2])
    return (a, b) if order.startswith("cos") else (b, a)


def write_sinusoid(theta: Tensor, amplitude: float, order: str) -> Tensor:
    """Undo `angle_parts`: [n, m] angles to an embedding [n, 2m]."""
    c, s = amplitude * theta.cos(), amplitude * theta.sin()
    a, b = (c, s) if order.startswith("cos") else (s, c)
    return torch.cat([a, b], -1) if "halves" in order else torch.stack([a, b], -1).flatten(-2)


def sinusoid(x: Tensor) -> Sinusoid | None:
    """Read an embedding [n, 2m] as a sinusoid of geometric frequencies; None when no order of sines and cosines fits."""
    if x.dim() != 2 or x.shape[-1] < 8 or x.shape[-1] % 2 or x.shape[0] > 4096:
        return None
    for order in ORDERS:
        c, s = angle_parts(x, order)
        square = c.square() + s.square()
        amplitude = float(square.mean().clamp_min(0).sqrt())
        if amplitude == 0 or float((square - amplitude**2).abs().max()) > 1e-2 * amplitude**2:
            continue
        lines = []
        for row in torch.atan2(s, c)[:64]:
            line = geometric_line(row, 3e-4)
            if line is None and bool((row.abs() < 1e-12).all()):
                line = Line(0.0, 1.0, torch.arange(len(row), dtype=torch.float64), len(row))
            if line is None:
                break
            lines.append(line)
        else:
            if any(line.amount for line in lines):
                return Sinusoid(order, amplitude, tuple(lines))
    return None
