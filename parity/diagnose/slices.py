"""Slices along one axis that are negated, zero, repeated, missing or too many, the others being equal.

Classes: V2 V3 V7 V8 A3 A10 D2 D3 K1 K3 N5 T5 T8 W2 W9 of the bug list.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations

import torch
from torch import Tensor

from .axes import axis_name, kind_of, roles
from .evidence import Evidence, Explanation, Hypothesis, as_float64
from .fits import accept, comparable, noise_level, sure
from .matching import as_rows, match_rows, same_values

MOST_ENTRIES = 4096  # of an axis whose entries are looked up one by one


def shape_changed(ev: Evidence) -> Iterator[Explanation]:
    """Shapes differ: axes permuted, only reshaped, a tail or head dropped, extra entries (V7, A10)."""
    r, p = as_float64(ev.reference), as_float64(ev.port)
    if ev.same_shape or r.numel() == 0 or p.numel() == 0:
        return
    if r.numel() == p.numel():
        yield from _other_shape(ev, r, p)
    if r.ndim == p.ndim:
        differing = [i for i in range(r.ndim) if r.shape[i] != p.shape[i]]
        if len(differing) == 1:
            yield from _other_length(ev, r, p, differing[0])


def _close(a: Tensor, b: Tensor, ev: Evidence) -> float | None:
    """Relative distance of two equal-shaped tensors if it is honest noise, else None."""
    scale = float(torch.linalg.vector_norm(b))
    distance = float(torch.linalg.vector_norm(a - b))
    return distance / scale if scale > 0 and distance <= (1e-5 + 4 * noise_level(ev)) * scale else None


def _other_shape(ev: Evidence, r: Tensor, p: Tensor) -> Iterator[Explanation]:
    for order in permutations(range(r.ndim)) if r.ndim == p.ndim and r.ndim <= 6 else ():
        if (
            tuple(r.shape[i] for i in order) == tuple(p.shape)
            and (residual := _close(p, r.permute(order), ev)) is not None
        ):
            text = f"P is R with its axes permuted to {list(order)}: {list(p.shape)} instead of {list(r.shape)}"
            yield Explanation(text, residual, 0.97, {"order": list(order)}, "W9" if ev.kind == "weight" else "A10")
            return
    if (residual := _close(p.reshape(-1), r.reshape(-1), ev)) is not None:
        child = ev.site.rpartition(".in.")[0].rpartition(".")[2] + "."
        own = [pair for name, pair in ev.parameters.items() if name.startswith(child)] or ev.parameters.values()
        vectors = [v for pair in own for v in pair if v is not None]
        if vectors and all(v.ndim <= 1 for v in vectors) and ev.kind == "input":
            text = (
                f"a norm gets {list(p.shape)} where the reference gives it {list(r.shape)}: its statistics are taken "
                "over other axes"
            )
            yield Explanation(text, residual, 0.95, {"shape": list(p.shape)}, "N7")
            return
        text = f"P holds R's values in R's order under another shape: {list(p.shape)} instead of {list(r.shape)}"
        yield Explanation(text, residual, 0.95, {"shape": list(p.shape)}, "V11")


def _other_length(ev: Evidence, r: Tensor, p: Tensor, axis: int) -> Iterator[Explanation]:
    n, m = r.shape[axis], p.shape[axis]
    where = axis_name(axis, r.shape, kind_of(ev))
    short = min(n, m)
    for start in sorted({0, abs(n - m)}):
        a = p.narrow(axis, start if m > n else 0, short)
        b = r.narrow(axis, start if n > m else 0, short)
        residual = _close(a, b, ev)
        if residual is None:
            continue
        side = "last" if start == 0 else "first"
        if m < n:
            lost = r.narrow(axis, m if start == 0 else 0, n - m)
            known = _lost_part(ev, lost, axis, n, m)
            if known is not None:
                yield known
                return
            text = f"P lacks the {side} {n - m} of {n} entries of {where}, the others are equal"
        else:
            extra = p.narrow(axis, short if start == 0 else 0, m - n)
            what = "zero" if not bool(extra.any()) else "more"
            text = (
                f"P has {m - n} {what} entries {'after' if start == 0 else 'before'} R's {n} on "
                f"{where}, the others are equal"
            )
        yield Explanation(
            text, residual, 0.93, {"axis": axis, "reference": n, "port": m, "side": side}, _length_class(ev, axis)
        )
        return


def _lost_part(ev: Evidence, lost: Tensor, axis: int, n: int, m: int) -> Explanation | None:
    """What the port lacks is padding (C3), the result of something that it never runs (N5), or the rest of a tile (V4)."""
    values = {"axis": axis, "reference": n, "port": m}
    role = roles(ev.reference.shape, kind_of(ev))[axis]
    if role == "n" and not bool(lost.any()) and n - m > 1:
        text = f"the rows that P lacks are zero: the text is padded to {m} rows instead of {n}"
        return Explanation(text, 0.0, 0.96, values, "C3")
    if role in {"h", "w"} and _other_tile(ev, axis, m):
        text = f"P is one tile of R ({m} of {n} entries of {axis_name(axis, ev.r.shape, kind_of(ev))}), the next call has another"
        return Explanation(text, 0.0, 0.96, values, "V4")
    for site in ev.sites:
        value = ev.ref_at(site, ev.coords)
        if value is None or value.shape != lost.shape or ev.port_at(site, ev.coords) is not None:
            continue
        if _close(as_float64(value), lost, ev) is not None:
            text = f"what P lacks is the reference's {site}, which the port never computes"
            return Explanation(text, 0.0, 0.97, {**values, "record": site}, "N5")
    return None


def _other_tile(ev: Evidence, axis: int, length: int) -> bool:
    """Whether the port's next call at this site has another window of the same reference value."""
    for name in ("call", "chunk", "tile"):
        value = ev.port_at(ev.site, {**ev.coords, name: ev.coords.get(name, 0) + 1})
        if value is None or tuple(value.shape) != tuple(ev.port.shape):
            continue
        tile = as_float64(value)
        for start in range(1, ev.r.shape[axis] - length + 1):
            if _close(tile, ev.r.narrow(axis, start, length), ev) is not None:
                return True
    return False


