"""Parts of fused tensors in the wrong place, seen in activations: heads of q in k, shift for scale (W3, W5)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .axes import kind_of, roles
from .evidence import Evidence, Explanation, Hypothesis, as_float64
from .fits import comparable, sure
from .matching import as_rows, match_rows
from .operations import same


def mixed_slices(ev: Evidence) -> Iterator[Explanation]:
    """Slices of P (heads, rows) are slices of another captured tensor: q holds heads of k and v (W3, fused projection
    order).
    """
    if ev.kind == "weight" or not comparable(ev, 32):
        return
    others = {n: x for n, x in ev.inputs.items() if x.is_floating_point() and tuple(x.shape) == tuple(ev.r.shape)}
    others = {n: x for n, x in others.items() if not same(x, ev.r)}  # R under another name
    if not others:
        return
    for axis, size in enumerate(ev.r.shape):
        if roles(ev.r.shape, kind_of(ev))[axis] in {"b", "f", "h", "w"}:
            continue
        if not 2 <= size <= 256 or ev.r.numel() // size < 6 or not _has_source(ev, axis, others):
            continue
        found = _sources(ev, axis, others)
        if found is not None:
            listed = ", ".join(f"{axis}[{i}] = {n}[{j}]" for i, n, j in found[:4])
            text = f"slices of P along axis {axis} belong to other tensors: {listed}{'…' if len(found) > 4 else ''}"
            yield Explanation(text, 0.0, 0.93, {"axis": axis, "sources": [list(f) for f in found[:32]]})
            return


def _has_source(ev: Evidence, axis: int, others: dict[str, Tensor]) -> bool:
    """Whether the first and the middle slice of P have the norm of some known slice: a cheap look."""
    rest = [i for i in range(ev.r.ndim) if i != axis]
    pool = [ev.r, *(as_float64(x) for x in others.values())]
    norms = torch.cat([torch.linalg.vector_norm(x, dim=rest) for x in pool])
    for i in (0, ev.r.shape[axis] // 2):
        own = torch.linalg.vector_norm(ev.p.select(axis, i))
        if float((norms - own).abs().min()) > 1e-5 * float(own):
            return False
    return True


def _sources(ev: Evidence, axis: int, others: dict[str, Tensor]) -> list[tuple[int, str, int]] | None:
    """For every slice of P along `axis` its tensor and slice, if all have one and some come from another tensor."""
    names = ["R", *others]
    size = ev.r.shape[axis]
    pool = torch.cat([as_rows(ev.r, (axis,)), *(as_rows(as_float64(x), (axis,)) for x in others.values())])
    match = match_rows(as_rows(ev.p, (axis,)), pool, 1e-5)
    if match is None or not match.complete:
        return None
    moved = [(i, names[int(j) // size], int(j) % size) for i, j in enumerate(match.index) if int(j) != i]
    foreign = [m for m in moved if m[1] != "R"]
    return foreign if foreign and len(foreign) < size else None


def other_chunk(ev: Evidence) -> Iterator[Explanation]:
    """R and P are two different parts of one captured tensor or parameter (W5: shift for scale; W3: q for k)."""
    if ev.kind == "weight" or not comparable(ev, 8):
        return
    offered = {**ev.inputs, **{n: p[0] for n, p in ev.parameters.items() if p[0] is not None}}
    for name, x in offered.items():
        parts = x.numel() // ev.r.numel() if x.is_floating_point() else 0
        if not 2 <= parts <= 12 or x.numel() % ev.r.numel():
            continue
        for axis in range(x.ndim):
            if x.shape[axis] % parts:
                continue
            chunks = [as_float64(c).reshape(-1) for c in x.chunk(parts, axis)]
            r, p = (
                next((i for i, c in enumerate(chunks) if torch.equal(c, v.reshape(-1))), None) for v in (ev.r, ev.p)
            )
            if r is not None and p is not None and r != p:
                if x.ndim == 3 and axis == 1 and parts == x.shape[1] and ev.r.ndim == 2 and ".in." not in name:
                    text = f"P is token {p} of {name} where R is its token {r}"
                    yield Explanation(text, 0.0, 0.95, {"input": name, "reference": r, "port": p}, "C2")
                    return
                modulation = parts in {2, 6, 9} or ev.r.numel() <= ev.r.shape[0] * ev.r.shape[-1]
                text = f"P is part {p} of {name} where R is part {r} of its {parts}"
                yield Explanation(
                    text, 0.0, 0.98, {"input": name, "reference": r, "port": p}, "W5" if modulation else "W3"
                )
                return


def modulation_order(ev: Evidence) -> Iterator[Explanation]:
    """The output's per-channel gain and bias on the normalised input are exchanged: (g − 1, b) → (b, g − 1) (W5)."""
    if ev.kind == "weight" or not comparable(ev, 64) or ev.r.ndim < 2 or ev.r.shape[-1] < 8:
        return
    channels = ev.r.shape[-1]
    for name, x in ev.inputs.items():
        if x.numel() != ev.r.numel() or x.shape[-1] != channels or not x.is_floating_point():
            continue
        for label, law in NORMALISED.items():
            found = _swapped_modulation(ev, law(as_float64(x).reshape(-1, channels)))
            if found is not None:
                text = (
                    "scale and shift of the modulation are exchanged: P's per-channel gain − 1 on "
                    f"{label}({name}) is R's bias, and the reverse"
                )
                yield Explanation(text, found, sure(ev, found, 0.95), {"input": name, "norm": label})
                return


def _standardised(x: Tensor) -> Tensor:
    return torch.nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6)


def _rms(x: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


NORMALISED: dict[str, Callable[[Tensor], Tensor]] = {"x": lambda x: x, "layer norm": _standardised, "rms norm": _rms}


def _swapped_modulation(ev: Evidence, x: Tensor) -> float | None:
    """Fit R = g·x + b per channel (per batch entry), exchange g − 1 and b, compare with P."""
    batch = ev.r.shape[0] if ev.r.ndim >= 3 else 1
    x, r, p = (t.reshape(batch, -1, ev.r.shape[-1]) for t in (x, ev.r, ev.p))
    if x.shape[1] < 4:
        return None
    mean_x, mean_r = x.mean(1, keepdim=True), r.mean(1, keepdim=True)
    gain = ((x - mean_x) * (r - mean_r)).sum(1, keepdim=True) / ((x - mean_x) ** 2).sum(1, keepdim=True).clamp_min(
        1e-300
    )
    bias = mean_r - gain * mean_x
    scale = float(torch.linalg.vector_norm(r))
    if scale == 0 or float(torch.linalg.vector_norm(gain * x + bias - r)) > 0.01 * scale:
        return None
    left = float(torch.linalg.vector_norm((1 + bias) * x + (gain - 1) - p))
    # both halves of the exchange must show, well above what remains
    parts = float(torch.linalg.vector_norm(bias * x)), float(torch.linalg.vector_norm((gain - 1).expand_as(x)))
    residual = left / float(torch.linalg.vector_norm(p - r))
    return residual if residual < 0.03 and left < 0.05 * min(parts) else None


HYPOTHESES: tuple[Hypothesis, ...] = (
    Hypothesis("mixed_slices", "W3", mixed_slices, 0.7),
    Hypothesis("other_chunk", "W5", other_chunk, 0.95),
    Hypothesis("modulation_order", "W5", modulation_order, 0.7),
)
