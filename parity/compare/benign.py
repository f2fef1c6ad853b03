"""Differences in form that are no differences in meaning: another order along one axis, one more or one less rounding to the deployed dtype.

A rotary convention that de-interleaves its output permutes q and k alike; the scores do not change. Such a divergence is benign only when the module that
made it has an agreeing output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from parity.align.pairs import Alignment
from parity.compare.floors import ISOLATION, ROUNDOFF, SAME_IN_DOUBLE, is_low_precision
from parity.compare.measure import hidden_places
from parity.result import Divergence, Row
from parity.trace import Trace

_SAME = 1e-6  # of the bias that a mask carries where it hides nothing
_MOST = 4096  # axis lengths above this are not tried


@dataclass(frozen=True)
class Permutation:
    """The port's value is the reference's with `axis` taken in the order `index`."""

    axis: int
    index: tuple[int, ...]

    def apply(self, value: Tensor) -> Tensor:
        """Return a value in the port's order; one that is too short for it (of another call) is left as it is."""
        if value.shape[self.axis] <= max(self.index):
            return value
        return value.index_select(self.axis, torch.tensor(self.index, device=value.device))


def find_permutation(r: Tensor, p: Tensor, tolerance: float) -> Permutation | None:
    """Return the permutation of one axis (last axis first) that turns `r` into `p` up to a relative L2 error of `tolerance`."""
    if r.shape != p.shape or r.numel() == 0 or not r.is_floating_point():
        return None
    r, p = r.detach().double().cpu(), p.detach().double().cpu()
    if not (torch.isfinite(r).all() and torch.isfinite(p).all()):
        return None
    norm = float(torch.linalg.vector_norm(r))
    for axis in reversed(range(r.dim())):
        size = r.shape[axis]
        if not 2 <= size <= _MOST or r.numel() == size:
            continue
        index = _match_rows(r.movedim(axis, 0).reshape(size, -1), p.movedim(axis, 0).reshape(size, -1))
        if index is None or index == tuple(range(size)):
            continue
        found = Permutation(axis, index)
        if float(torch.linalg.vector_norm(found.apply(r) - p)) <= tolerance * norm:
            return found
    return None


def _match_rows(r: Tensor, p: Tensor) -> tuple[int, ...] | None:
    """Return, for each row of p, the row of r nearest to it, when that is one to one."""
    r, p = r[:, :256], p[:, :256]
    nearest = torch.cdist(p, r).argmin(dim=1)
    return tuple(nearest.tolist()) if torch.unique(nearest).numel() == r.shape[0] else None


def excuse_permutations(
    rows: Sequence[Row], alignment: Alignment, reference: Trace, port: Trace
) -> tuple[list[Row], dict[str, Callable[[Tensor], Tensor]], list[str]]:
    """Take back divergences that are benign permutations.

    Returns the rows, how the port orders each excused site, and one note a site. A site is excused as a whole or not at all: every
    record of it that diverges must be permuted alike, and the enclosing module's output must agree at those coordinates.
    """
    pairs = {pair.reference.key: pair for pair in alignment.pairs}
    outputs = {(r.site, tuple(r.coords.items())): r for r in rows if not r.diverged}
    by_site: dict[str, list[Row]] = {}
    for row in rows:
        if row.diverged and row.error == row.error:
            by_site.setdefault(row.site, []).append(row)
    excused: dict[str, Permutation] = {}
    for site, bad in by_site.items():
        found: Permutation | None = None
        for row in bad:
            pair = pairs[row.key]
            r, p = reference.tensor(row.key), pair.port_tensor(port)
            if (
                r is None
                or p is None
                or (pair.reference.role != "state" and not _consumer_agrees(row, pair.reference.module, outputs))
            ):
                found = None
                break
            here = find_permutation(r, p, max(row.floor, 1e-6))
            if here is None or (found is not None and here != found):
                found = None
                break
            found = here
        if found is not None:
            excused[site] = found
    if not any(pairs[by_site[s][0].key].reference.role != "state" for s in excused):
        excused = {}  # a cache alone in another order is not excused: its keys must be permuted where they are made
    new = [
        replace(r, diverged=False, how="permuted", error=0.0) if r.diverged and r.site in excused else r for r in rows
    ]
    notes = [
        f"{site}: the same values in another order along axis {perm.axis} (benign: the module's output agrees)"
        for site, perm in excused.items()
    ]
    return new, {site: perm.apply for site, perm in excused.items()}, notes


