"""QK-norm scope: per head, over all heads, per shard, or not at all (BUGS.md A7)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from parity.diagnose.evidence import Evidence, Explanation
from parity.diagnose.roles import close, comparable, fitted, grouped, like_reference, limit, noise, parameter_vectors


def norm_scope(ev: Evidence) -> Iterable[Explanation]:
    """A7: P/R is one number per token and group of channels, where group and whole have different root mean squares.

    With a gain w (a parameter, or none), y = P/w or R/w has rms 1 in each of its own groups: heads, shards or the full width.
    """
    if not comparable(ev) or ev.reference.dim() < 2 or not ev.reference.is_floating_point():
        return
    width = ev.r.shape[-1]
    for groups in [g for g in range(2, min(width, 128) + 1) if width % g == 0 and width // g >= 4]:
        factor = _group_factor(ev.r, ev.p, groups)
        if factor is None:
            continue
        explained = (grouped(ev.r, groups) * factor).flatten(-2)
        found = list(_named_scope(ev, ev.r, ev.p, groups, explained)) if ev.residual(explained) <= limit(ev) else []
        if found:
            yield from found
            return
    yield from _scope_over_heads(ev)


def _group_factor(r: Tensor, p: Tensor, groups: int) -> Tensor | None:
    """Return P/R per token and group [.., g, 1], or None if it is not constant within the groups."""
    a, b = grouped(r, groups), grouped(p, groups)
    some = slice(0, 64)
    a0, b0 = a.flatten(0, -3)[some], b.flatten(0, -3)[some]
    factor = (a0 * b0).sum(-1, keepdim=True) / a0.square().sum(-1, keepdim=True).clamp_min(1e-300)
    if float(torch.linalg.vector_norm(b0 - factor * a0)) > 0.02 * float(torch.linalg.vector_norm(b0 - a0)):
        return None
    return (a * b).sum(-1, keepdim=True) / a.square().sum(-1, keepdim=True).clamp_min(1e-300)


def _named_scope(ev: Evidence, r: Tensor, p: Tensor, groups: int, explained: Tensor) -> Iterator[Explanation]:
    width = r.shape[-1]
    gains: list[Tensor | None] = [None, *(w for _, w in parameter_vectors(ev, width))]
    gains += [w.repeat(groups) for _, w in parameter_vectors(ev, width // groups)]
    for gain in gains:
        y_r, y_p = (x if gain is None else x / gain for x in (r, p))
        if not bool(torch.isfinite(y_r).all()):
            continue
        scope_r, scope_p = _unit_groups(y_r), _unit_groups(y_p)
        if scope_r is None or scope_p is None or scope_r == scope_p:
            continue
        text = f"the norm runs over {_scope(scope_p, width)} instead of over {_scope(scope_r, width)}"
        values = {"reference_groups": scope_r, "port_groups": scope_p}
        yield from fitted(ev, explained, text, 0.96, "A7", **values)
        return


def _scope(groups: int, width: int) -> str:
    return f"the full width of {width}" if groups == 1 else f"{groups} groups of {width // groups} (heads or shards)"


def _unit_groups(y: Tensor) -> int | None:
    """Return the largest number of groups in which every token's mean square is 1 (then it is 1 in coarser ones too), or None."""
    flat = y.reshape(-1, y.shape[-1])[:256]
    for groups in [g for g in range(128, 0, -1) if flat.shape[-1] % g == 0 and flat.shape[-1] // g >= 4]:
        square = grouped(flat, groups).square().mean(-1)
        if float((square - 1).abs().max()) < 2e-2:
            return groups
    return None


def _scope_over_heads(ev: Evidence) -> Iterator[Explanation]:
    """A7 for [b, h, n, d]: P/R is one number per (token, head) and one side has unit rms over all heads of a token."""
    if ev.reference.dim() != 4:
        return
    for axis in (1, 2):
        r, p = (x.movedim(axis, -2).flatten(-2) for x in (ev.r, ev.p))
        heads = ev.reference.shape[axis]
        if heads < 2:
            continue
        factor = _group_factor(r, p, heads)
        if factor is None:
            continue
        explained = (grouped(r, heads) * factor).movedim(-2, axis)
        if ev.residual(explained) <= limit(ev):
            yield from _named_scope(ev, r, p, heads, explained)
            return


def norm_skipped(ev: Evidence) -> Iterable[Explanation]:
    """A7: P equals a tensor from before R's normalisation while R has unit rms over its last axis (or head): QK-norm missing."""
    if not comparable(ev) or ev.reference.dim() != 4:
        return
    for name, x in like_reference(ev):
        if not close(ev.p, x, max(1e-6, 2 * noise(ev))):
            continue
        ratio = _group_factor(x, ev.r, 1)
        gains = [None, *(w for _, w in parameter_vectors(ev, ev.r.shape[-1]))]
        unit = any(_unit_groups(ev.r if w is None else ev.r / w) == 1 for w in gains)
        if close(x.norm(dim=-1), ev.r.norm(dim=-1), 1e-4):  # both have R's norms: a rotation, not a norm, is missing
            continue
        if ratio is not None or unit:
            text = "the norm of queries or keys (QK-norm) is missing: the port's value is the norm's input"
            yield from fitted(ev, x, text, 0.97, "A7", input=name)
            return
