"""Normalisation as numbers: read gain, shift, eps, axes and kind of a norm off its input and output.

Every norm is y = a·u + b with u = (x − m)/sqrt(v + eps), m the mean or 0. Gain a and shift b (parameters, or an adaptive modulation per
sample) are found by least squares over the tokens, so no parameter needs to be known by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from parity.diagnose.evidence import Evidence, as_float64, relative_error
from parity.diagnose.roles import agreement, like_reference, memo

EPS = (0.0, 1e-12, 1e-10, 1e-8, 1.1920929e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
MOST_ELEMENTS = 8_000_000
GROUPS = (1, 2, 4, 5, 8, 16, 32, 64)


@dataclass(frozen=True)
class Kind:
    """What is normalised: `rms` or `layer` over the last axis, or `group` over channels (axis 1) in groups, per frame or over all."""

    name: str
    groups: int = 1
    frames_apart: bool = False

    @property
    def text(self) -> str:
        if self.name != "group":
            return {"rms": "RMS norm", "layer": "layer norm"}[self.name]
        over = "each frame" if self.frames_apart else "all frames and pixels"
        return f"group norm with {self.groups} groups over {over}"


@dataclass(frozen=True)
class Norm:
    """A norm that reproduces R: y = gain·unit(x) + shift."""

    x: Tensor
    kind: Kind
    eps: float
    gain: Tensor
    shift: Tensor
    error: float

    def __call__(self, x: Tensor | None = None, kind: Kind | None = None, eps: float | None = None) -> Tensor:
        """Apply the norm, with another input, kind or eps if given."""
        u = unit(self.x if x is None else x, kind or self.kind, self.eps if eps is None else eps)
        return self.gain * u + self.shift


def unit(x: Tensor, kind: Kind, eps: float) -> Tensor:
    """Return (x − m)/sqrt(v + eps) for one kind of statistics."""
    if kind.name == "rms":
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
    if kind.name == "layer":
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + eps).sqrt()
    b, c = x.shape[:2]
    split = x.reshape(b, kind.groups, c // kind.groups, *x.shape[2:])
    axes = [2, *range(4 if kind.frames_apart else 3, split.dim())]
    mean = split.mean(axes, keepdim=True)
    centred = split - mean
    return (centred / (centred.square().mean(axes, keepdim=True) + eps).sqrt()).reshape(x.shape)


def kinds(x: Tensor) -> Iterator[Kind]:
    """Yield the norms that a tensor of this shape may have gone through."""
    if x.shape[-1] >= 2:
        yield Kind("rms")
        yield Kind("layer")
    if x.dim() >= 4:  # with fewer axes the fitted gain of every channel could stand in for the statistics
        for groups in GROUPS:
            if x.shape[1] % groups == 0 and x.shape[1] >= 2 and x[0].numel() // groups >= 4:
                yield Kind("group", groups)
                if x.dim() == 5 and x.shape[2] > 1:
                    yield Kind("group", groups, True)


def fit(u: Tensor, y: Tensor, channel: int) -> tuple[Tensor, Tensor] | None:
    """Least squares y ≈ a·u + b with a and b per channel, first for all samples, then per sample; None when it does not fit.

    channel: the axis of gain and shift. A sample is an index of axis 0. Needs more rows than twice the unknowns.
    """
    axes = [axis for axis in range(u.dim()) if axis != channel]
    rows = u.numel() // u.shape[channel]
    plans = [axes] if rows >= 5 else []
    if u.dim() >= 3 and channel == u.dim() - 1 and u.shape[0] > 1 and rows // u.shape[0] >= 5:
        plans.append(axes[1:])
    for over in plans:
        mu, my = u.mean(over, keepdim=True), y.mean(over, keepdim=True)
        gain = ((u - mu) * (y - my)).sum(over, keepdim=True) / (u - mu).square().sum(over, keepdim=True).clamp_min(
            1e-300
        )
        shift = my - gain * mu
        if relative_error(gain * u + shift, y) < 1e-2:
            return gain, shift
    return None


def known(u: Tensor, y: Tensor, channel: int, vectors: list[Tensor]) -> tuple[Tensor, Tensor] | None:
    """Return y ≈ a·u + b with a and b among known vectors (a also one, or one more): for too few rows to fit them."""
    shape = [-1 if axis == channel else 1 for axis in range(u.dim())]
    own = [v.reshape(shape) for v in vectors if v.numel() == u.shape[channel]][:6]
    one, zero = torch.ones([1] * u.dim(), dtype=u.dtype), torch.zeros([1] * u.dim(), dtype=u.dtype)
    for gain in (*own, one, *(1 + v for v in own)):
        for shift in (zero, *own):
            if relative_error(gain * u + shift, y) < 1e-2:
                return gain, shift
    return None


def norm_of(ev: Evidence) -> Norm | None:
    """Return the norm of a tensor around R that R is, with its eps; None when no input, kind and eps reproduce R."""
    return memo(ev, "norm", _search)


def _search(ev: Evidence) -> Norm | None:
    if ev.reference.dim() < 2 or not ev.reference.is_floating_point() or ev.reference.numel() > MOST_ELEMENTS:
        return None
    if not bool(torch.isfinite(ev.r).all()):
        return None
    found = []
    vectors = [as_float64(ref).flatten() for ref, _ in ev.parameters.values() if ref is not None and ref.dim() == 1]
    for _, x in like_reference(ev)[:8]:
        for kind in kinds(x):
            norm = _calibrated(x, ev.r, kind, vectors)
            if norm is not None:
                found.append(norm)
        exact = [norm for norm in found if norm.error <= agreement(ev)]
        if exact:
            return min(exact, key=lambda norm: (norm.error, norm.kind.groups))
    return None


def _calibrated(x: Tensor, r: Tensor, kind: Kind, vectors: list[Tensor]) -> Norm | None:
    """Fit gain and shift at a usual eps (look them up, where there are few rows), then keep the eps with the smallest error."""
    channel = 1 if kind.name == "group" else x.dim() - 1
    few_rows = x.numel() // x.shape[channel] < 5

    def solve(u: Tensor) -> tuple[Tensor, Tensor] | None:
        return known(u, r, channel, vectors) if few_rows else fit(u, r, channel)

    if kind.name != "group" and x.dim() >= 2 and x.shape[-2] > 64:  # a few tokens turn away almost everything
        few, part = x[..., :64, :], r[..., :64, :]
        if fit(unit(few, kind, 1e-6), part, channel) is None:
            return None
    if solve(unit(x, kind, 1e-6)) is None:
        return None
    best: Norm | None = None
    for eps in EPS:
        u = unit(x, kind, eps)
        if not bool(torch.isfinite(u).all()):
            continue
        fitted = solve(u)
        if fitted is None:
            continue
        norm = Norm(x, kind, eps, *fitted, relative_error(fitted[0] * u + fitted[1], r))
        if best is None or norm.error < 0.5 * best.error:
            best = norm
    return best
