"""What a right port may do to gradients inside: scale the loss and unscale afterwards, change a tensor in place so that its gradient is not seen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from parity.align.pairs import Alignment
from parity.compare.measure import relative_l2
from parity.result import Divergence, Row
from parity.trace import Trace


def heal_gradients(
    divergences: Sequence[Divergence],
    rows: Iterable[Row],
    alignment: Alignment,
    reference: Trace,
    port: Trace,
) -> tuple[list[Divergence], str, bool]:
    """Take back divergences of gradients inside the model where all that the backward pass is for agrees.

    What it is for: the gradients of parameters and of the run's own inputs, and the state that a training step leaves. Returns the divergences that stay,
    a note (empty when nothing was taken back), and whether the gradients inside are no longer the same, so that they cannot be exchanged
    between the two.
    """
    roles = {r.key: r.role for r in (*reference, *port)}
    ends = {row.key for row in rows if roles.get(row.key) == "parameter" and ".in." not in row.site}
    inner = [d for d in divergences if d.kind == "gradient" and d.key not in ends]
    inner = [d for d in inner if roles.get(d.key) == "gradient" or ".in." in d.site]
    rest = [d for d in divergences if d not in inner]
    if not inner or not ends or any(roles.get(d.key) == "parameter" for d in rest):
        return list(divergences), "", False
    if all(d.metric in ("missing", "extra") and roles.get(d.key) == "gradient" for d in inner):
        return rest, f"{len(inner)} gradients inside were not seen on one side; those of all parameters agree", False
    if all(".in." in d.site and roles.get(d.key) == "gradient" for d in inner):
        return rest, f"{len(inner)} inputs take other shares of the same gradients; those of all parameters agree", True
    factor = _common_factor(inner, alignment, reference, port)
    if factor is None:
        return list(divergences), "", False
    return (
        rest,
        f"gradients inside are {factor:.6g} times the reference's, those of parameters agree: a scaled loss",
        True,
    )


def _common_factor(inner: Sequence[Divergence], alignment: Alignment, reference: Trace, port: Trace) -> float | None:
    """Return the one factor between the port's gradients and the reference's, or None."""
    pairs = {pair.reference.key: pair for pair in alignment.pairs}
    found: float | None = None
    for divergence in inner:
        pair = pairs.get(divergence.key)
        if pair is None:
            continue
        r, p = reference.tensor(divergence.key), pair.port_tensor(port)
        if r is None or p is None or r.shape != p.shape:
            return None
        r, p = r.double(), p.double()
        whole = float((r * r).sum())
        factor = float((r * p).sum()) / whole if whole else float("nan")
        found = factor if found is None else found
        if not abs(factor - found) <= 1e-3 * abs(found) or relative_l2(p, factor * r) > max(1e-3, 2 * divergence.floor):
            return None
    return found if found is not None and torch.isfinite(torch.tensor(found)) else None
