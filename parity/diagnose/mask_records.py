"""What a recorded mask says (BUGS.md A1–A4, A11, K3, K6)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from parity.compare.masks import describe_mask
from parity.diagnose.evidence import Evidence, Explanation, Hypothesis, as_float64
from parity.diagnose.masks import describe

MOST = 50_000_000  # numbers of a mask that is read
LOWEST = -6e4  # what fp16 has as its lowest is hidden in every dtype


def mask_record(ev: Evidence) -> Iterable[Explanation]:
    """A1–A4, A11, K6 on the masks themselves: kind "mask", or booleans, or 0/1 integers, or 0/−inf; C5 on a mask that the model is given as a condition."""
    if ev.reference.numel() < 2 or ev.port.numel() < 2 or ev.reference.numel() > MOST:
        return
    if ev.kind == "mask" and ev.words and ev.same_shape:
        text = f"the conditioning mask differs: {describe_mask(ev.reference, ev.port, ev.words)}"
        yield Explanation(text, 0.0, 0.99, {"axes": dict(ev.words)}, "C5")  # the case says what it is
        return
    kind = "mask" if _is_added(ev.reference) or _is_added(ev.port) else ev.kind
    added = kind == "mask" and any(_hides(t) for t in (ev.reference, ev.port))
    ours, theirs = _as_keep(ev.reference, kind, added), _as_keep(ev.port, kind, added)
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


def _is_added(value: Tensor) -> bool:
    """Tell whether a value can only be a mask that is added to scores: zero, or the lowest number of a dtype or infinity, and nothing else."""
    if not value.is_floating_point() or value.numel() > MOST:
        return False
    values = as_float64(value)
    return bool((values < LOWEST).any()) and bool(((values == 0) | (values < LOWEST)).all())


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


HYPOTHESES = (Hypothesis("mask", "A2", mask_record, 0.8),)
