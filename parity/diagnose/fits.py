"""Shared arithmetic of the hypotheses: how much noise is honest, least squares, sampling, confidence.

Formulas: `residual = ‖P − X‖ / ‖P − R‖` for an explanation X of the port's value P; it is accepted up to
`allowance = max(0.02, 3·noise/error)`, because two honest roundings remain even when the explanation is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from .evidence import Evidence

T = TypeVar("T")

# Relative L2 distance of two honest results of one computation, by the dtype they were stored in (spec BUGS section 5).
HONEST_NOISE = {torch.bfloat16: 2.5e-3, torch.float16: 3e-4, torch.float32: 1e-6, torch.float64: 1e-9}


def cached(ev: Evidence, key: str, make: Callable[[], T]) -> T:
    """Return `make()`, computed once per evidence (as `functools.cached_property` does, but for functions of other
    modules).
    """
    store = vars(ev)
    name = f"_cached_{key}"
    if name not in store:
        store[name] = make()
    value: T = store[name]
    return value


def noise_level(ev: Evidence) -> float:
    """Relative error that rounding alone may cause here: the floor, or that of the coarser of the two stored dtypes."""
    return max(ev.floor, HONEST_NOISE.get(ev.reference.dtype, 0.0), HONEST_NOISE.get(ev.port.dtype, 0.0))


def finite(ev: Evidence) -> bool:
    """Whether both sides hold only finite numbers."""
    return cached(ev, "finite", lambda: bool(torch.isfinite(ev.r).all()) and bool(torch.isfinite(ev.p).all()))


def comparable(ev: Evidence, least: int = 2) -> bool:
    """Whether p − r means something: same shape, at least `least` elements, finite, more than noise apart."""
    if not ev.same_shape or ev.reference.numel() < least:
        return False
    return finite(ev) and ev.error > 1.5 * noise_level(ev)


def allowance(ev: Evidence) -> float:
    """Largest residual at which an explanation of the whole difference is accepted."""
    return min(0.25, max(0.02, 3 * noise_level(ev) / ev.error)) if ev.error > 0 else 0.0


def accept(ev: Evidence, explained: Tensor) -> float | None:
    """Return the residual of `explained` if it is small enough, else None."""
    residual = ev.residual(explained)
    return residual if residual <= allowance(ev) else None


def sure(ev: Evidence, residual: float, best: float = 0.97) -> float:
    """Confidence of an identity without free parameters: `best` when exact, 0.2 less at the limit of acceptance."""
    limit = allowance(ev)
    return best - 0.2 * min(1.0, residual / limit) if limit > 0 else best


def sample_index(count: int, size: int = 4096) -> Tensor:
    """At most `size` flat indices in [0, count), ascending, spread by a Weyl sequence so that no grid is favoured."""
    if count <= size:
        return torch.arange(count)
    steps = torch.arange(size, dtype=torch.float64) * 0.6180339887498949
    index = (steps.frac() * count).to(torch.int64).clamp_(max=count - 1).sort().values
    return index[torch.cat([torch.ones(1, dtype=torch.bool), index.diff() > 0])]


def hot_index(ev: Evidence, size: int = 4096) -> Tensor:
    """Flat indices for a cheap test: half spread evenly, half where the difference is not noise."""

    def make() -> Tensor:
        d = ev.d.reshape(-1)
        spread = sample_index(d.numel(), size // 2)
        level = float(torch.linalg.vector_norm(d)) / math.sqrt(max(1, d.numel()))
        hot = torch.nonzero(d.abs() > 0.5 * level).reshape(-1)
        return torch.unique(torch.cat([spread, hot[sample_index(hot.numel(), size // 2)]])) if hot.numel() else spread

    return cached(ev, f"hot{size}", make)


def promising(ev: Evidence, explained: Callable[[Tensor], Tensor], slack: float = 3.0) -> bool:
    """Whether `explained(flat indices)` reproduces p on the sampled elements well enough to try all of them."""
    index = hot_index(ev)
    p, r = ev.p.reshape(-1)[index], ev.r.reshape(-1)[index]
    whole = float(torch.linalg.vector_norm(p - r))
    return (
        float(torch.linalg.vector_norm(p - explained(index))) <= slack * allowance(ev) * whole if whole > 0 else False
    )


def dot(a: Tensor, b: Tensor) -> float:
    """⟨a, b⟩ over all elements in float64."""
    return float(torch.dot(a.reshape(-1), b.reshape(-1)))


def scalar_fit(target: Tensor, source: Tensor) -> tuple[float, float]:
    """Least-squares c of target ≈ c·source, and ‖target − c·source‖ / ‖target‖ (1 when either is zero)."""
    ss, tt = dot(source, source), dot(target, target)
    if ss <= 0 or tt <= 0:
        return 0.0, 1.0
    c = dot(target, source) / ss
    return c, float(torch.linalg.vector_norm(target - c * source)) / math.sqrt(tt)


def affine_fit(target: Tensor, source: Tensor) -> tuple[float, float]:
    """Least-squares (a, b) of target ≈ a·source + b."""
    ms, mt = float(source.mean()), float(target.mean())
    variance = float(((source - ms) ** 2).mean())
    if variance <= 1e-30:
        return 0.0, mt
    a = float(((source - ms) * (target - mt)).mean()) / variance
    return a, mt - a * ms


def grouped_affine(target: Tensor, source: Tensor, axes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Least-squares (a, b) for every index of the kept `axes`; both keep all axes (size 1 where reduced)."""
    reduced = [i for i in range(target.ndim) if i not in {x % target.ndim for x in axes}]
    if not reduced:
        return torch.ones_like(target), target - source
    ms, mt = source.mean(reduced, keepdim=True), target.mean(reduced, keepdim=True)
    variance = ((source - ms) ** 2).mean(reduced, keepdim=True)
    covariance = ((source - ms) * (target - mt)).mean(reduced, keepdim=True)
    a = torch.where(variance > 1e-30, covariance / variance.clamp_min(1e-30), torch.ones_like(variance))
    return a, mt - a * ms


def grouped_scale(target: Tensor, source: Tensor, axes: Sequence[int]) -> Tensor:
    """Least-squares factor for every index of the kept `axes`, keepdim (1 where the source is zero)."""
    reduced = [i for i in range(target.ndim) if i not in {x % target.ndim for x in axes}]
    if not reduced:
        return torch.where(source != 0, target / torch.where(source != 0, source, 1.0), 1.0)
    energy = (source * source).sum(reduced, keepdim=True)
    cross = (source * target).sum(reduced, keepdim=True)
    return torch.where(energy > 0, cross / energy.clamp_min(1e-300), torch.ones_like(energy))


def near(value: float, target: float, rel: float = 1e-3) -> bool:
    """Whether two scalars agree to `rel`."""
    return abs(value - target) <= rel * max(abs(target), 1e-12)


def number(value: float) -> str:
    """A short spelling of a scalar for a sentence."""
    return f"{value:.6g}"
