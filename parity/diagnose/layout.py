"""Layout: the port holds the reference's values elsewhere, negated, or under a fixed scale and offset.

Classes: A10 V5 V6 V7 V11 W3 W4 W5 W9 C5 C7 C8 C10 D3 T6 T8 of the bug list; the generic algebra of its section 2,
step 6.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from .evidence import Evidence, Explanation, Hypothesis
from .fits import accept, comparable, noise_level, promising, sample_index, sure
from .layout_names import Naming, name_permutation
from .matching import as_rows, axis_groups, fingerprints, from_rows, match_rows, same_values
from .operations import HYPOTHESES as OPERATIONS
from .operations import same
from .permutations import Structure, candidates, describe
from .scaling import HYPOTHESES as SCALING
from .slices import HYPOTHESES as SLICES

MAX_VALUE_MATCH = 400_000  # rows; beyond, a k-d tree costs seconds


def zeros(ev: Evidence) -> Iterator[Explanation]:
    """P == 0 where R is not: a weight that was never loaded (W2), a cache that was never written (K3)."""
    if not ev.same_shape or ev.reference.numel() == 0 or float(ev.r.abs().max()) == 0 or bool(ev.p.any()):
        return
    naming = {"weight": "W2", "kv": "K3"}.get(ev.kind)
    if naming is not None:
        yield Explanation("P is zero everywhere", 0.0, 0.9, {"count": ev.port.numel()}, naming)


def negated(ev: Evidence) -> Iterator[Explanation]:
    """P == −R (T8)."""
    if comparable(ev, 1) and promising(ev, lambda i: -ev.r.reshape(-1)[i]):
        residual = accept(ev, -ev.r)
        if residual is not None:
            yield Explanation("P is R with the sign reversed", residual, sure(ev, residual), {"factor": -1.0})


def rearranged(ev: Evidence) -> Iterator[Explanation]:
    """P[..., i, ...] == R[..., π(i), ...] along one axis or a group of neighbouring axes; π is described and named.

    Tested in order of simplicity: every axis alone, axes permuted, then groups (tokens as (h w), (b f), (heads
    tokens), whole tensor).
    """
    if not comparable(ev, 3) or not same_values(ev):
        return
    shape = tuple(ev.r.shape)
    single = list(axis_groups(shape, most=1))
    found = _rolled(ev) or _match_groups(ev, single) or _axes_permuted(ev)
    found = found or _match_groups(ev, list(axis_groups(shape, least=2)))
    if found is None:
        return
    axes, structure, residual, naming = found
    confidence = sure(ev, residual, 0.97 if structure.leaf.kind not in {"arbitrary"} else 0.85)
    parameters = {"axes": list(axes), "structure": structure.kind, "benign": naming.benign}
    parameters |= {"period": structure.period} if structure.period else {}
    parameters |= {"shift": structure.leaf.shift} if structure.leaf.shift else {}
    parameters |= (
        {"sizes": list(structure.leaf.sizes), "order": list(structure.leaf.order)} if structure.leaf.sizes else {}
    )
    yield Explanation(naming.text, residual, confidence * naming.trust, parameters, naming.class_id)


Found = tuple[tuple[int, ...], Structure, float, Naming]


def _rolled(ev: Evidence) -> Found | None:
    """P == roll or flip of R along one axis, also where equal rows make matching by value ambiguous (masks)."""
    shape = tuple(ev.r.shape)
    index = sample_index(ev.r.numel(), 256).numpy()
    p, r = ev.p.reshape(-1).numpy()[index], ev.r.reshape(-1).numpy()
    limit = (1e-5 + 6 * noise_level(ev)) * np.linalg.norm(p)
    places = np.unravel_index(index, shape)
    for axis, size in enumerate(shape):
        if not 2 <= size <= 4096:
            continue
        stride = int(np.prod(shape[axis + 1 :]))
        base = index - places[axis] * stride
        shifts = [s for k in range(1, size // 2 + 1) for s in ((k, -k) if 2 * k < size else (k,))]
        for shift in (0, *shifts):  # 0: the flip
            rows = size - 1 - places[axis] if shift == 0 else (places[axis] - shift) % size
            if np.linalg.norm(p - r[base + rows * stride]) > limit:
                continue
            residual = accept(ev, ev.r.flip(axis) if shift == 0 else ev.r.roll(shift, axis))
            if residual is not None:
                kind = "flip" if shift == 0 and size > 2 else "roll"
                structure = Structure(kind, size, shift=shift or 1)
                return (axis,), structure, residual, name_permutation(ev, (axis,), structure)
    return None


def _match_groups(ev: Evidence, groups: list[tuple[int, ...]]) -> Found | None:
    shape = tuple(ev.r.shape)
    for axes in groups:
        count = int(np.prod([shape[i] for i in axes]))
        if count > MAX_VALUE_MATCH:
            continue
        r, p = as_rows(ev.r, axes), as_rows(ev.p, axes)
        match = match_rows(p, r, tolerance=1e-5 + 6 * noise_level(ev))
        if match is None or match.found.mean() < 0.9 or len(np.unique(match.index)) == 1:
            continue
        index = _completed(match.index, match.found)
        structure = describe(index)
        if structure.leaf.kind in {"arbitrary", "swaps", "repeated"}:
            # equal rows (masks, padding, repeats) leave the map ambiguous: look for a plain one that fits as well
            plain = _plain_map(p, r, 1e-5 + 6 * noise_level(ev)) if count <= 4096 else None
            index = index if plain is None else plain
            structure = describe(index)
        if structure.kind in {"identity", "repeated"} or (structure.leaf.kind == "arbitrary" and r.shape[1] < 2):
            continue
        residual = accept(ev, from_rows(r[torch.from_numpy(index)], axes, shape))
        if residual is not None:
            return axes, structure, residual, name_permutation(ev, axes, structure)
    return None


def _plain_map(p: Tensor, r: Tensor, tolerance: float) -> np.ndarray | None:
    """The first usual index map with p = r[index] within the tolerance, or None."""
    prints_p, prints_r = fingerprints(p), fingerprints(r)
    limit = tolerance * float(np.linalg.norm(prints_r))
    return next((i for i in candidates(len(p)) if np.linalg.norm(prints_p - prints_r[i]) <= limit), None)


def _completed(index: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Where equal rows made the map not one to one, hand the unused rows to the repeated ones in order (zero rows,
    ties).
    """
    values, counts = np.unique(index, return_counts=True)
    if len(values) == len(index):
        return index
    repeated = {int(v) for v, c in zip(values, counts, strict=True) if c > 1}
    spare = sorted(set(range(len(index))) - {int(v) for v in values})
    out, seen = index.copy(), set()
    if len(spare) > len(index) // 4:
        return index
    for i, v in enumerate(index.tolist()):
        if v in repeated and v in seen and i != v and spare:
            out[i] = i if i in spare else spare[0]
            spare.remove(int(out[i]))
        seen.add(v)
    return out