def _consumer_agrees(row: Row, module: str, agreeing: dict[tuple[str, tuple[tuple[str, int], ...]], Row]) -> bool:
    coords = tuple((axis, i) for axis, i in row.coords.items() if axis != "call")
    path = module
    while path:
        if (path, coords) in agreeing or (f"{path}.model", coords) in agreeing:  # the root of a prefix
            return True
        path = path.rpartition(".")[0]
    return False


def excuse_masks(
    rows: Sequence[Row], alignment: Alignment, reference: Trace, port: Trace
) -> tuple[list[Row], list[str]]:
    """Take back divergences of attention masks that keep the same keys in another form. Returns the rows, and one note a site."""
    pairs = {pair.reference.key: pair for pair in alignment.pairs}
    kept: list[Row] = []
    notes: dict[str, str] = {}
    for row in rows:
        r, p = (reference.tensor(row.key), pairs[row.key].port_tensor(port)) if row.diverged else (None, None)
        if r is not None and p is not None and same_mask(r, p, row.floor):
            notes[row.site] = f"{row.site}: the same mask in another form ({row.dtype[0]}, {row.dtype[1]})"
            kept.append(replace(row, diverged=False, error=0.0, how="mask form"))
        else:
            kept.append(row)
    return kept, list(notes.values())


def same_mask(r: Tensor, p: Tensor, floor: float = 0.0) -> bool:
    """Tell whether two tensors are one attention mask: additive (what hides is very negative, the rest 0 or a bias) or boolean (true keeps, or true hides).

    A row that hides every key is NaN after the softmax where it holds infinities, and an average where it holds large numbers: no matter of form.
    """
    if r.shape != p.shape or (r.dtype == torch.bool and p.dtype == torch.bool):
        return False
    left, right = _kept(r.cpu()), _kept(p.cpu())
    if left is None or right is None or bool(left.all()):
        return False
    if torch.bool in (r.dtype, p.dtype):
        bias = p if r.dtype == torch.bool else r
        same = torch.equal(left, right) or torch.equal(left, ~right)
        return same and not bool(bias.double()[right if bias is p else left].any())
    if not torch.equal(left, right):
        return False
    empty = ~left.any(-1, keepdim=True)
    if not torch.equal(torch.isinf(r) & empty, torch.isinf(p) & empty):
        return False
    a, b = r.double()[left], p.double()[left]
    return float(torch.linalg.vector_norm(b - a)) <= max(floor, _SAME) * float(torch.linalg.vector_norm(a))


def _kept(mask: Tensor) -> Tensor | None:
    """Return which keys a mask keeps; None when it is no mask."""
    if mask.dtype == torch.bool:
        return mask
    if not mask.is_floating_point() or not mask.numel():
        return None
    mask = mask.double()  # the narrow formats have no comparisons
    hidden = hidden_places(mask)
    return None if hidden is None else ~hidden


def is_rounding(r: Tensor, p: Tensor, dtype: torch.dtype, least: float = 0.05) -> bool:
    """Tell whether two values differ by one rounding to a half precision: a constant kept wider, or a cast that one side does not make.

    Either one is the other rounded, exactly; or the difference looks like what such a rounding leaves behind: as large as half a unit in the last place
    at most, no gain, no offset, no law. least: units of the smallest such difference. A wrong eps has a gain; another activation differs by a function of the value.
    """
    if r.shape != p.shape or not (r.is_floating_point() and p.is_floating_point()) or r.numel() < 2:
        return False
    r, p = r.detach().double(), p.detach().double()
    if not (torch.isfinite(r).all() and torch.isfinite(p).all()):
        return False
    for value, other in ((r, p), (p, r)):
        if float((other.to(dtype).double() != value).double().mean()) < 1e-3:
            return True
    d = p - r
    norm = float(torch.linalg.vector_norm(r))
    error = float(torch.linalg.vector_norm(d)) / norm if norm > 0 else math.inf
    unit = torch.finfo(dtype).eps / 2
    if not least * unit <= error <= 0.75 * unit or follows(r, d):
        return False
    gain = float((d * r).sum()) / norm**2
    offset = float(d.mean()) / (float(r.std()) + 1e-300)
    spread = 4 / math.sqrt(r.numel())
    largest = float(d.abs().max()) / float(r.abs().max())
    # A table is used many times: its few roundings do not average out as so many values would.
    return abs(gain) <= (0.5 + spread) * error and abs(offset) <= (0.5 + spread) * error and largest <= 2 * unit


