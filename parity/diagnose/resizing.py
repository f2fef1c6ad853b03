"""Resizing of pictures: filter, antialias, alignment of corners (C6)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from .evidence import Evidence, Explanation, Hypothesis, as_float64
from .fits import affine_fit, comparable, sample_index

MODES = ("bilinear", "bicubic", "nearest", "nearest-exact", "area")


def resampled(ev: Evidence) -> Iterator[Explanation]:
    """R and P are two resizings of one captured picture: filter, antialias, corner alignment (C6), by recomputation."""
    if not comparable(ev, 64) or ev.r.ndim < 3 or ev.kind == "weight":
        return
    size = (int(ev.r.shape[-2]), int(ev.r.shape[-1]))
    for name, x in ev.inputs.items():
        if x.ndim < 3 or tuple(x.shape[-2:]) == size or x.numel() > 8_000_000 or not x.is_floating_point():
            continue
        pictures = as_float64(x).reshape(-1, 1, *x.shape[-2:])
        if pictures.shape[0] != ev.r.numel() // (size[0] * size[1]):
            continue
        mine, theirs = _which(pictures, ev.r, size), _which(pictures, ev.p, size)
        if mine and theirs and mine != theirs:
            yield Explanation(
                f"P resizes {name} with {theirs}, R with {mine}", 0.0, 0.95, {"reference": mine, "port": theirs}
            )
            return
    yield from _high_pass(ev)


def _resizings(x: Tensor, size: tuple[int, int]) -> Iterator[tuple[str, Tensor]]:
    for mode in MODES:
        yield mode, functional.interpolate(x, size, mode=mode)
        if mode in {"bilinear", "bicubic"}:
            yield f"{mode}, antialias", functional.interpolate(x, size, mode=mode, antialias=True)
            yield f"{mode}, corners aligned", functional.interpolate(x, size, mode=mode, align_corners=True)


def _which(x: Tensor, wanted: Tensor, size: tuple[int, int]) -> str:
    """The resizing whose result is `wanted` up to one affine map, or ""."""
    wanted = wanted.reshape(-1, 1, *size)
    spread = float(torch.linalg.vector_norm(wanted - wanted.mean()))
    for label, y in _resizings(x, size):
        a, b = affine_fit(wanted, y)
        if spread > 0 and float(torch.linalg.vector_norm(wanted - a * y - b)) < 2e-4 * spread:
            return label
    return ""


def _high_pass(ev: Evidence) -> Iterator[Explanation]:
    """Without the source: d has no low frequencies and lives where R has edges; P is a sharper or smoother R (C6, a
    hint).
    """
    h, w = int(ev.r.shape[-2]), int(ev.r.shape[-1])
    if (
        ev.kind not in {"frame", "input", "latent"}
        or min(h, w) < 16
        or ev.r.numel() > 8_000_000
        or not 3e-3 < ev.error < 0.5
    ):
        return
    d, r = ev.d.reshape(-1, 1, h, w), ev.r.reshape(-1, 1, h, w)
    some = sample_index(d.shape[0], 24)
    d, r = d[some], r[some]
    low = functional.avg_pool2d(d, 4)
    ratio = 16 * float(low.square().mean()) / (float(d.square().mean()) + 1e-300)  # 1 for white noise
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=torch.float64).reshape(1, 1, 3, 3)
    curvature = functional.conv2d(r, kernel)
    inner = d[..., 1:-1, 1:-1]
    cosine = float(
        (inner * curvature).sum() / (torch.linalg.vector_norm(inner) * torch.linalg.vector_norm(curvature) + 1e-300)
    )
    if ratio < 1 and abs(cosine) > 0.5:
        how = "smoother" if cosine > 0 else "sharper"
        text = (
            f"P is a {how} R: the difference follows R's edges (correlation {abs(cosine):.2f}) and "
            "has no low frequencies: another resize filter or antialiasing"
        )
        yield Explanation(
            text, 1 - cosine * cosine, 0.6 + 0.2 * (abs(cosine) - 0.5), {"correlation": cosine, "low": ratio}, "C6"
        )


HYPOTHESES: tuple[Hypothesis, ...] = (Hypothesis("resampled", "C6", resampled, 0.7),)