def _length_class(ev: Evidence, axis: int) -> str:
    role = roles(ev.reference.shape, kind_of(ev))[axis]
    if ev.kind == "kv":
        return "V2" if is_memory(ev) else "K3"
    if ev.kind == "schedule":
        return "T5"
    if ev.kind == "mask":
        return "A3"
    return "V7" if role in {"f", "h", "w"} else "D3" if role == "n" else "V7"


def slices_zeroed(ev: Evidence) -> Iterator[Explanation]:
    """Some entries of one axis are zero in P and not in R, all others equal: dropped tail, missing part (V7, N5)."""
    if not comparable(ev, 4) or not bool((ev.p == 0).any()) or not bool(ev.p.any()):
        return
    dead = (ev.p == 0) & (ev.r != 0)
    if not bool(dead.any()):
        return
    for axis, size in sorted(enumerate(ev.r.shape), key=lambda item: item[1]):
        rest = [i for i in range(ev.r.ndim) if i != axis]
        if size < 2 or not rest:
            continue
        gone = ((ev.p == 0).all(dim=_reduce(rest)) if rest else ev.p == 0) & (ev.r != 0).any(dim=_reduce(rest))
        lost = torch.nonzero(gone).reshape(-1).tolist()
        if not 0 < len(lost) < size:
            continue
        keep = torch.ones(size, dtype=torch.float64)
        keep[lost] = 0
        residual = accept(ev, ev.r * keep.reshape([-1 if i == axis else 1 for i in range(ev.r.ndim)]))
        if residual is None:
            continue
        tail = lost == list(range(size - len(lost), size))
        role = roles(ev.r.shape, kind_of(ev))[axis]
        where = axis_name(axis, ev.r.shape, kind_of(ev))
        edge = role in {"h", "w"} and len(lost) <= 2 and (tail or lost == list(range(len(lost))))
        naming = _zeroed_class(ev, role, tail, edge)
        text = (
            f"P is zero at {'the last ' + str(len(lost)) if tail else _listed(lost)} of {size} "
            f"entries of {where}, the others are equal"
        )
        yield Explanation(
            text,
            residual,
            sure(ev, residual, 0.96 if is_memory(ev) else 0.92),
            {"axis": axis, "indices": lost[:64], "tail": tail},
            naming,
        )
        return


