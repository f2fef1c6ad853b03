"""Calls that the port makes on the way to a value, and the reference does not (BUGS.md V9)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .evidence import Evidence, Explanation, Hypothesis, as_float64
from .fits import comparable


def through_pixels(ev: Evidence) -> Iterator[Explanation]:
    """The port sends R itself through calls of which one makes frames, and takes what comes back for R (V9)."""
    if ev.kind not in {"latent", "activation", "output"} or not comparable(ev, 4):
        return
    for i, (first, _, value) in enumerate(ev.detour):
        if _same(value, ev.r) and any(kind == "frame" for _, kind, _ in ev.detour[i + 1 :]):
            names = ", ".join(dict.fromkeys(site for site, _, _ in ev.detour[i:]))
            text = f"the port decodes the value and encodes it again ({names}) where the reference hands it on"
            yield Explanation(text, 0.0, 0.95, {"from": first, "calls": names})
            return


def _same(value: Tensor, r: Tensor) -> bool:
    if value.numel() != r.numel() or not value.is_floating_point():
        return False
    x, y = as_float64(value).flatten(), r.flatten()
    return float(torch.linalg.vector_norm(x - y)) <= 1e-4 * float(torch.linalg.vector_norm(y))


HYPOTHESES: tuple[Hypothesis, ...] = (Hypothesis("through pixels", "V9", through_pixels, 0.8),)
