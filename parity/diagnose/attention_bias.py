"""What is added to the scores of an attention (relative positions): missing, of another sign or size, transposed, shifted, or of other heads."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from parity.diagnose.attending import Attention
from parity.diagnose.evidence import Explanation
from parity.diagnose.roles import close


def head_order(ours: Tensor, theirs: Tensor, near: float) -> list[int] | None:
    """Return which of the reference's heads [b, h, n, d] each head of the port is, when they are the same in another order."""
    heads = ours.shape[1]
    if not 2 <= heads <= 64:
        return None
    a, b = (x.transpose(0, 1).flatten(1) for x in (ours, theirs))
    step = max(1, a.shape[1] // 4096)
    distance = torch.cdist(b[:, ::step], a[:, ::step])
    order: list[int] = distance.argmin(1).tolist()
    if len(set(order)) < heads or order == list(range(heads)):
        return None
    return order if close(theirs, ours[:, order], max(near, 1e-6)) else None


def biases(a: Attention, b: Attention, near: float) -> Iterator[Explanation]:
    """What is added to the scores (relative positions): missing, of other sign or size, transposed, shifted, or of other heads."""
    if a.bias is None and b.bias is None:
        return
    shape = (a.q.shape[0], a.q.shape[1], a.q.shape[2], a.k.shape[2])
    open_ = torch.ones(1, dtype=torch.bool)
    for keep in (a.keep, b.keep):
        open_ = open_ if keep is None else open_ & keep
    open_ = open_.expand(shape)
    ours, theirs = (torch.zeros(shape, dtype=torch.float64) if x.bias is None else x.bias.expand(shape) for x in (a, b))

    def is_(other: Tensor) -> bool:
        return close(theirs[open_], other[open_], max(near, 1e-5))

    if is_(ours):
        return
    if b.bias is None or a.bias is None:
        side = "leaves out" if b.bias is None else "adds"
        yield Explanation(
            f"the port {side} what {'is' if b.bias is None else 'should not be'} added to the scores (a position bias)",
            0.0,
            0.96,
            {},
            "N5",
        )
        return
    factor = float((ours[open_] * theirs[open_]).sum() / ours[open_].square().sum().clamp_min(1e-300))
    if is_(factor * ours) and abs(factor) > 1e-6:
        text = f"the bias of the scores is {factor:.4g} times the reference's"
        yield Explanation(text, 0.0, 0.95, {"factor": factor}, "P7" if factor < 0 else "A5")
    elif shape[2] == shape[3] and _transposed(ours, theirs, open_ & open_.transpose(-1, -2), near):
        text = "the bias of the scores has queries and keys exchanged: relative positions have the opposite sign"
        yield Explanation(text, 0.0, 0.96, {}, "P7")
    elif (order := head_order(ours, theirs, near)) is not None:
        yield Explanation(
            f"the heads of the bias of the scores are in another order: {order[:16]}",
            0.0,
            0.93,
            {"order": order},
            "A10",
        )
    else:
        yield from _shifted_bias(ours, theirs)


def _transposed(ours: Tensor, theirs: Tensor, open_: Tensor, near: float) -> bool:
    """Say whether the biases are each other's transpose where both a place and its mirror are visible."""
    a, b = ours.transpose(-1, -2)[open_], theirs[open_]
    return len(b) > len(theirs) and close(b, a, max(near, 1e-5))


def _shifted_bias(ours: Tensor, theirs: Tensor) -> Iterator[Explanation]:
    """A bias by distance that is read at another distance."""
    for shift in (1, -1, 2, -2):
        n = ours.shape[-1] - abs(shift)
        if n < 2:
            continue
        left, right = (ours[..., shift:], theirs[..., :n]) if shift > 0 else (ours[..., :n], theirs[..., -shift:])
        if close(right, left, 1e-5):
            text = f"the bias of the scores is that of keys {abs(shift)} {'later' if shift > 0 else 'earlier'}: positions are offset"
            yield Explanation(text, 0.0, 0.93, {"offset": shift}, "P2")
            return
