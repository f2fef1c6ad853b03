"""Composite operations written out, so that every spelling of a norm, an attention or a biased projection is the same few operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from parity.capture.operations import Op, Step, log_step


class _Parts(TorchDispatchMode):
    """Log what one composite operation is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.makers: dict[int, int] = {}
        self.alive: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return log_step(self.steps, self.makers, self.alive, func, args, kwargs or {}, ("", ""), ())


def written_out(ops: Sequence[Op]) -> tuple[Op, ...]:
    """Return the operations with float64 composites replaced by their parts; makers are counted anew."""
    found: list[Op] = []
    now: dict[int, int] = {}  # an operation's old place -> its new one
    for i, op in enumerate(ops):
        parts = _parts_of(op)
        base = len(found)
        outer = tuple(now.get(m) if m is not None else None for m in op.makers)
        if not parts:
            found.append(replace(op, makers=outer))
        for part in parts:
            makers = tuple(
                base + m if m is not None else _outer(op, outer, t)
                for m, t in zip(part.makers, part.inputs, strict=True)
            )
            found.append(
                replace(
                    part,
                    makers=makers,
                    whole=op.name,
                    source=op.source,
                    code=op.code,
                    frames=op.frames,
                    earlier=op.earlier,
                )
            )
        now[i] = len(found) - 1
    return tuple(found)


def _outer(op: Op, makers: Sequence[int | None], given: Tensor) -> int | None:
    for k, t in enumerate(op.inputs):
        if t is given and k < len(makers):
            return makers[k]
    return None


def _parts_of(op: Op) -> list[Op]:
    formula = FORMULAS.get(op.name)
    floats = [t for t in (*op.inputs, *op.outputs) if t.is_floating_point()]
    if formula is None or op.again is None or any(t.dtype != torch.float64 for t in floats) or not op.outputs:
        return []
    with _Parts() as log, torch.no_grad():
        try:
            value = formula(op)
        except (RuntimeError, ValueError, IndexError, KeyError):
            return []
    wanted = op.outputs[0]
    if value is None or value.shape != wanted.shape or not log.steps:
        return []
    if not torch.allclose(value, wanted, rtol=1e-7, atol=1e-9 * float(wanted.abs().max() or 1.0), equal_nan=True):
        return []  # dropout, or an argument that is not known here
    parts = [replace(s.op, makers=s.makers) for s in log.steps]
    last = parts[-1]
    if len(last.outputs) != 1 or last.outputs[0].shape != wanted.shape:
        return []
    return [*parts[:-1], replace(last, outputs=(wanted,))]


def _by_name(op: Op) -> dict[str, Tensor | None]:
    """Return the tensor arguments by their schema names."""
    names = iter(op.tensors)
    return dict(zip(names, op.inputs, strict=False))


def _layer_norm(op: Op) -> Tensor | None:
    given, axes = _by_name(op), list(range(-len(op.scalars["normalized_shape"]), 0))
    x = given["input"]
    assert x is not None
    y = x - x.mean(axes, keepdim=True)
    return _affine(y * torch.rsqrt(y.pow(2).mean(axes, keepdim=True) + op.scalars["eps"]), given)


def _rms_norm(op: Op) -> Tensor | None:
    given, axes = _by_name(op), list(range(-len(op.scalars["normalized_shape"]), 0))
    x = given["input"]
    assert x is not None
    eps = op.scalars.get("eps", torch.finfo(x.dtype).eps)
    return _affine(x * torch.rsqrt(x.pow(2).mean(axes, keepdim=True) + eps), given)


def _affine(y: Tensor, given: dict[str, Tensor | None]) -> Tensor:
    weight, bias = given.get("weight"), given.get("bias")
    y = y * weight if weight is not None else y
    return y + bias if bias is not None else y


def _group_norm(op: Op) -> Tensor | None:
    given = _by_name(op)
    x = given["input"]
    assert x is not None
    y = x.reshape(x.shape[0], op.scalars["group"], -1)
    y = y - y.mean(-1, keepdim=True)
    y = (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + op.scalars["eps"])).reshape(x.shape)
    return _affine(
        y, {k: t.reshape(-1, *[1] * (x.dim() - 2)) if t is not None else None for k, t in given.items() if k != "input"}
    )


def _batch_norm(op: Op) -> Tensor | None:
    given = _by_name(op)
    x, mean, var = given["input"], given.get("running_mean"), given.get("running_var")
    assert x is not None
    if op.scalars.get("training") or op.scalars.get("train") or mean is None or var is None:
        return None
    rows = [-1, *[1] * (x.dim() - 2)]
    y = (x - mean.reshape(rows)) * torch.rsqrt(var + op.scalars["eps"]).reshape(rows)
    return _affine(y, {k: t.reshape(rows) for k, t in given.items() if k in ("weight", "bias") and t is not None})


def _attention(op: Op) -> Tensor | None:
    given = _by_name(op)
    q, k, v, mask = given["query"], given["key"], given["value"], given.get("attn_mask")
    if q is None or k is None or v is None:
        return None
    if op.scalars.get("dropout_p"):
        return None
    if q.dim() > 2 and k.shape[-3] != q.shape[-3]:
        shared = q.shape[-3] // k.shape[-3]
        k, v = k.repeat_interleave(shared, -3), v.repeat_interleave(shared, -3)
    scale = op.scalars.get("scale")
    scores = (q @ k.transpose(-2, -1)) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if op.scalars.get("is_causal"):
        keep = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
        scores = scores.masked_fill(~keep, float("-inf"))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1) @ v


def _addmm(op: Op) -> Tensor | None:
    bias, a, b = op.inputs
    beta, alpha = op.scalars.get("beta", 1), op.scalars.get("alpha", 1)
    product = a @ b if alpha == 1 else (a @ b) * alpha
    return product + (bias if beta == 1 else bias * beta)


def _convolution(op: Op) -> Tensor | None:
    s = op.scalars
    if len(op.inputs) != 3:
        return None
    x, weight, bias = op.inputs
    y = torch.convolution(
        x, weight, None, s["stride"], s["padding"], s["dilation"], s["transposed"], s["output_padding"], s["groups"]
    )
    return y + bias.reshape(-1, *[1] * (weight.dim() - 2))


FORMULAS: dict[str, Callable[[Op], Tensor | None]] = {
    "native_layer_norm": _layer_norm,
    "_fused_rms_norm": _rms_norm,
    "rms_norm": _rms_norm,
    "native_group_norm": _group_norm,
    "native_batch_norm": _batch_norm,
    "cudnn_batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "scaled_dot_product_attention": _attention,
    "addmm": _addmm,
    "baddbmm": _addmm,
    "convolution": _convolution,
}
