"""Rows of the table about masks: which keys a query sees."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .graph import MOVES
from .masks import describe as describe_masks
from .prints import HIDDEN
from .view import HIDING, ORDERS, Named, View, at, said

SOFTMAX = frozenset(["softmax", "_softmax", "_safe_softmax"])
NO_WEIGHT = -745.2  # exp of less is 0 in float64
MOST_OF_A_MASK = 12  # operations: in larger regions other things differ besides what is hidden


def other_mask(v: View) -> Named | None:
    """Other keys are hidden, or the edge of a mask is elsewhere."""
    if len(v.own) + len(v.ref) > MOST_OF_A_MASK:
        return None
    names = set(v.ref_names) | set(v.own_names)
    scores = v.kind == "mask" or bool((v.into | names) & (HIDING | SOFTMAX))
    hidden = (_hidden(v.edit.value), _hidden(v.edit.other)) if v.edit.value.is_floating_point() and scores else None
    boolean = not v.edit.value.is_floating_point() and not v.edit.value.is_complex()
    later = v.edit.kind == "replaced" and bool(v.into & HIDING) and hidden is not None and not bool(hidden[1].any())
    if (
        hidden is not None
        and not later
        and bool(hidden[0].any() or hidden[1].any())
        and hidden[0].shape == hidden[1].shape
        and bool((hidden[0] != hidden[1]).any())
    ):
        return _mask(v, ~hidden[0], ~hidden[1])
    if (
        boolean
        and v.edit.value.dtype == v.edit.other.dtype
        and str(v.edit.value.dtype) == "torch.bool"
        and names <= ORDERS | MOVES | {"arange", "add", "sub", "lift_fresh"}
    ):
        return _mask(v, v.edit.value, v.edit.other)
    if (
        SOFTMAX & v.into
        and "add" in v.into
        and not names & SOFTMAX
        and _two_valued(v.edit.value)
        and _two_valued(v.edit.other)
    ):
        return Named("A2", f"the mask that is added to the scores differs: {said(v.edit)}")
    for op, name, ours, theirs in v.numbers:
        if op.name in ("tril", "triu", "lt", "le", "gt", "ge"):
            return Named(
                "A11", f"{op.name} runs with {name} {theirs} instead of {ours}: the mask's edge is off{at(op)}"
            )
    return None


def _two_valued(value: Tensor) -> bool:
    return value.numel() > 2 and value.unique().numel() <= 2


def _hidden(scores: Tensor) -> Tensor:
    """Return which scores [.., keys] have no weight at all: far below any number, or so far below the row's largest that exp gives 0."""
    below = scores.nan_to_num(neginf=2 * HIDDEN) <= HIDDEN
    return below | (scores - scores.amax(-1, keepdim=True) < NO_WEIGHT) if scores.dim() and scores.shape[-1] else below


def _mask(v: View, keep_r: Any, keep_p: Any) -> Named:
    change = describe_masks(keep_r, keep_p)
    where = at(v.edit.user or (v.own or v.ref)[-1]) if v.own or v.ref or v.edit.user else ""
    if change is not None:
        return Named(change.class_id, change.text + where)
    return Named("A2", f"the mask differs{where}", False)
