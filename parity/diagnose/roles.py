"""Shared ground of the hypotheses: which tensors could play a part, how good a fit must be, how sure a fit makes us."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from parity.diagnose.evidence import Evidence, Explanation, as_float64

T = TypeVar("T")

UNIT_ROUNDING = {torch.bfloat16: 2.0e-3, torch.float16: 2.5e-4, torch.float32: 1e-7, torch.float64: 1e-14}
"""Relative L2 error of one rounding to a dtype, for values of all magnitudes (BUGS.md section 6)."""

LARGEST_LIMIT = 0.15
CANDIDATES = 24


def noise(ev: Evidence) -> float:
    """Return the relative error of `ev.port` that rounding alone may cause: its floor, at least one rounding of its dtype.

    Where R is the high-precision run itself (isolation in float64 on equal inputs), rounding is out of the picture.
    """
    if isolated(ev):
        return min(ev.floor, 1e-9) or 1e-12
    units = [UNIT_ROUNDING.get(tensor.dtype, 0.0) for tensor in (ev.reference, ev.port)]
    return max(ev.floor, *units)


def isolated(ev: Evidence) -> bool:
    """Say whether both values are float64 and R is the precise run: computed on the same inputs, so identities are exact."""
    if ev.precise is None or ev.reference.dtype != torch.float64 or ev.port.dtype != torch.float64:
        return False
    same = ev.precise is ev.reference or ev.precise.data_ptr() == ev.reference.data_ptr()
    return same or (ev.precise.shape == ev.reference.shape and torch.equal(ev.precise, ev.reference))


def limit(ev: Evidence) -> float:
    """Return the largest residual share at which an explanation still counts as a fit: 2 %, more when noise is a part of d."""
    if ev.error <= 0:
        return 0.0
    return min(LARGEST_LIMIT, max(0.02, 3.0 * noise(ev) / ev.error))


def comparable(ev: Evidence) -> bool:
    """Say whether both values have one shape, hold only finite numbers and differ by more than rounding."""
    return bool(
        ev.same_shape
        and ev.reference.numel() > 0
        and torch.isfinite(ev.r).all()
        and torch.isfinite(ev.p).all()
        and ev.error > 2.0 * noise(ev)
    )


def confidence(ev: Evidence, residual: float, best: float = 0.97) -> float:
    """Return `best` for an exact fit (residual at the noise), falling to about two thirds of it at the limit."""
    exact = max(1e-3, 1.5 * noise(ev) / ev.error) if ev.error > 0 else 1e-3
    if residual <= exact:
        return best
    return best * (0.92 - 0.25 * min(1.0, residual / max(limit(ev), 1e-12)))


def fitted(
    ev: Evidence, explained: Tensor, text: str, best: float = 0.97, class_id: str = "", **parameters: Any
) -> list[Explanation]:
    """Return one Explanation when taking the port to be `explained` removes the difference, else an empty list."""
    if tuple(explained.shape) != tuple(ev.p.shape):
        return []
    residual = ev.residual(explained)
    if not residual <= limit(ev):
        return []
    return [Explanation(text, residual, confidence(ev, residual, best), parameters, class_id)]


def grouped(x: Tensor, groups: int) -> Tensor:
    """Split the last axis into groups: [.., g·w] -> [.., g, w]."""
    return x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)


def distinct(x: Tensor) -> Tensor:
    """Return the distinct values of `x`, sorted."""
    return torch.unique(x)  # type: ignore[no-any-return]


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Say whether ‖a − b‖ ≤ tolerance·‖b‖; False when shapes differ."""
    if a.shape != b.shape or b.numel() == 0:
        return False
    scale = float(torch.linalg.vector_norm(b))
    return float(torch.linalg.vector_norm(a - b)) <= tolerance * scale if scale > 0 else not bool(a.any())


def memo(ev: Evidence, key: str, build: Callable[[Evidence], T]) -> T:
    """Compute `build(ev)` once per evidence, for tests that share an analysis (stored as cached_property does)."""
    stored = ev.__dict__.setdefault("_memo", {})
    if key not in stored:
        stored[key] = build(ev)
    return stored[key]  # type: ignore[no-any-return]


def surroundings(ev: Evidence) -> list[tuple[str, Tensor]]:
    """Return named tensors that were around R on the reference side: inputs (nearest last) and what its operations read or made.

    Each value once; at most `CANDIDATES` of each origin, so that a search over them stays cheap.
    """

    def collect(_: Evidence) -> list[tuple[str, Tensor]]:
        found: dict[tuple[int, tuple[int, ...], tuple[int, ...]], tuple[str, Tensor]] = {}
        named = [(name, value) for name, value in ev.inputs.items() if value is not None][-CANDIDATES:]
        for name, value in [*reversed(named), *_from_operations(ev)]:
            if not isinstance(value, Tensor) or value.numel() == 0:
                continue
            found.setdefault((value.data_ptr(), tuple(value.shape), tuple(value.stride())), (name, value))
        return list(found.values())

    return memo(ev, "surroundings", collect)


def _from_operations(ev: Evidence) -> Iterator[tuple[str, Tensor]]:
    for op in list(ev.ref_ops)[-2 * CANDIDATES :]:
        for value in (*op.inputs, *op.outputs[:1]):
            if value is not ev.reference:
                yield op.name, value


def like_reference(ev: Evidence) -> list[tuple[str, Tensor]]:
    """Return the floating tensors around R that have R's shape, in float64 and finite, R itself left out."""

    def collect(_: Evidence) -> list[tuple[str, Tensor]]:
        shape = tuple(ev.reference.shape)
        found: list[tuple[str, Tensor]] = []
        for name, value in surroundings(ev):
            if tuple(value.shape) != shape or not value.is_floating_point() or len(found) >= CANDIDATES:
                continue
            x = as_float64(value)
            if bool(torch.isfinite(x).all()) and not torch.equal(x, ev.r):
                found.append((name, x))
        return found

    return memo(ev, "like_reference", collect)
