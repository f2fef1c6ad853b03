"""A value on the way to R is mixed with noise that only the port draws (BUGS.md K2)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .evidence import Evidence, Explanation, Hypothesis, as_float64
from .fits import comparable, number

_DRAWS = frozenset(["randn", "randn_like", "normal", "normal_functional"])
_EXACT = 1e-6


def renoised(ev: Evidence) -> Iterator[Explanation]:
    """The port forms (1 − σ)·x + σ·ε of a value x that the reference takes as it is, with ε drawn here: context is not clean (K2)."""
    if not comparable(ev, 16) or any(op.name in _DRAWS for op in ev.ref_ops):
        return
    drawn = [x for op in ev.port_ops if op.name in _DRAWS for x in op.outputs if x.numel() >= 16]
    known = [x for op in ev.ref_ops for x in (*op.inputs, *op.outputs)]
    for noise in drawn[:4]:
        clean = _distinct([x for x in known if x.shape == noise.shape and x.is_floating_point()])
        for op in ev.port_ops:
            for made in op.outputs if op.name in ("add", "lerp", "sub", "addcmul") else ():
                if made.shape != noise.shape:
                    continue
                for x in clean:
                    sigma = _level(as_float64(made), as_float64(x), as_float64(noise))
                    if sigma is not None:
                        text = f"the port mixes in noise that it draws here, at level {number(sigma)}, where the reference takes the clean value"
                        yield Explanation(text, 0.0, 0.95, {"sigma": sigma, "source": op.source})
                        return


def _distinct(values: list[Tensor]) -> list[Tensor]:
    kept: list[Tensor] = []
    for x in values:
        if not any(torch.equal(x, y) for y in kept):
            kept.append(x)
    return kept[:16]


def _level(made: Tensor, x: Tensor, noise: Tensor) -> float | None:
    """Return σ with made == (1 − σ)·x + σ·ε, or √(1 − σ²)·x + σ·ε; None when it is no such mixture."""
    columns = torch.stack([x.flatten(), noise.flatten()], 1)
    a, b = torch.linalg.lstsq(columns, made.flatten()[:, None]).solution[:, 0].tolist()
    rest = made - a * x - b * noise
    if float(torch.linalg.vector_norm(rest)) > _EXACT * float(torch.linalg.vector_norm(made)) or not 0 < b < 1:
        return None
    return b if min(abs(a + b - 1), abs(a * a + b * b - 1)) < 1e-4 else None


HYPOTHESES: tuple[Hypothesis, ...] = (Hypothesis("noise in the context", "K2", renoised, 0.8),)
