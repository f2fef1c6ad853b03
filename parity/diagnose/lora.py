"""Low-rank adapters: the strength with which they were added, and adapters that were never added (W7, W8)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from .evidence import Evidence, Explanation, Hypothesis, as_float64
from .fits import allowance, comparable, near, number, scalar_fit


def low_rank(d: Tensor, limit: int = 64) -> int | None:
    """Numerical rank of a matrix if it is far below full (at most a quarter) and spread over rows and columns, else
    None.
    """
    if d.ndim != 2 or min(d.shape) < 8:
        return None
    spread = [(torch.linalg.vector_norm(d, dim=i) > 0).double().mean() for i in (0, 1)]
    if float(min(spread)) < 0.5:
        return None
    q = min(limit, min(d.shape) // 4) + 1
    generator = torch.Generator().manual_seed(7)
    # two-sided random projection keeps the rank and costs one thin product
    probe = torch.randn(d.shape[1], q, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(d @ probe).Q
    rest = float(torch.linalg.vector_norm(d - basis @ (basis.T @ d)))
    whole = float(torch.linalg.vector_norm(d))
    if whole == 0 or rest > 1e-3 * whole:
        return None
    values = torch.linalg.svdvals(basis.T @ d)
    rank = int((values > 1e-3 * values[0]).sum())
    return rank if rank < q else None


def strength(ev: Evidence) -> Iterator[Explanation]:
    """(P − W0) == c·(R − W0) with the base or the factors known, or P − R of low rank alone (W7; c = 0: W8)."""
    if ev.kind != "weight" or not comparable(ev, 64) or ev.r.ndim < 2:
        return
    found = next(_from_base(ev), None) or next(_from_factors(ev), None)
    if found is not None:
        yield found
        return
    matrix = ev.d.reshape(ev.d.shape[0], -1)
    rank = low_rank(matrix)
    if rank is None or _is_affine(ev):
        return
    # P = W0 + c·Δ and d = (c − 1)·Δ: the share of d in P is c/(c − 1), and nothing when the adapter is absent
    share = float((ev.p * ev.d).sum() / ev.d.square().sum())
    chance = float(torch.linalg.vector_norm(ev.p) / torch.linalg.vector_norm(ev.d)) / ev.d.numel() ** 0.5
    base = float(torch.linalg.vector_norm(ev.d) / torch.linalg.vector_norm(ev.r))
    text = (
        f"P − R has rank {rank} of {min(matrix.shape)} (size {number(base)} of R): a low-rank "
        "adapter was added with another strength or not at all"
    )
    unmatched = abs(share) < min(0.25, 0.03 + 3 * chance)
    if unmatched:
        text = (
            f"P − R has rank {rank} of {min(matrix.shape)} (size {number(base)} of R) and P holds none of it: "
            "a low-rank adapter was never added"
        )
    yield Explanation(text, 0.01, 0.78, {"rank": rank, "share": share}, "W8" if unmatched else "W7")


def _is_affine(ev: Evidence) -> bool:
    """Whether the low rank comes from a scaled or shifted tensor, which is not an adapter."""
    _, residual = scalar_fit(ev.p, ev.r)
    constant = ev.d - ev.d.mean()
    rows = ev.d - ev.d.mean(dim=tuple(range(1, ev.d.ndim)), keepdim=True)
    columns = ev.d - ev.d.mean(dim=0, keepdim=True)
    size = float(torch.linalg.vector_norm(ev.d))
    return residual < 1e-6 or any(float(torch.linalg.vector_norm(x)) < 0.02 * size for x in (constant, rows, columns))


def _from_base(ev: Evidence) -> Iterator[Explanation]:
    """With a captured base weight of the same shape."""
    for name, pair in ev.parameters.items():
        base = pair[0] if pair[0] is not None else pair[1]
        if base is None or name == ev.site or tuple(base.shape) != tuple(ev.r.shape):
            continue
        w0 = as_float64(base)
        delta = ev.r - w0
        if low_rank(delta.reshape(delta.shape[0], -1)) is None:
            continue
        c, _ = scalar_fit(ev.p - w0, delta) if bool((ev.p != w0).any()) else (0.0, 0.0)
        residual = ev.residual(w0 + c * delta)
        if residual <= allowance(ev):
            yield _strength_text(c, residual, name, low_rank(delta.reshape(delta.shape[0], -1)))
            return


def _from_factors(ev: Evidence) -> Iterator[Explanation]:
    """With both factors among the parameters: d = (c' − c)·B·A."""
    for rank, product, name in products(ev.parameters, ev.r.shape[0], ev.r[0].numel()):
        c, residual = scalar_fit(ev.d.reshape(product.shape), product)
        if residual <= max(0.02, allowance(ev)):
            text = f"P − R is {number(c)} times the adapter {name} (rank {rank}): its strength differs by that much"
            yield Explanation(text, residual, 0.93, {"difference": c, "rank": rank, "adapter": name}, "W7")
            return


def products(
    parameters: Mapping[str, tuple[Tensor | None, Tensor | None]], rows: int, columns: int
) -> Iterator[tuple[int, Tensor, str]]:
    """All B·A of the parameters with B [rows, k], A [k, columns] and k far below both."""
    matrices = {}
    for name, (ref, port) in parameters.items():
        value = ref if ref is not None else port
        if value is not None and value.ndim == 2 and value.is_floating_point():
            matrices[name] = value
    for down_name, down in matrices.items():
        if down.shape[1] != columns or down.shape[0] * 2 > min(rows, columns):
            continue
        for up_name, up in matrices.items():
            if up.shape[0] == rows and up.shape[1] == down.shape[0] and up_name != down_name:
                yield down.shape[0], as_float64(up) @ as_float64(down), f"{up_name}·{down_name}"


def _strength_text(c: float, residual: float, base: str, rank: int | None) -> Explanation:
    if abs(c) < 1e-3:
        text = f"P is the base {base} without the adapter (rank {rank}): its keys were never matched"
        return Explanation(text, residual, 0.95, {"strength": 0.0, "rank": rank, "base": base}, "W8")
    why = ""
    if rank and (near(c, rank, 1e-3) or near(c, 1 / rank, 1e-3)):
        why = f": alpha/rank with alpha 1 and rank {rank} left out or applied twice"
    text = f"the adapter on {base} has {number(c)} times the reference's strength (rank {rank}){why}"
    return Explanation(text, residual, 0.95, {"strength": c, "rank": rank, "base": base}, "W7")


HYPOTHESES: tuple[Hypothesis, ...] = (Hypothesis("lora_strength", "W7", strength, 0.8),)
