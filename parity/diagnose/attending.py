"""Attention as numbers: find which tensors around a record are q, k, v and mask by recomputing it, and recompute it otherwise.

Roles are never taken from names. A triple is accepted when softmax(scale·q kᵀ + mask) v reproduces the reference's value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice, permutations, product

import torch
from torch import Tensor

from parity.capture.operations import Op
from parity.diagnose.evidence import Evidence, as_float64, relative_error
from parity.diagnose.roles import agreement, grouped, memo, surroundings

ROWS = 24
MOST_TRIPLES = 160
HEADS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40)


@dataclass(frozen=True)
class Attention:
    """One attention whose recomputation gives R.

    q [b, h, i, d]; k [b, g, j, d] and v [b, g, j, e] with g kv heads (repeated to h); keep [b|1, h|1, i|1, j] bool or None; `bias` of the
    same shape is added to the logits; `empty` says what a row without a visible key gives ("zero", or the "mean" of v); r and p are both sides' values as [b, i, c]; `project` is applied to the merged heads.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    r: Tensor
    p: Tensor
    scale: float
    keep: Tensor | None = None
    bias: Tensor | None = None
    project: tuple[Tensor, Tensor | None] | None = None
    empty: str = "zero"
    rows: Tensor | None = None

    @property
    def kv_heads(self) -> int:
        return int(self.k.shape[1])

    @property
    def default_scale(self) -> float:
        return 1.0 / math.sqrt(self.q.shape[-1])

    def heads(self, merged: Tensor) -> Tensor:
        """Split [b, i, h·e] into [b, h, i, e]."""
        b, i, _ = merged.shape
        return merged.reshape(b, i, self.q.shape[1], -1).transpose(1, 2)

    def at(self, rows: Tensor) -> Attention:
        """Keep only some queries."""

        def cut(mask: Tensor | None) -> Tensor | None:
            return mask if mask is None or mask.shape[-2] == 1 else mask[..., rows, :]

        return replace(
            self,
            q=self.q[..., rows, :],
            r=self.r[:, rows],
            p=self.p[:, rows],
            keep=cut(self.keep),
            bias=cut(self.bias),
            rows=rows,
        )

    def query_index(self) -> Tensor:
        """The positions of the kept queries among all queries."""
        return torch.arange(self.q.shape[2]) if self.rows is None else self.rows


def weights(a: Attention, expand: str = "repeat") -> Tensor:
    """Return softmax weights [b, h, i, j]; rows without a visible key are zero or uniform (`empty`)."""
    k = expanded(a.k, a.q.shape[1], expand)
    logits = a.scale * a.q @ k.transpose(-1, -2)
    if a.bias is not None:
        logits = logits + a.bias
    if a.keep is not None:
        logits = logits.masked_fill(~a.keep, -math.inf)
    found = torch.softmax(logits, -1)
    return found.nan_to_num(0.0 if a.empty == "zero" else 1.0 / logits.shape[-1])


def attend(a: Attention, expand: str = "repeat") -> Tensor:
    """Return the attention's value as [b, i, c], in the form of `a.r`."""
    return merged(a, weights(a, expand) @ expanded(a.v, a.q.shape[1], expand))


def merged(a: Attention, out: Tensor) -> Tensor:
    """Merge heads [b, h, i, e] -> [b, i, h·e] and project."""
    y = out.transpose(1, 2).flatten(2)
    if a.project is None:
        return y
    weight, bias = a.project
    y = y @ weight.T
    return y if bias is None else y + bias