def _axes_permuted(ev: Evidence) -> Found | None:
    """P == R.permute(π).reshape(R.shape): axes swapped, with equal sizes or by a view without the permute (A10, V11,
    W9).
    """
    shape = tuple(ev.r.shape)
    real = [i for i, n in enumerate(shape) if n > 1]
    if not 2 <= len(real) <= 6:
        return None
    index = sample_index(ev.r.numel(), 256).numpy()
    p, r = ev.p.reshape(-1).numpy()[index], ev.r.reshape(-1).numpy()
    limit = (1e-5 + 6 * noise_level(ev)) * float(np.sqrt(np.mean(p**2)) + 1e-300) * np.sqrt(len(index))
    strides = np.array([int(np.prod(shape[i + 1 :])) for i in range(len(shape))])
    for order in permutations(real):
        if list(order) == real:
            continue
        for inverse in (False, True):
            explained = r[_gather(index, order, real, shape, strides, inverse)]
            if np.linalg.norm(p - explained) > limit:
                continue
            whole = _permuted(ev.r, order, real, inverse)
            residual = accept(ev, whole)
            if residual is not None:
                swapped = all(shape[a] == shape[b] for a, b in zip(order, real, strict=True))
                kind = "transposed" if swapped else "unpermuted" if inverse else "viewed"
                structure = Structure(kind, ev.r.numel(), order=order)
                moved = tuple(b for a, b in zip(order, real, strict=True) if a != b)
                return moved, structure, residual, name_permutation(ev, moved, structure)
    return None


def _gather(
    index: np.ndarray,
    order: tuple[int, ...],
    real: list[int],
    shape: tuple[int, ...],
    strides: np.ndarray,
    inverse: bool,
) -> np.ndarray:
    """Flat indices into R of the port's flat `index` under `_permuted`."""
    if not inverse:
        digits = np.unravel_index(index, [shape[a] for a in order])
        return np.asarray(sum(digit * strides[a] for digit, a in zip(digits, order, strict=True)))
    places = dict(zip(real, np.unravel_index(index, [shape[a] for a in real]), strict=True))
    return np.asarray(np.ravel_multi_index([places[a] for a in order], [shape[a] for a in order]))


def _permuted(r: Tensor, order: tuple[int, ...], real: list[int], inverse: bool) -> Tensor:
    shape = r.shape
    compact = r.reshape([shape[a] for a in real])
    places = [real.index(a) for a in order]
    if not inverse:
        return compact.permute(places).reshape(shape)
    back = [places.index(i) for i in range(len(places))]
    return compact.reshape([shape[a] for a in order]).permute(back).reshape(shape)


def rearranged_operand(ev: Evidence) -> Iterator[Explanation]:
    """P = x + π(y) where R = x + y, from the last addition of both sides: the rearrangement hides under a residual."""
    ours, theirs = ([op for op in ops if op.name == "add" and len(op.inputs) == 2] for ops in (ev.ref_ops, ev.port_ops))
    if not ours or not theirs or not comparable(ev, 3) or same_values(ev):
        return
    a, b = ours[-1].inputs, theirs[-1].inputs
    for i in (0, 1):
        for j in (0, 1):
            y, z = a[1 - i], b[1 - j]
            if not same(a[i], b[j]) or y.shape != z.shape or tuple(y.shape) != tuple(ev.reference.shape) or same(y, z):
                continue
            part = Evidence(
                y, z, site=ev.site, kind=ev.kind, module=ev.module, parameters=ev.parameters, floor=ev.floor
            )
            for found in rearranged(part):
                yield replace(found, text=f"in the last sum, one term is rearranged: {found.text}")
                return


HYPOTHESES: tuple[Hypothesis, ...] = (
    Hypothesis("zeros", "N5", zeros, 1.0),
    Hypothesis("negated", "T8", negated, 0.95),
    Hypothesis("rearranged", "V11", rearranged, 0.85),
    Hypothesis("rearranged_operand", "V11", rearranged_operand, 0.6),
    *SLICES,
    *SCALING,
    *OPERATIONS,
)
