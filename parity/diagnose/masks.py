"""Two attention masks compared: what the port sees that the reference does not, said in one sentence (BUGS.md A1–A3, A11, K6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from parity.diagnose.roles import distinct
from parity.diagnose.rotations import runs


@dataclass(frozen=True)
class Change:
    """How the port's visible keys differ from the reference's."""

    class_id: str
    text: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    confidence: float = 0.95


def describe(keep_r: Tensor, keep_p: Tensor) -> Change | None:
    """Name the change between two masks [.., j] or [.., i, j] (True = visible); None when they are equal or not comparable."""
    if keep_r.shape[-1] != keep_p.shape[-1]:
        return _length(keep_r, keep_p)
    try:
        shape = torch.broadcast_shapes(keep_r.shape, keep_p.shape)
    except RuntimeError:
        return None
    keep_r, keep_p = keep_r.expand(shape), keep_p.expand(shape)
    if keep_r.numel() < 2 or torch.equal(keep_r, keep_p):
        return None
    for change in (_extremes, _causal, _nothing, _rolled, _shards, _edges, _padding, _few_extra):
        found = change(keep_r, keep_p)
        if found is not None:
            return found
    return _generic(keep_r, keep_p)


def _length(keep_r: Tensor, keep_p: Tensor) -> Change:
    ours, theirs = keep_r.shape[-1], keep_p.shape[-1]
    text = f"the port's mask covers {theirs} keys, the reference's {ours}"
    if theirs % 128 == 0 and ours % 128 and theirs - ours < 128:
        text += " (padded to a multiple of 128)"
    return Change("A3", text, {"reference": ours, "port": theirs}, 0.85)


def _extremes(r: Tensor, p: Tensor) -> Change | None:
    if torch.equal(p, ~r):
        return Change("A2", "the mask is inverted: visible and hidden keys are exchanged", {"inverted": True}, 0.98)
    if bool(p.all()):
        hidden = int((~r).sum())
        if _is_causal(r) is not None:
            return Change("A1", "the causal mask is missing: every query sees every key", {"hidden": hidden}, 0.97)
        text = f"the mask is missing: every key is visible ({_share(r)} in the reference)"
        return Change("A2", text, {"hidden": hidden}, 0.95)
    return None


def _nothing(r: Tensor, p: Tensor) -> Change | None:
    if bool(p.any()):
        return None
    return Change("A4", "the port hides every key: all rows are fully masked", {}, 0.95)


def _few_extra(r: Tensor, p: Tensor) -> Change | None:
    """A11 where windows do not lie in key order (rings, padding): each differing row sees the same few keys more, or fewer."""
    extra, missing = (p & ~r).sum(-1), (r & ~p).sum(-1)
    if bool(extra.any()) == bool(missing.any()):
        return None
    count = extra if bool(extra.any()) else missing
    by = distinct(count[count > 0])
    if len(by) != 1 or int(by[0]) > 2 or float((count > 0).double().mean()) > 0.9:
        return None
    word = "more" if bool(extra.any()) else "fewer"
    text = f"{int((count > 0).sum())} rows see {int(by[0])} key{'s' if int(by[0]) > 1 else ''} {word}: the window's edge is off"
    return Change("A11", text, {"by": int(by[0]) if word == "more" else -int(by[0])}, 0.8)


def _share(keep: Tensor) -> str:
    counts = keep.sum(-1)
    low, high = int(counts.min()), int(counts.max())
    return f"{low} of {keep.shape[-1]}" if low == high else f"{low} to {high} of {keep.shape[-1]}"


def _is_causal(keep: Tensor) -> int | None:
    """Return the diagonal of a causal mask (0: top left), or None. Needs two queries at least."""
    if keep.dim() < 2 or keep.shape[-2] < 2:
        return None
    i, j = keep.shape[-2:]
    for diagonal in dict.fromkeys((0, j - i, -1, 1)):
        triangle = torch.ones(i, j, dtype=torch.bool).tril(diagonal)
        if not bool(triangle.all()) and bool((keep == triangle).all()):
            return diagonal
    return None


def _causal(r: Tensor, p: Tensor) -> Change | None:
    ours, theirs = _is_causal(r), _is_causal(p)
    if ours is not None and theirs is not None:
        text = f"the causal mask is aligned at diagonal {theirs} instead of {ours}"
        if {ours, theirs} == {0, r.shape[-1] - r.shape[-2]}:
            text = (
                "the causal mask is aligned at the "
                + ("top left" if theirs == 0 else "bottom right")
                + " corner instead of the other"
            )
        return Change("A1", text, {"reference": ours, "port": theirs}, 0.97)
    if r.dim() >= 2 and r.shape[-2] > 1:
        i, j = r.shape[-2:]
        for name, diagonal in (("", 0), (" (aligned at the bottom right)", j - i)):
            triangle = torch.ones(i, j, dtype=torch.bool).tril(diagonal)
            if not bool(triangle.all()) and torch.equal(p, r & triangle):
                return Change(
                    "A1", f"a causal mask was added{name}: queries see no later keys", {"diagonal": diagonal}, 0.97
                )
    return None


def _rolled(r: Tensor, p: Tensor) -> Change | None:
    j = r.shape[-1]
    if not torch.equal(r.sum(-1), p.sum(-1)):
        return None
    for shift in sorted(range(1, j), key=lambda s: min(s, j - s))[:64]:
        if torch.equal(r.roll(shift, -1), p):
            signed = shift if shift <= j - shift else shift - j
            return Change("A3", f"the mask is rolled by {signed:+d} keys", {"roll": signed}, 0.95)
    flipped = r.flip(-1)
    if torch.equal(flipped, p):
        return Change("A3", "the mask is reversed along the keys (padding on the other side)", {"flipped": True}, 0.95)
    return None


def _shards(r: Tensor, p: Tensor) -> Change | None:
    """D3: every query of the reference sees every key, of the port only those of its own part of the tokens."""
    if r.dim() < 2 or r.shape[-2] < 4 or not bool(r.all()):
        return None
    rows = p.reshape(-1, *p.shape[-2:])
    if not bool((rows == rows[0]).all()):
        return None
    parts = [rows[0][0]]
    for row in rows[0]:
        if not torch.equal(row, parts[-1]):
            parts.append(row)
    seen = torch.stack(parts).sum(0)
    first = [int(part.int().argmax()) for part in parts]
    if len(parts) < 2 or not bool((seen == 1).all()) or first != sorted(first):
        return None
    text = f"the tokens are attended in {len(parts)} parts, each query sees its own part only: shards that were not exchanged"
    return Change("D3", text, {"parts": len(parts), "starts": first}, 0.96)


def _edges(r: Tensor, p: Tensor) -> Change | None:
    """A11: rows see one contiguous window; its lower or upper end moved by one number of keys in all rows that can show it."""
    if r.dim() < 2 or r.shape[-2] < 3:
        return None
    ours, theirs = (_window(keep.reshape(-1, *keep.shape[-2:])[0]) for keep in (r, p))
    if ours is None or theirs is None or not bool((r == r.reshape(-1, *r.shape[-2:])[0]).all()):
        return None
    (low_r, high_r), (low_p, high_p) = ours, theirs
    j = r.shape[-1]
    lows = distinct((low_p - low_r)[(low_r > 0) & (low_p > 0)])
    highs = distinct((high_p - high_r)[(high_r < j - 1) & (high_p < j - 1)])
    inside_low = distinct(low_p - low_r).tolist() == [0]
    inside_high = distinct(high_p - high_r).tolist() == [0]
    if inside_low == inside_high:
        if len(lows) == 1 and len(highs) == 1 and int(lows[0]) == -int(highs[0]) and int(lows[0]):
            grow = int(highs[0])
            text = f"the attention window is {abs(grow)} {'wider' if grow > 0 else 'narrower'} on both sides"
            return Change("A11", text, {"low": -grow, "high": grow}, 0.96)
        return None
    moved, name = (highs, "newest") if inside_low else (lows, "oldest")
    if len(moved) != 1 or not int(moved[0]):
        return None
    step = int(moved[0])
    wider = step > 0 if inside_low else step < 0
    text = f"the attention window is {abs(step)} {'wider' if wider else 'narrower'} at its {name} end"
    return Change("A11", text, {("high" if inside_low else "low"): step}, 0.96)


def _window(keep: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return first and last visible key per row if each row sees one contiguous run."""
    count = keep.sum(-1)
    if not bool((count > 0).all()):
        return None
    low = keep.int().argmax(-1)
    high = keep.shape[-1] - 1 - keep.flip(-1).int().argmax(-1)
    return (low, high) if bool((high - low + 1 == count).all()) else None


