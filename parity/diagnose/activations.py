"""Activations as curves: which one a value went through, alone, gated, or between projections (BUGS.md N2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, product

import torch
from torch import Tensor
from torch.nn import functional

from parity.diagnose.evidence import Evidence, as_float64, relative_error
from parity.diagnose.roles import agreement, like_reference, surroundings

Curve = Callable[[Tensor], Tensor]

CURVES: dict[str, Curve] = {
    "exact (erf) GELU": functional.gelu,
    "tanh GELU": lambda x: functional.gelu(x, approximate="tanh"),
    "quick GELU": lambda x: x * torch.sigmoid(1.702 * x),
    "SiLU": functional.silu,
    "ReLU": functional.relu,
    "squared ReLU": lambda x: functional.relu(x).square(),
    "leaky ReLU (0.01)": functional.leaky_relu,
    "leaky ReLU (0.2)": lambda x: functional.leaky_relu(x, 0.2),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "ELU": functional.elu,
    "mish": functional.mish,
    "softplus": functional.softplus,
    "no activation": lambda x: x,
}
TOKENS = 64
MOST_BUILDS = 300  # a block offers thousands of combinations of its matrices


@dataclass(frozen=True)
class Activated:
    """A value that reads as `build(curve)` for some curve: R with its own, P perhaps with another. r and p are cut alike."""

    r: Tensor
    p: Tensor
    build: Callable[[Curve], Tensor]
    curve: str
    where: str


def activated(ev: Evidence) -> Iterator[Activated]:
    """Yield readings of R through an activation: f(x), f(a)·b of two halves, W f(x) + b, and two-layer networks."""
    for build, r, p, where in islice(_builds(ev), MOST_BUILDS):
        for name, curve in CURVES.items():
            value = build(curve)
            if value.shape == r.shape and relative_error(value, r) <= agreement(ev):
                yield Activated(r, p, build, name, where)
                break


Build = Callable[[Curve], Tensor]
Reading = tuple[Build, Tensor, Tensor, str]


def _plain(x: Tensor) -> Build:
    return lambda f: f(x)


def _gate(gate: Tensor, up: Tensor) -> Build:
    return lambda f: f(gate) * up


def _then(build: Build, weight: Tensor, bias: Tensor | float) -> Build:
    return lambda f: build(f) @ weight.T + bias


def _builds(ev: Evidence) -> Iterator[Reading]:
    shape = tuple(ev.reference.shape)
    if len(shape) < 1 or not ev.reference.is_floating_point():
        return
    every = max(1, ev.r.numel() // 65536)
    r, p = ev.r.flatten()[::every], ev.p.flatten()[::every]
    pool = [(n, v) for n, v in surroundings(ev) if v.is_floating_point() and v.numel() <= 20_000_000][:24]
    for _, value in pool:
        x = as_float64(value)
        if tuple(x.shape) == shape:
            yield _plain(x.flatten()[::every]), r, p, ""
        elif x.shape[:-1] == shape[:-1] and x.shape[-1] == 2 * shape[-1]:
            a, b = (half.flatten()[::every] for half in x.chunk(2, -1))
            yield _gate(a, b), r, p, "of the gated unit"
            yield _gate(b, a), r, p, "of the gated unit"
    flats = [x.flatten()[::every] for _, x in like_reference(ev)[:6]]
    for a, b in product(flats, flats):
        if a is not b:
            yield _gate(a, b), r, p, "of the gated unit"
    if len(shape) >= 2:
        yield from _projected(ev, pool)


def _projected(ev: Evidence, pool: list[tuple[str, Tensor]]) -> Iterator[Reading]:
    """W f(x) + b, W₂ f(W₁ x + b₁) + b₂ and W₂ (f(W₁ x)·W₃ x), with the matrices told by their shapes."""
    out = ev.reference.shape[-1]
    r, p = ev.r.reshape(-1, out)[:TOKENS], ev.p.reshape(-1, out)[:TOKENS]
    known = [as_float64(w) for w, _ in ev.parameters.values() if w is not None and w.is_floating_point()]
    matrices = [w for w in known if w.dim() == 2 and w.numel() <= 4_000_000]
    vectors = [w for w in known if w.dim() == 1]
    lasts = [w for w in matrices if w.shape[0] == out][:8]
    inputs = [x for _, x in pool if x.dim() >= 2 and x.numel() // x.shape[-1] == ev.reference.numel() // out][:8]
    for index, value in enumerate(inputs):
        x = as_float64(value).reshape(-1, value.shape[-1])[:TOKENS]
        for last, bias in ((w, b) for w in lasts for b in _biases(vectors, out)):
            if last.shape[1] == x.shape[1]:
                yield _then(_plain(x), last, bias), r, p, "before a projection"
            for first in [w for w in matrices if w is not last and w.shape == (last.shape[1], x.shape[1])]:
                for inner in _biases(vectors, first.shape[0]):
                    yield _then(_plain(x @ first.T + inner), last, bias), r, p, "between two projections"
            if index < 2:
                for build in _gated(x, last, matrices):
                    yield _then(build, last, bias), r, p, "of the gated unit"


def _gated(x: Tensor, last: Tensor, matrices: list[Tensor]) -> Iterator[Build]:
    firsts = [x @ w.T for w in matrices if w is not last and w.shape == (last.shape[1], x.shape[1])]
    for gate, up in product(firsts, firsts):
        if gate is not up:
            yield _gate(gate, up)
    for fused in [w for w in matrices if w.shape == (2 * last.shape[1], x.shape[1])]:
        a, b = (x @ fused.T).chunk(2, -1)
        yield _gate(a, b)
        yield _gate(b, a)


def _biases(vectors: list[Tensor], size: int) -> list[Tensor | float]:
    fitting: list[Tensor | float] = [v for v in vectors if v.numel() == size]
    return [0.0, *fitting[:5]]


def operation_values(ev: Evidence) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield (x, reference f(x), port's value) where both sides ran an activation operation on the same x but got another result."""
    ours = [op for op in ev.ref_ops if op.name in ACTIVATION_OPS and op.inputs and op.outputs]
    theirs = list(ev.port_ops)
    for op in ours[:8]:
        x, y = as_float64(op.inputs[0]), as_float64(op.outputs[0])
        outputs = [as_float64(o.outputs[0]) for o in theirs if o.outputs and o.outputs[0].shape == op.outputs[0].shape]
        outputs = [o for o in outputs if o.is_floating_point()]
        if any(relative_error(o, y) <= 1e-7 for o in outputs):
            continue
        for other in outputs[:24]:
            yield x, y, other


