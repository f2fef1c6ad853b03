"""Earlier tensors that could be a part of the diverging value, found by shape: inputs, operations' results, halves of
a doubled batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .evidence import Evidence, as_float64
from .fits import cached

MOST = 32
MOST_NUMEL = 60_000_000


def same_shape(ev: Evidence) -> dict[str, Tensor]:
    """Finite float tensors of R's shape, float64, by name: inputs, results of the reference's operations, batch halves
    of inputs.

    Copies of R itself (the record, a view of it) and duplicates are left out.
    """
    return cached(ev, "same_shape_candidates", lambda: _collect(ev))


def _collect(ev: Evidence) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    room = MOST_NUMEL
    for name, value in _offered(ev):
        if len(found) >= MOST or room < value.numel():
            break
        x = as_float64(value).reshape(ev.r.shape)
        if (
            not bool(torch.isfinite(x).all())
            or not bool(x.any())
            or torch.equal(x, ev.r)
            or any(torch.equal(x, y) for y in found.values())
        ):
            continue
        found[name] = x
        room -= x.numel()
    return found


def _offered(ev: Evidence) -> Iterator[tuple[str, Tensor]]:
    shape = tuple(ev.r.shape)
    for name, value in ev.inputs.items():
        if not value.is_floating_point():
            continue
        if tuple(value.shape) == shape:
            yield name, value
        elif value.ndim == len(shape) and value.shape[1:] == ev.reference.shape[1:] and value.shape[0] == 2 * shape[0]:
            yield f"{name}[first half]", value[: shape[0]]
            yield f"{name}[second half]", value[shape[0] :]
        elif value.numel() == ev.r.numel() and value.ndim != len(shape) and value.shape[-1] == shape[-1]:
            yield name, value
    for side, ops in (("reference", ev.ref_ops), ("port", ev.port_ops)):
        for i, op in enumerate(ops):
            for x in (*op.inputs, *op.outputs):
                if tuple(x.shape) == shape and x.is_floating_point():
                    yield f"{side} op {i} ({op.name})", x


def vectors(ev: Evidence) -> dict[str, Tensor]:
    """Tensors that broadcast to R but are smaller: parameters of one axis (brought to that axis), gates, per-token
    factors.
    """
    return cached(ev, "vector_candidates", lambda: dict(list(_vectors(ev))[:MOST]))


def _vectors(ev: Evidence) -> Iterator[tuple[str, Tensor]]:
    shape = tuple(ev.r.shape)
    for name, pair in ev.parameters.items():
        value = pair[0] if pair[0] is not None else pair[1]
        if value is not None and value.is_floating_point() and value.ndim >= 1:
            yield from _broadcast(name, value, shape)
    for name, value in ev.inputs.items():
        if value.is_floating_point() and 1 < value.numel() < ev.r.numel():
            yield from _broadcast(name, value, shape)
    for i, op in enumerate(ev.ref_ops):
        for x in op.inputs if op.name in {"mul", "add", "addcmul", "sub", "div"} else ():
            if x.is_floating_point() and 1 < x.numel() < ev.r.numel():
                yield from _broadcast(f"reference op {i} ({op.name}) operand", x, shape)


def _broadcast(name: str, value: Tensor, shape: tuple[int, ...]) -> Iterator[tuple[str, Tensor]]:
    """`value` as it broadcasts to `shape`: by its own axes from the right, [b, d] over [b, n, d], or a vector along
    one axis.
    """
    if not shape or value.numel() == 0:
        return
    x = as_float64(value)
    if not bool(torch.isfinite(x).all()) or float((x - x.reshape(-1)[0]).abs().max()) == 0:
        return
    if x.ndim <= len(shape) and all(a in (1, b) for a, b in zip(reversed(x.shape), reversed(shape), strict=False)):
        yield name, x
    elif x.ndim == 2 and len(shape) >= 3 and (x.shape[0], x.shape[1]) == (shape[0], shape[-1]):
        yield name, x.reshape(shape[0], *([1] * (len(shape) - 2)), shape[-1])
    elif x.numel() in shape and sum(n > 1 for n in x.shape) == 1:
        axis = shape.index(x.numel())
        yield name, x.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    if x.ndim >= 2 and x.shape[-1] == shape[-1] and 2 <= x.numel() // shape[-1] <= 9 and x.numel() > shape[-1]:
        # a modulation of several vectors: each is a candidate of its own
        for i, row in enumerate(x.reshape(-1, shape[-1])):
            yield f"{name}[{i}]", row
