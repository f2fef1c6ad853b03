"""The attention calls that both sides made, read off their operations: fused kernels, or products around a softmax.

Operands, scale and mask are read from values, not from source: of a softmax, the product before it gives q and k, the ratio of its input
to that product the scale, what remains the mask, and the product after it v.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from parity.capture.operations import Op
from parity.diagnose.attending import Attention, as_mask, attend
from parity.diagnose.evidence import as_float64, relative_error

PRODUCTS = ("bmm", "matmul", "baddbmm")
MOST_ELEMENTS = 20_000_000


@dataclass(frozen=True)
class Call:
    """One attention: its operands, and `out` [b, i, h·e] as it came out (in float64)."""

    attention: Attention
    out: Tensor

    @property
    def faithful(self) -> float:
        """Relative error of recomputing the call from its own operands."""
        return relative_error(attend(self.attention), self.out)


def calls(ops: Sequence[Op]) -> list[Call]:
    """Return the attention calls among operations in order; consecutive calls on the same keys (query chunks) as one."""
    found: list[Call] = []
    for index, op in enumerate(ops):
        if op.inputs and any(x.numel() > MOST_ELEMENTS for x in op.inputs):
            continue
        call = None
        if "attention" in op.name and len(op.inputs) >= 3 and op.outputs:
            call = _fused(op)
        elif op.name in ("softmax", "_softmax", "safe_softmax", "_safe_softmax") and op.outputs:
            call = _around_softmax(ops, index)
        if call is not None:
            found.append(call)
    return _joined(found)


def _four(x: Tensor) -> Tensor:
    x = as_float64(x)
    return x if x.dim() == 4 else x.reshape(1, -1, *x.shape[-2:])


def _merge(out: Tensor) -> Tensor:
    return _four(out).transpose(1, 2).flatten(2)


def _fused(op: Op) -> Call | None:
    q, k, v = (
        (_four(x) for x in op.inputs[:3] if x.dim() >= 3) if all(x.dim() >= 3 for x in op.inputs[:3]) else (None,) * 3
    )
    if q is None or k is None or v is None or q.shape[-1] != k.shape[-1] or k.shape[2] != v.shape[2]:
        return None
    if q.shape[1] % k.shape[1]:
        return None
    keep, bias = None, None
    mask = op.inputs[3] if len(op.inputs) > 3 else None
    if mask is not None and mask.dim() >= 1 and mask.shape[-1] == k.shape[2]:
        keep, bias = as_mask(mask if mask.dim() != 2 else mask[None, None])
    if op.scalars.get("is_causal"):
        causal = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()[None, None]
        keep = causal if keep is None else keep & causal
    scale = op.scalars.get("scale")
    out = _merge(op.outputs[0])
    scale = float(scale) if isinstance(scale, (int, float)) else 1.0 / math.sqrt(q.shape[-1])
    # A finite value that hides swallows the logits: a row that is all hidden is uniform, not empty.
    finite = mask is not None and mask.is_floating_point() and keep is not None and bool(torch.isfinite(mask).all())
    return Call(Attention(q, k, v, out, out, scale, keep, bias, empty="mean" if finite else "zero"), out)


def _around_softmax(ops: Sequence[Op], index: int) -> Call | None:
    logits, weight = as_float64(ops[index].inputs[0]), as_float64(ops[index].outputs[0])
    if logits.dim() < 3 or logits.shape != weight.shape:
        return None
    i, j = logits.shape[-2:]
    before = next(
        (op for op in reversed(ops[:index]) if op.name in PRODUCTS and _gives(op, i, j, logits.numel())), None
    )
    after = next((op for op in ops[index + 1 :] if op.name in PRODUCTS and _takes(op, weight)), None)
    if before is None or after is None:
        return None
    left, right = before.inputs[-2:]
    heads = logits.shape if logits.dim() == 4 else (1, *logits.shape)
    q = as_float64(left).reshape(*heads[:2], i, -1)
    k = as_float64(right).transpose(-1, -2).reshape(*heads[:2], j, -1)
    v = as_float64(after.inputs[-1]).reshape(*heads[:2], j, -1)
    raw, logits = q @ k.transpose(-1, -2), logits.reshape(heads)
    open_ = logits > -1e4
    scale, bias = _scale_and_bias(raw, logits, open_, q.shape[-1])
    keep = None if bool(open_.all()) else open_
    out = _merge(as_float64(after.outputs[0]).reshape(*heads[:2], i, -1))
    empty = "mean" if keep is not None and bool((logits[~open_] > -math.inf).all()) else "zero"
    return Call(Attention(q, k, v, out, out, scale, keep, bias, empty=empty), out)


def _gives(op: Op, i: int, j: int, numel: int) -> bool:
    return (
        bool(op.outputs)
        and len(op.inputs) >= 2
        and op.outputs[0].shape[-2:] == (i, j)
        and op.outputs[0].numel() == numel
    )


def _takes(op: Op, weight: Tensor) -> bool:
    if len(op.inputs) < 2 or op.inputs[-2].numel() != weight.numel() or op.inputs[-2].shape[-1] != weight.shape[-1]:
        return False
    return relative_error(as_float64(op.inputs[-2]).reshape(weight.shape), weight) < 1e-2


def _scale_and_bias(raw: Tensor, logits: Tensor, open_: Tensor, width: int) -> tuple[float, Tensor | None]:
    """Return c and the rest with logits = c·raw + bias where the mask is open; the rest is None when it is nothing."""
    a, b = raw[open_], logits[open_]
    if a.numel() < 2:
        return 1.0, None
    scale = float((a * b).sum() / a.square().sum().clamp_min(1e-300))
    if float((b - scale * a).abs().max()) <= 1e-4 * max(1.0, float(b.abs().max())):
        return scale, None
    a_mean, b_mean = a - a.mean(), b - b.mean()
    scale = float((a_mean * b_mean).sum() / a_mean.square().sum().clamp_min(1e-300))
    # A bias that happens to correlate with the scores moves the fit: the scale is a usual one nearby.
    scale = next((usual for usual in (1.0, width**-0.5) if abs(scale / usual - 1) < 0.05), scale)
    bias = torch.where(open_, logits - scale * raw, torch.zeros_like(logits))
    return scale, bias


def _joined(found: list[Call]) -> list[Call]:
    """Put calls on the same keys and values together along the queries."""
    joined: list[Call] = []
    for call in found:
        a = call.attention
        last = joined[-1].attention if joined else None
        same = (
            last is not None and last.k.shape == a.k.shape and last.q.shape[:2] == a.q.shape[:2] and last.bias is None
        )
        if (
            last is None
            or not same
            or a.bias is not None
            or not torch.equal(last.k, a.k)
            or not torch.equal(last.v, a.v)
        ):
            joined.append(call)
            continue
        keep = _joined_masks(last, a)
        out = torch.cat([joined[-1].out, call.out], 1)
        both = replace(last, q=torch.cat([last.q, a.q], 2), keep=keep, r=out, p=out)
        joined[-1] = Call(both, out)
    return joined


def _joined_masks(one: Attention, two: Attention) -> Tensor | None:
    if one.keep is None and two.keep is None:
        return None
    parts = []
    for a in (one, two):
        b, _, i, _ = a.q.shape
        keep = torch.ones(1, 1, 1, a.k.shape[2], dtype=torch.bool) if a.keep is None else a.keep
        parts.append(keep.expand(max(b, keep.shape[0]), a.q.shape[1], i, keep.shape[-1]))
    return torch.cat(parts, 2)
