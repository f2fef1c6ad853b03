"""Prompt text on its way to the model: token ids, padding kept, cut, or on the other side (C3)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .evidence import Evidence, Explanation, Hypothesis
from .fits import accept, comparable, noise_level, sure


def padded_rows(ev: Evidence) -> Iterator[Explanation]:
    """Only rows past the true length differ: zero on one side and kept on the other; or rows padded at the other end
    (C3).
    """
    if not comparable(ev, 8) or ev.r.ndim not in {2, 3} or ev.kind == "weight":
        return
    r, p = (x.reshape(-1, *x.shape[-2:]) for x in (ev.r, ev.p))
    r_zero, p_zero = (r == 0).all(-1), (p == 0).all(-1)
    wrong = torch.linalg.vector_norm(p - r, dim=-1) > 10 * noise_level(ev) * (
        torch.linalg.vector_norm(r, dim=-1) + 1e-12
    )
    if not bool(wrong.any()):
        return
    starts = [int(torch.nonzero(w)[0]) if bool(w.any()) else w.numel() for w in wrong]
    tail = all(bool(w[s:].all()) for w, s in zip(wrong, starts, strict=True)) and max(starts) > 0
    if tail and bool(r_zero[wrong].all()) and not bool(p_zero[wrong].any()):
        text = f"rows from {starts} on are zero in R and kept in P: the padded rows are not zeroed"
        yield Explanation(text, 0.0, 0.98, {"lengths": starts, "side": "port keeps"})
    elif tail and bool(p_zero[wrong].all()):
        text = f"rows from {starts} on are zero in P and not in R: the text is cut or its padding zeroed"
        yield Explanation(text, 0.0, 0.93, {"lengths": starts, "side": "port zeroes"})
    else:
        yield from _other_side(ev, r, p)


def _other_side(ev: Evidence, r: Tensor, p: Tensor) -> Iterator[Explanation]:
    """Rows shifted by an own amount per sequence: padding on the left instead of the right."""
    shifts = []
    explained = torch.empty_like(r)
    for i in range(r.shape[0]):
        first = torch.nonzero(
            torch.linalg.vector_norm(r - p[i, -1], dim=-1)[i] <= 1e-6 * (torch.linalg.vector_norm(p[i, -1]) + 1e-12)
        )
        if len(first) == 0:
            return
        shift = r.shape[1] - 1 - int(first[0])
        shifts.append(shift)
        explained[i] = r[i].roll(shift, 0)
    if not any(shifts) or len(set(shifts)) < 2:
        return
    residual = accept(ev, explained.reshape(ev.r.shape))
    if residual is not None:
        text = f"each sequence is shifted by its padding ({shifts} rows): padded on the other side"
        yield Explanation(text, residual, sure(ev, residual, 0.93), {"shifts": shifts})


def token_ids(ev: Evidence) -> Iterator[Explanation]:
    """Whole numbers per sequence differ: template, special tokens, padding side or length of the prompt (C3)."""
    if ev.reference.is_floating_point() or ev.reference.dtype == torch.bool or ev.kind not in {"input", "activation"}:
        return
    if (
        ev.reference.ndim != 2
        or not ev.same_shape
        or ev.reference.numel() < 4
        or ev.error == 0
        or len(torch.unique(ev.r)) < 4
    ):
        return
    steps = ev.r.diff(dim=1)
    if bool((steps == steps[:, :1]).all()):
        return  # positions, not text
    rows = torch.nonzero((ev.p != ev.r).any(dim=1)).reshape(-1).tolist()
    said = [_edit(ev.r[i], ev.p[i]) for i in rows]
    how = said[0] if said and all(s == said[0] for s in said) else "the tokens differ"
    text = f"the token ids of {len(rows)} of {len(ev.r)} sequences differ: {how}"
    yield Explanation(text, 0.0, 0.94 if how != "the tokens differ" else 0.85, {"rows": rows[:16], "how": how})


def _edit(r: Tensor, p: Tensor) -> str:
    """How one sequence of ids became the other: moved as a whole, or a piece left out or put in at one place."""
    n = len(r)
    for shift in range(1, n):
        if torch.equal(r.roll(shift), p):
            return "padded on the other side"
    start = int(torch.nonzero(r != p)[0])
    for k in range(1, n - start):
        if torch.equal(r[start + k :], p[start : n - k]):
            return f"{k} tokens are left out at {start}"
        if torch.equal(p[start + k :], r[start : n - k]):
            return f"{k} tokens are put in at {start}"
    return "the tokens differ"


HYPOTHESES: tuple[Hypothesis, ...] = (
    Hypothesis("padded_rows", "C3", padded_rows, 0.85),
    Hypothesis("token_ids", "C3", token_ids, 0.8),
)