ACTIVATION_OPS = ("gelu", "silu", "relu", "sigmoid", "tanh", "elu", "mish", "softplus", "leaky_relu", "hardswish")


def invert_from_values(r: Tensor, p: Tensor) -> tuple[str, str, float] | None:
    """Name (reference curve, port curve, error) when P = g(f⁻¹(R)) where R > 0.3: both are activations of one unknown x."""
    grid = torch.linspace(0.2, 20.0, 20001, dtype=torch.float64)
    chosen = (r > 0.3) & (r < 15.0)
    if int(chosen.sum()) < 32:
        return None
    ours, theirs = r[chosen][:4096], p[chosen][:4096]
    best: tuple[str, str, float] | None = None
    names = ["exact (erf) GELU", "tanh GELU", "quick GELU", "SiLU"]
    for name in names:
        values = CURVES[name](grid)
        slot = torch.searchsorted(values, ours).clamp(1, len(grid) - 1)
        share = (ours - values[slot - 1]) / (values[slot] - values[slot - 1])
        x = grid[slot - 1] + share * (grid[slot] - grid[slot - 1])
        for other in names:
            if other != name:
                error = float(
                    torch.linalg.vector_norm(CURVES[other](x) - theirs)
                    / torch.linalg.vector_norm(ours - theirs).clamp_min(1e-300)
                )
                if math.isfinite(error) and (best is None or error < best[2]):
                    best = (name, other, error)
    return best
