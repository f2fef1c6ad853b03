"""What the output of an attention alone, or its mask, says (BUGS.md A1–A4, A6, A10, A11, K3, K6)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from parity.diagnose.attending import find
from parity.diagnose.evidence import Evidence, Explanation, as_float64, relative_error
from parity.diagnose.masks import describe
from parity.diagnose.roles import (
    comparable,
    fitted,
    limit,
    noise,
    surroundings,
)


def tiled_heads(ev: Evidence) -> Iterable[Explanation]:
    """A6 from the pattern alone: exactly the heads with h // n == h % g agree (a hint; recomputing is the proof)."""
    if not comparable(ev) or ev.reference.dim() != 4 or find(ev) is not None:
        return
    for axis in (1, 2):
        heads = ev.reference.shape[axis]
        if heads < 4 or heads > 256:
            continue
        error = ev.d.square().sum([x for x in range(4) if x != axis])
        exact = error <= 1e-10 * error.max()
        index = torch.arange(heads)
        for groups in [g for g in range(2, heads) if heads % g == 0]:
            if torch.equal(exact, index // (heads // groups) == index % groups):
                text = f"only heads {torch.nonzero(exact).flatten().tolist()} agree: {groups} kv heads tiled instead of repeated"
                yield Explanation(
                    text, 1.0, 0.6, {"kv_heads": groups, "heads": torch.nonzero(exact).flatten().tolist()}
                )
                return


def head_order(ev: Evidence) -> Iterable[Explanation]:
    """A10: P is R with heads in another order, or with head and token axes merged in the wrong order."""
    if not comparable(ev) or ev.reference.dim() not in (3, 4):
        return
    if ev.reference.dim() == 4:
        _, x, y, _ = ev.r.shape
        moved = ev.r.transpose(1, 2).contiguous().reshape(ev.r.shape)
        if x != y and x > 1 and y > 1 and not torch.equal(moved, ev.r):
            text = "head and token axes were exchanged by a reshape without a permute"
            yield from fitted(ev, moved, text, 0.95, "A10")
        for axis in (1, 2):
            yield from _heads_permuted(ev, axis)
        return
    b, n, c = ev.r.shape
    for heads in [h for h in (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40) if c % h == 0 and c // h >= 4]:
        split = ev.r.reshape(b, n, heads, c // heads).transpose(1, 2)
        scrambled = split.reshape(b, n, c)
        if ev.residual(scrambled) <= limit(ev):
            text = (
                f"the {heads} heads were merged without moving the head axis back: [b, h, n, d] reshaped to [b, n, h·d]"
            )
            yield from fitted(ev, scrambled, text, 0.97, "A10", heads=heads)
            return


def _heads_permuted(ev: Evidence, axis: int) -> Iterator[Explanation]:
    heads = ev.r.shape[axis]
    if not 2 <= heads <= 64 or ev.r.numel() // heads < 8:
        return
    a = ev.r.movedim(axis, 0).flatten(1)
    b = ev.p.movedim(axis, 0).flatten(1)
    step = max(1, a.shape[1] // 4096)
    distance = torch.cdist(b[:, ::step], a[:, ::step]) / torch.linalg.vector_norm(a[:, ::step], dim=1).clamp_min(1e-300)
    source = distance.argmin(1)
    near = distance[torch.arange(heads), source] <= max(1e-5, 3 * noise(ev))
    if bool(near.all()) and len(set(source.tolist())) == heads and source.tolist() != list(range(heads)):
        explained = ev.r.index_select(axis, source)
        text = f"axis {axis} (heads) is in another order: {source.tolist()[:16]}"
        yield from fitted(ev, explained, text, 0.8, "A10", order=source.tolist())


def masked_rows(ev: Evidence) -> Iterable[Explanation]:
    """A4: rows without a visible key give NaN, 0 or the mean of the values, by backend; the other rows agree."""
    if not ev.same_shape or ev.reference.dim() < 3 or not ev.reference.is_floating_point() or ev.reference.numel() == 0:
        return
    r, p = ev.r.flatten(0, -2), ev.p.flatten(0, -2)
    kinds_r, kinds_p = _row_kind(r), _row_kind(p)
    fine = (kinds_r == 0) & (kinds_p == 0)
    odd = kinds_r != kinds_p
    if not bool(odd.any()) or not bool(fine.any()) or float(odd.sum()) > 0.5 * len(r):
        return
    tolerance = max(1e-5, 3 * noise(ev))
    if relative_error(p[fine], r[fine]) > tolerance:
        return
    names = ("a value", "0", "NaN")
    pair = {(names[int(x)], names[int(y)]) for x, y in zip(kinds_r[odd], kinds_p[odd], strict=True)}
    if len(pair) != 1 or not _some_mask_hides_all(ev):
        return
    ours, theirs = pair.pop()
    text = (
        f"{int(odd.sum())} fully masked rows are {theirs} in the port and {ours} in the reference; the other rows agree"
    )
    yield Explanation(text, 0.0, 0.85, {"rows": int(odd.sum()), "port": theirs, "reference": ours})


def _row_kind(x: Tensor) -> Tensor:
    return torch.where(torch.isnan(x).all(-1), 2, torch.where((x == 0).all(-1), 1, 0))


def _some_mask_hides_all(ev: Evidence) -> bool:
    """Say whether a mask near R has a row that is all of one value, so that it may hide every key."""
    near = [*(v for _, v in surroundings(ev)), *(x for op in ev.port_ops for x in op.inputs if "attention" in op.name)]
    known = [v for v in near if v.dtype == torch.bool and v.dim() >= 1]
    if any(not bool(v.any(-1).all()) or bool(v.all(-1).any()) for v in known):
        return True
    additive = [v for v in near if v.is_floating_point() and v.dim() >= 2 and bool((v < -1e4).any())]
    return any(bool(((v == 0) | (v < -1e4)).all()) and bool((v < -1e4).all(-1).any()) for v in additive)


def mask_record(ev: Evidence) -> Iterable[Explanation]:
    """A1–A4, A11, K6 on the masks themselves: kind "mask", or booleans, or 0/1 integers, or 0/−inf."""
    if ev.reference.numel() < 2 or ev.port.numel() < 2 or ev.reference.numel() > 50_000_000:
        return
    added = ev.kind == "mask" and any(_hides(t) for t in (ev.reference, ev.port))
    ours, theirs = _as_keep(ev.reference, ev.kind, added), _as_keep(ev.port, ev.kind, added)
    if ours is None or theirs is None:
        return
    if ours.shape[-1] > theirs.shape[-1] and bool(theirs.all()) and int(ours.sum(-1).max()) == theirs.shape[-1]:
        text = f"the port attends to {theirs.shape[-1]} keys without the reference's hidden slots: its cache is missing or laid out otherwise"
        yield Explanation(text, 0.0, 0.95, {"reference": ours.shape[-1], "port": theirs.shape[-1]}, "K3")
        return
    slots = ours.dim() == theirs.dim() == 1 and ours.shape != theirs.shape and "frame" in ev.coords
    if slots and int(ours.sum()) == int(theirs.sum()) and not bool(ours.all()):
        text = (
            f"the cache has {len(theirs)} slots instead of {len(ours)}: the window of another layer or another length"
        )
        yield Explanation(text, 0.0, 0.95, {"reference": len(ours), "port": len(theirs)}, "K6")
        return
    change = describe(ours, theirs)
    if change is None:
        return
    frame = ev.coords.get("frame")
    text = change.text + (f" (frame {frame})" if frame is not None else "")
    yield Explanation(text, 0.0, change.confidence, change.parameters, change.class_id)


def _hides(mask: Tensor) -> bool:
    return mask.is_floating_point() and bool((as_float64(mask) < -1e3).any())


def _as_keep(mask: Tensor, kind: str, added: bool = False) -> Tensor | None:
    """Read a mask as what is visible; added: one side's is added to the scores, so that a zero of the other hides nothing."""
    if mask.dtype == torch.bool:
        return mask.cpu() if kind in ("mask", "kv", "input", "activation") else None
    if kind != "mask" or mask.is_complex():
        return None
    values = as_float64(mask)
    if added and not bool(values.any()):
        return values == 0
    if bool(((values == 0) | (values == 1)).all()):
        return values == 1
    if bool((values <= 0).all()) and bool((values < -1e3).any()):
        return values > -1e3
    return None


def visible_count(ev: Evidence) -> Iterable[Explanation]:
    """K6, K3, A2 on counts of visible keys (kind "mask", whole numbers): P sees n keys where R sees m."""
    if ev.kind != "mask" or not ev.same_shape or ev.reference.dtype == torch.bool or ev.reference.numel() > 64:
        return
    r, p = ev.r.flatten(), ev.p.flatten()
    if (
        r.numel() == 0
        or bool(((r == 0) | (r == 1)).all())
        or not bool((r == r.round()).all() and (p == p.round()).all())
    ):
        return
    moved = torch.nonzero(r != p).flatten()
    if not len(moved) or bool((r < 0).any()):
        return
    at = int(moved[0])
    ours, theirs = int(r[at]), int(p[at])
    few = theirs < ours
    text = f"the port sees {theirs} keys, the reference {ours}: " + (
        "history is missing" if few else "too many keys are visible"
    )
    yield Explanation(text, 0.0, 0.7, {"reference": ours, "port": theirs}, "K6")