def reindexed(ev: Evidence) -> Iterator[Explanation]:
    """Every entry of P along one axis is an entry of R, some of them twice and others nowhere: one early, one late, held, skipped."""
    ids = ev.reference.dim() <= 2 and not ev.reference.is_floating_point()
    if ids or not comparable(ev, 16) or same_values(ev):
        return  # the same numbers in other places: a rearrangement
    for axis, size in enumerate(ev.r.shape):
        if not 3 <= size <= MOST_ENTRIES or ev.r.numel() // size < 8:
            continue
        match = match_rows(as_rows(ev.p, (axis,)), as_rows(ev.r, (axis,)), 1e-5 + 4 * noise_level(ev))
        if match is None or not match.complete:
            continue
        index = [int(i) for i in match.index]
        residual = accept(ev, ev.r.index_select(axis, torch.tensor(index)))
        if residual is None or sorted(index) == list(range(size)):
            continue
        moved = [i for i, j in enumerate(index) if i != j]
        rows = as_rows(ev.p, (axis,))[moved]
        filled = bool((rows == rows[:, :1]).all())
        role = roles(ev.r.shape, kind_of(ev))[axis]
        runs = ", ".join(f"P[{p}] is R[{r}]" for p, r in _runs(index))
        text = f"{axis_name(axis, ev.r.shape, kind_of(ev))} are taken from other places: {runs}"
        class_id = {"b": "V6", "a": "A6", "c": "C5", "h": "V3", "w": "V3", "n": "D3"}.get(role, "V7")
        if role == "f" and filled:
            class_id, text = "C5", f"{text}, which hold one number: other places are filled"
        elif role == "f" and min(moved) >= size - max(1, size // 4):
            class_id, text = "V8", f"{text}: only the end is concerned"
        yield Explanation(text, residual, sure(ev, residual, 0.95), {"axis": axis, "index": index[:64]}, class_id)
        return


def _runs(index: list[int]) -> list[tuple[str, str]]:
    """Return (places in P, places in R) of what moved, neighbours that moved alike as one run; at most four."""
    runs: list[list[int]] = []
    for i, j in enumerate(index):
        if runs and i - j == runs[-1][0] - runs[-1][2]:
            runs[-1][1] = i
        else:
            runs.append([i, i, j])
    moved = [(a, b, j) for a, b, j in runs if a != j]
    return [(str(a), str(j)) if a == b else (f"{a}..{b}", f"{j}..{j + b - a}") for a, b, j in moved[:4]]


def _zeroed_class(ev: Evidence, role: str, tail: bool, edge: bool) -> str:
    if is_memory(ev):
        return "V2"
    if ev.kind in {"weight", "kv"}:
        return "W2" if ev.kind == "weight" else "K1"
    if edge:
        return "V3"
    return "D3" if tail and role == "n" else "V7" if tail and role in "fhw" else "N5"


def _reduce(rest: list[int]) -> tuple[int, ...]:
    return tuple(rest)


def _listed(indices: list[int]) -> str:
    if len(indices) > 2 and indices == list(range(indices[0], indices[-1] + 1)):
        return f"entries {indices[0]}..{indices[-1]}"
    return f"entries {indices[:8]}{'…' if len(indices) > 8 else ''}"


def is_memory(ev: Evidence) -> bool:
    """Whether a state is the remembered frames of a convolution (five axes) and not keys and values."""
    return ev.kind == "kv" and ev.reference.ndim == 5


HYPOTHESES: tuple[Hypothesis, ...] = (
    Hypothesis("shape_changed", "V11", shape_changed, 0.8),
    Hypothesis("slices_zeroed", "V7", slices_zeroed, 0.8),
    Hypothesis("reindexed", "V7", reindexed, 0.75),
)