def expanded(x: Tensor, heads: int, how: str) -> Tensor:
    """Expand kv heads to `heads`: "repeat" gives head h the kv head h // n, "tile" gives it h % g."""
    g = x.shape[1]
    if g == heads or heads % g:
        return x
    return x.repeat_interleave(heads // g, 1) if how == "repeat" else x.repeat(1, heads // g, 1, 1)


def find(ev: Evidence) -> Attention | None:
    """Return the attention that R is, or the one that both sides ran on the way to it; None when no triple reproduces it."""
    return memo(ev, "attention", _find)


def _find(ev: Evidence) -> Attention | None:
    if ev.kind == "mask" or ev.reference.is_complex() or not ev.reference.is_floating_point() or ev.reference.dim() < 2:
        return None
    for attempt in _from_kernels(ev):
        return attempt
    return _from_inputs(ev) if ev.same_shape else None


# --- from a fused kernel call -------------------------------------------------------------------------------------------------


def kernels(ops: list[Op] | tuple[Op, ...]) -> list[Op]:
    """Return the fused attention calls among operations."""
    return [
        op for op in ops if "attention" in op.name and len(op.inputs) >= 3 and op.inputs[0].dim() >= 3 and op.outputs
    ]


def _from_kernels(ev: Evidence) -> Iterator[Attention]:
    ours, theirs = kernels(list(ev.ref_ops)), kernels(list(ev.port_ops))
    for index, op in enumerate(ours):
        a = from_call(op)
        if a is None:
            continue
        if relative_error(attend(a), a.r) > agreement(ev):
            continue
        other = theirs[index] if len(theirs) == len(ours) else None
        if other is not None and tuple(other.outputs[0].shape) == tuple(op.outputs[0].shape):
            yield replace(a, p=_seen4(other.outputs[0]))
        elif ev.same_shape and len(ours) == 1:
            for view in views(ev.reference):
                r, p = view(ev.r), view(ev.p)
                if r.shape == a.r.shape and relative_error(r, a.r) <= agreement(ev):
                    yield replace(a, p=p)
                    break


def from_call(op: Op) -> Attention | None:
    """Read a fused attention call; its own output stands for both sides."""
    q, k, v = (as_float64(x if x.dim() == 4 else x.reshape(-1, 1, *x.shape[-2:])) for x in op.inputs[:3])
    if q.dim() != 4 or k.dim() != 4 or v.dim() != 4 or q.shape[-1] != k.shape[-1] or k.shape[2] != v.shape[2]:
        return None
    out = _seen4(op.outputs[0])
    keep, bias = None, None
    mask = op.inputs[3] if len(op.inputs) > 3 else None
    if mask is not None and mask.shape[-1] == k.shape[2]:
        keep, bias = as_mask(mask)
    if op.scalars.get("is_causal"):
        causal = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()[None, None]
        keep = causal if keep is None else keep & causal
    scale = op.scalars.get("scale")
    return Attention(q, k, v, out, out, float(scale) if scale else 1.0 / math.sqrt(q.shape[-1]), keep, bias)


def _seen4(x: Tensor) -> Tensor:
    x = as_float64(x)
    x = x if x.dim() == 4 else x.reshape(-1, 1, *x.shape[-2:])
    return x.transpose(1, 2).flatten(2)


# --- from tensors around the record -------------------------------------------------------------------------------------------


def views(x: Tensor) -> list[Callable[[Tensor], Tensor]]:
    """Return readings of an attention output as [b, i, c]: [b, h, i, e], [b, i, h, e], [b, i, c], [i, c]."""
    if x.dim() == 4:
        return [lambda t: t.transpose(1, 2).flatten(2), lambda t: t.flatten(2)]
    if x.dim() == 3:
        return [lambda t: t]
    return [lambda t: t[None]] if x.dim() == 2 else []


def _from_inputs(ev: Evidence) -> Attention | None:
    if ev.reference.numel() > 20_000_000:
        return None
    pool = _heads_first(ev)
    masks = _masks(ev)
    for view in views(ev.reference):
        r, p = view(ev.r), view(ev.p)
        for q, k, v in islice(_triples(pool, r), MOST_TRIPLES):
            found = _reproduce(ev, q, k, v, r, p, masks)
            if found is not None:
                return found
    return None


def _heads_first(ev: Evidence) -> list[tuple[Tensor, ...]]:
    """Return each float tensor around R with its readings as [b, h, n, d], most natural first."""
    named = [
        (n, v) for n, v in surroundings(ev) if v.is_floating_point() and 2 <= v.dim() <= 4 and v.numel() <= 20_000_000
    ]
    pool: list[tuple[Tensor, ...]] = []
    for _, value in named[:16]:
        if value.dim() == 4:
            pool.append((as_float64(value), as_float64(value).transpose(1, 2)))
        elif value.dim() == 3:
            x = as_float64(value)
            splits = [h for h in HEADS if x.shape[-1] % h == 0 and x.shape[-1] // h >= 4]
            pool.append(tuple(grouped(x, h).transpose(1, 2) for h in splits[:8]))
    return pool


def _triples(pool: list[tuple[Tensor, ...]], r: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield (q, k, v) whose shapes fit an output [b, i, c]; q, k and v are different tensors, the nearest to R first."""
    b, i, c = r.shape
    for qi, ki, vi in sorted(permutations(range(len(pool)), 3), key=sum):
        for q, k, v in product(pool[qi], pool[ki], pool[vi]):
            if q.shape[0] != b or q.shape[2] != i:
                continue
            fits = k.shape[-1] == q.shape[-1] and k.shape[:3] == v.shape[:3] and k.shape[0] == b
            if fits and q.shape[1] % k.shape[1] == 0 and q.shape[1] * v.shape[-1] == c:
                yield q, k, v


def _reproduce(
    ev: Evidence,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    r: Tensor,
    p: Tensor,
    masks: list[tuple[Tensor | None, Tensor | None]],
) -> Attention | None:
    i, j = q.shape[2], k.shape[2]
    rows = torch.linspace(0, i - 1, min(i, 8)).long()
    whole = Attention(q, k, v, r, p, 1.0 / math.sqrt(q.shape[-1]))
    options: list[tuple[Tensor | None, Tensor | None]] = [(None, None)]
    options += [(keep, bias) for keep, bias in masks if _mask_fits(keep if keep is not None else bias, q, j)]
    diagonals = [None] * len(options) + [0, j - i]
    options += [(None, None), (None, None)]
    raw = q[0, 0, rows] @ k[0, 0].T  # one head of one sample turns away almost every wrong triple
    for (keep, bias), diagonal in zip(options, diagonals, strict=True):
        for scale in (whole.default_scale, 1.0):
            logits = _masked_rows(scale * raw, keep, bias, rows, diagonal)
            if not _one_head_fits(logits, v[0, 0], r[0, rows, : v.shape[-1]], agreement(ev)):
                continue
            if diagonal is not None:
                keep = causal(i, j, bottom_right=diagonal != 0)
            for empty in ("zero", "mean"):
                attempt = replace(whole, keep=keep, bias=bias, scale=scale, empty=empty)
                small = attempt.at(rows)
                if relative_error(attend(small), small.r) <= agreement(ev):
                    return attempt
    return None


def _masked_rows(
    logits: Tensor, keep: Tensor | None, bias: Tensor | None, rows: Tensor, diagonal: int | None
) -> Tensor:
    """Apply a mask (or a causal one on a diagonal) to some rows of the first head of the first sample: [rows, j]."""

    def cut(mask: Tensor) -> Tensor:
        return mask[0, 0] if mask.shape[2] == 1 else mask[0, 0, rows]

    if bias is not None:
        logits = logits + cut(bias)
    if keep is not None:
        logits = logits.masked_fill(~cut(keep), -math.inf)
    if diagonal is not None:
        logits = logits.masked_fill(torch.arange(logits.shape[-1]) > rows[:, None] + diagonal, -math.inf)
    return logits


def _one_head_fits(logits: Tensor, v: Tensor, r: Tensor, tolerance: float) -> bool:
    """Say whether softmax(logits) v gives `r` in the rows that see a key; rows that see none may hold anything."""
    seen = torch.isfinite(logits).any(-1)
    if not bool(seen.any()):
        return True
    return relative_error(torch.softmax(logits[seen], -1) @ v, r[seen]) <= 3 * tolerance


def _mask_fits(mask: Tensor | None, q: Tensor, j: int) -> bool:
    if mask is None:
        return False
    b, h, i, _ = q.shape
    return mask.shape[-1] == j and mask.shape[0] in (1, b) and mask.shape[1] in (1, h) and mask.shape[2] in (1, i)


def _masks(ev: Evidence) -> list[tuple[Tensor | None, Tensor | None]]:
    found: list[tuple[Tensor | None, Tensor | None]] = []
    for _, value in surroundings(ev):
        if value.is_complex() or not 1 <= value.dim() <= 4:
            continue
        binary = value.dtype == torch.bool or (
            not value.is_floating_point() and bool(((value == 0) | (value == 1)).all())
        )
        if binary:
            keep = _four(value.to(torch.bool).cpu())
            found += [(keep, None), (~keep, None)]
        elif (
            value.is_floating_point()
            and value.numel() <= 4_000_000
            and bool((value <= 0).all())
            and bool((value < -1e3).any())
        ):
            found.append(as_mask(value))
    return found[:8]


def as_mask(mask: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return (keep, bias) as [b, h, i, j]: boolean masks keep where True; additive ones hide below −1e4 and else add."""
    mask = mask.detach().cpu()
    if mask.dtype == torch.bool:
        return _four(mask), None
    values = _four(mask.to(torch.float64))
    hidden = values < -1e4
    rest = values.masked_fill(hidden, 0.0)
    return (~hidden if bool(hidden.any()) else None), (rest if bool(rest.any()) else None)


def _four(mask: Tensor) -> Tensor:
    """Bring a mask to [b, h, i, j]: [j], [b|i, j] (a square or causal one is per query), [b, i, j], [b, h, i, j]."""
    if mask.dim() == 1:
        return mask[None, None, None]
    if mask.dim() == 2:
        return mask[None, None] if mask.shape[0] == mask.shape[1] or mask.shape[0] > 8 else mask[:, None, None]
    if mask.dim() == 3:
        return mask[:, None]
    return mask


def causal(i: int, j: int, bottom_right: bool = False) -> Tensor:
    """Return the causal keep mask [1, 1, i, j], aligned at the top left or at the bottom right."""
    return torch.ones(i, j, dtype=torch.bool).tril(j - i if bottom_right else 0)[None, None]


# --- reading the port's mask off its output -----------------------------------------------------------------------------------


def visible_keys(a: Attention) -> Tensor | None:
    """Return how often each key counts for the port, w [b, i, j] (0 hidden, 1 visible, 2 twice), from its output alone.

    The port's value y obeys Σ_j w_j·e_ij·(v_j − y) = 0 in every head and channel: a null vector, unique when h·e ≥ j. Queries that share a
    mask are solved together when a single query has too few equations. None when the answer is not a clean 0/1/2 pattern.
    """
    if a.project is not None or (a.keep is not None and a.keep.shape[1] > 1):
        return None
    b, h, i, _ = a.q.shape
    j, e = a.k.shape[2], a.v.shape[-1]
    if j > 512 or j < 2:
        return None
    k, v = expanded(a.k, h, "repeat"), expanded(a.v, h, "repeat")
    logits = a.scale * a.q @ k.transpose(-1, -2) + (a.bias if a.bias is not None else 0.0)
    mass = torch.exp(logits - logits.amax(-1, keepdim=True))  # [b, h, i, j]
    y = a.heads(a.p)
    found = torch.zeros(b, i, j, dtype=torch.float64)
    if h * e >= j + 2:
        for batch, query in product(range(b), range(i)):
            rows = mass[batch, :, query, None, :] * (v[batch].transpose(-1, -2) - y[batch, :, query, :, None])
            w = _null_vector(rows.reshape(-1, j))
            if w is None:
                return None
            found[batch, query] = w
        return found
    for batch in range(b):
        parts = mass[batch, :, :, None, :] * (v[batch, :, None].transpose(-1, -2) - y[batch, :, :, :, None])
        if parts.numel() > 40_000_000:
            return None
        w = _null_vector(parts.reshape(-1, j))
        if w is None:
            return None
        found[batch] = w
    return found


def _null_vector(rows: Tensor) -> Tensor | None:
    """Solve rows·w = 0 for a pattern of zeros, ones and twos; None when the null space is not clearly of one dimension."""
    norms = torch.linalg.vector_norm(rows, dim=0).clamp_min(1e-300)
    values, vectors = torch.linalg.eigh((rows / norms).T @ (rows / norms))
    if not float(values[0]) < 1e-8 * max(float(values[1]), 1e-300):
        return None
    w = vectors[:, 0] / norms
    w = w / w[w.abs().argmax()]
    # the largest may count twice: the smallest that is clearly not zero is the unit
    unit = w[w.abs() > 0.2].abs().min()
    w = w / unit
    pattern = w.round()
    clean = float((w - pattern).abs().max()) < 0.05 and bool((pattern >= 0).all()) and float(pattern.max()) <= 4
    return pattern if clean else None