def follows(r: Tensor, d: Tensor) -> bool:
    """Tell whether the difference `d` is a smooth function of the value `r`: in the order of r, neighbours differ little (a rounding is erratic).

    Each sign alone, because an activation has two branches: it is enough that the larger values follow.
    """
    values, places = torch.unique(r.flatten()[:65536], return_inverse=True)
    of_value = torch.zeros_like(values)
    of_value[places] = d.flatten()[:65536]
    for side in (values > 0, values < 0):
        branch = of_value[side]
        steps = float(branch.diff().square().sum() / branch.square().sum().clamp_min(1e-300))
        if len(branch) >= 64 and steps < 0.4 and float(branch.norm()) > 0.3 * float(of_value.norm()):
            return True  # 2 when neighbours are independent
    return False


def is_roundoff(row: Row, deployed: torch.dtype = torch.float32) -> bool:
    """Tell whether a divergence of float32 values is float32 arithmetic: tiny, and gone when the same site computes in float64 on the same inputs.

    A reference that forms an angle in float64 has almost no error of its own there; a right port that forms it in float32 has |angle| units of it.
    No cast to a half precision is so small, and no wrong formula is equal in float64.

    deployed: the dtype that the case runs in. A float64 run that holds float32 angles, tables or constants carries them through every layer;
    there each site alone, on the reference's values, is the whole test.
    """
    double = deployed == torch.float64
    dtypes = {"float32", "float64"} if double else {"float32"}
    return (
        row.diverged
        and set(row.dtype) <= dtypes
        and row.nonfinite[0] == row.nonfinite[1]
        and row.error > row.floor  # not a matter of which elements are finite
        and row.error <= (8 * ROUNDOFF if double else ROUNDOFF)
        and row.isolated <= (ISOLATION if double else SAME_IN_DOUBLE)
    )


def excuse_rounding(
    rows: Sequence[Row], alignment: Alignment, reference: Trace, port: Trace, dtype: torch.dtype, notes: list[str]
) -> list[Row]:
    """In a half-precision deployment, take back divergences that are one rounding to that precision."""
    if not is_low_precision(dtype):
        return list(rows)
    pairs = {pair.reference.key: pair for pair in alignment.pairs}
    kept = []
    for row in rows:
        r, p = (reference.tensor(row.key), pairs[row.key].port_tensor(port)) if row.diverged else (None, None)
        if r is not None and p is not None and is_rounding(r, p, dtype):
            notes.append(
                f"{row.site}: differs by one rounding to {str(dtype).removeprefix('torch.')}: kept in another precision"
            )
            row = replace(row, diverged=False, how="rounding")
        kept.append(row)
    return kept


def excuse_roundoff(
    divergences: list[Divergence], rows: list[Row], deployed: torch.dtype, notes: list[str]
) -> list[Divergence]:
    """Take back divergences of a few hundred units of float32 whose site agrees in float64 on the same inputs."""
    harmless = {row.key: row for row in rows if is_roundoff(row, deployed)}
    excused = {d.site: d.error for d in divergences if d.key in harmless}
    if excused:
        site, error = next(iter(excused.items()))
        notes.append(
            f"{site} and {len(excused) - 1} later sites: float32 roundoff above the reference's own ({error:.1e}); equal in float64 on equal inputs"
        )
    return [d for d in divergences if d.key not in harmless]