def _padding(r: Tensor, p: Tensor) -> Change | None:
    """A2, A3, K6: the same keys for all queries of a sample, visible counts differ at one end."""
    rows_r, rows_p = r.reshape(-1, r.shape[-1]), p.reshape(-1, p.shape[-1])
    extra, missing = rows_p & ~rows_r, rows_r & ~rows_p
    if bool(extra.any()) and bool(missing.any()):
        return None
    if r.dim() >= 2 and bool((r == r[..., :1, :]).all()) and not bool((p == p[..., :1, :]).all()):
        return None  # another question for each query is no padding
    if not bool(missing.any()) and r.dim() >= 2 and r.shape[-2] > 1:
        never = ~r.any(-2, keepdim=True).expand_as(r)
        if not bool(((p & ~r) & ~never).any()):
            more = torch.nonzero(extra.any(0)).flatten()
            text = (
                f"keys {_short(more)}, which no query of the reference sees, are visible (padding or unwritten slots)"
            )
            return Change("A2", text, {"extra": _short(more)}, 0.92)
    different = torch.nonzero((rows_r != rows_p).any(-1)).flatten()
    if (
        len(different) < len(rows_r)
        and len({tuple(row) for row in rows_r[:64].tolist()}) > 1
        and r.dim() >= 2
        and r.shape[-2] > 1
    ):
        return None
    row = int(different[0])
    ours, theirs = torch.nonzero(rows_r[row]).flatten(), torch.nonzero(rows_p[row]).flatten()
    values = {"reference": len(ours), "port": len(theirs)}
    if bool(missing.any()):
        gone = torch.nonzero(missing[row]).flatten()
        if not len(theirs):
            return None
        if int(gone.max()) < int(theirs.min()):
            text = (
                f"the oldest {len(gone)} keys are missing: the port sees only the newest {len(theirs)} of {len(ours)}"
            )
            return Change("K6", text, values | {"missing": runs(gone)}, 0.85)
        if int(gone.min()) > int(theirs.max()):
            text = f"the last {len(gone)} keys are hidden: the port sees only the first {len(theirs)} of {len(ours)}"
            return Change("A2", text, values | {"missing": runs(gone)}, 0.88)
        text = f"keys {_short(gone)} are missing: the port sees {len(theirs)} keys, the reference {len(ours)}"
        return Change("K6", text, values | {"missing": _short(gone)}, 0.75)
    more = torch.nonzero(extra[row]).flatten()
    if bool(rows_p[row].all()):
        text = f"keys {_short(more)} are visible although the reference hides them (padding or unwritten slots)"
        return Change("A2", text, values | {"extra": _short(more)}, 0.9)
    text = f"keys {_short(more)} are visible too: the port sees {len(theirs)} keys, the reference {len(ours)}"
    one_side = len(ours) > 0 and (int(more.max()) < int(ours.min()))
    if r.dim() == 4 and r.shape[0] > 1 and bool((r == p).flatten(1).all(1).any()):
        one_side = False  # only some samples of the batch: their padding, not a window
    return Change("K6" if one_side else "A2", text, values | {"extra": _short(more)}, 0.8)


def _generic(r: Tensor, p: Tensor) -> Change:
    extra, missing = int((p & ~r).sum()), int((r & ~p).sum())
    text = f"the masks differ: {missing} visible entries are missing and {extra} are extra of {int(r.sum())}"
    return Change("A3", text, {"missing": missing, "extra": extra}, 0.6)


def _short(index: Tensor) -> str:
    text = runs(index)
    parts = text.split(", ")
    return text if len(parts) <= 6 else ", ".join(parts[:5]) + f", … ({len(index)} in all)"
