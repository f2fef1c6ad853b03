"""Position ids: offsets, exchanged axes, restarts and scales of whole numbers (BUGS.md P2, P3, P5)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from parity.diagnose.evidence import Evidence, Explanation
from parity.diagnose.roles import distinct, fitted

FEWEST_TOKENS = 4  # different ones


def position_ids(ev: Evidence) -> Iterable[Explanation]:
    """P2, P3, P5 on integer positions: P = R + c; P = k·R; axes exchanged; restarted; every position the same."""
    if ev.kind not in ("rope", "schedule", "kv", "input", "activation") or not _integers(ev):
        return
    if ev.kind != "rope" and not any(_counts(side) for side in (ev.r, ev.p)):
        return
    r, p = ev.r, ev.p
    whole = ev.d.flatten()
    if bool((whole == whole[0]).all()) and r.numel() > 1:
        yield from fitted(
            ev, r + whole[0], f"every position is offset by {whole[0]:+.0f}", 0.96, "P2", offset=int(whole[0])
        )
        return
    if r.dim() >= 2:
        for axis in (r.dim() - 1, 0):
            yield from _exchanged_axes(ev, axis)
    yield from _scaled_or_restarted(ev, r, p)


def token_ids(ev: Evidence) -> Iterable[Explanation]:
    """C3: the text that the model is given is another: whole numbers [texts, length] of a vocabulary, no counts."""
    if ev.kind != "input" or ev.reference.is_floating_point() or not _integers(ev) or ev.reference.dim() != 2:
        return
    if any(_counts(side) for side in (ev.r, ev.p)) or len(distinct(ev.r)) < FEWEST_TOKENS:
        return
    rows = (ev.d != 0).any(-1).nonzero().flatten().tolist()
    first = int((ev.d != 0).any(0).nonzero()[0])
    many = f"{len(rows)} of {len(ev.r)} texts, from place {first} on"
    text = f"the token ids differ in {many}: another prompt, template or tokenizer"
    yield Explanation(text, 0.0, 0.92, {"rows": rows[:16], "first": first}, "C3")


def _integers(ev: Evidence) -> bool:
    if not ev.same_shape or ev.reference.numel() < 2 or ev.reference.dtype == torch.bool or ev.reference.is_complex():
        return False
    if ev.reference.is_floating_point() and ev.kind != "rope":
        return False
    return bool((ev.r == ev.r.round()).all() and (ev.p == ev.p.round()).all() and ev.error > 0)


def _counts(value: Tensor) -> bool:
    """Tell whether whole numbers grow evenly along an axis, as positions do: three of them at least, a jump where the axis is restarted or cut."""
    for axis, n in enumerate(value.shape):
        steps = value.diff(dim=axis).flatten()
        if n >= 3 and 2 * int((steps == steps.median()).sum()) > len(steps) and float(steps.median()) != 0:
            return True
    return False


def _exchanged_axes(ev: Evidence, axis: int) -> Iterator[Explanation]:
    size = ev.r.shape[axis]
    if not 2 <= size <= 4 or ev.r.dim() < 2:
        return
    from itertools import permutations

    for order in permutations(range(size)):
        if list(order) == list(range(size)):
            continue
        explained = ev.r.index_select(axis, torch.tensor(order))
        if torch.equal(explained, ev.p):
            yield Explanation(f"the position axes are in the order {order}", 0.0, 0.96, {"order": list(order)}, "P3")
            return
    moved = [i for i in range(size) if not torch.equal(ev.r.select(axis, i), ev.p.select(axis, i))]
    shifts = {i: distinct((ev.p - ev.r).select(axis, i)) for i in moved}
    if moved and all(len(s) == 1 for s in shifts.values()):
        offsets = {i: int(s[0]) for i, s in shifts.items()}
        yield Explanation(
            f"positions of axis {offsets} are offset (axis: offset)", 0.0, 0.96, {"offset": offsets}, "P2"
        )


def _scaled_or_restarted(ev: Evidence, r: Tensor, p: Tensor) -> Iterator[Explanation]:
    nonzero = r != 0
    if not bool(p.any()) or bool((p == p.flatten()[0]).all()):
        if bool((r != r.flatten()[0]).any()):
            text = f"every position is {float(p.flatten()[0]):.0f}: positions do not advance"
            yield Explanation(text, 0.0, 0.93, {"position": int(p.flatten()[0])}, "P2")
        return
    if bool(nonzero.any()):
        factor = float(p[nonzero][0] / r[nonzero][0])
        if factor not in (0.0, 1.0) and torch.equal(p, factor * r):
            yield Explanation(f"positions are multiplied by {factor:g}", 0.0, 0.95, {"scale": factor}, "P5")
            return
    top = min(int(r.max()), 100_000)
    base = int(r.min())
    if top > base and int(p.max()) < top:
        period = int(p.max()) - base + 1
        if period > 1 and torch.equal((r - base) % period + base, p):
            yield Explanation(f"positions restart at {base} every {period}", 0.0, 0.95, {"period": period}, "P2")
            return
    ranks = torch.unique(r, return_inverse=True)[1].to(torch.float64)
    if not torch.equal(ranks, r) and torch.equal(ranks, p):
        text = "positions count 0, 1, 2, … within the subset instead of the absolute indices"
        yield Explanation(
            text, 0.0, 0.95, {"reference": [round(float(v)) for v in distinct(r.flatten()[:64])[:8]]}, "P2"
        )
