"""No-cast modules and the cast to the engine dtype (spec waypoint, section 8).

Rotary and NoiseConditioner keep float32 storage whatever the engine dtype is. The serving engine casts the PARENT with
`.to(bfloat16)`: `nn.Module._apply` then visits the no-cast module too, which undoes the dtype but not the rounding.
Loaders that skip such modules keep exact values. Both behaviours exist upstream, so `to_engine_dtype` takes the choice
as an argument.

The package also calls `torch.set_float32_matmul_precision("medium")`, which moves float32 matmuls on a GPU. That is
global state, so it is left to the program that runs the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

HALF = (torch.bfloat16, torch.float16)


class NoCast(nn.Module):
    """Keep the parameters and buffers of this subtree in float32 or wider.

    A half-precision cast of a parent rounds the values and leaves the storage as it was; `.to(half)` on the module
    itself changes nothing. A cast to float64 is obeyed, so that an upcast copy of a model is wide everywhere.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NoCast:
        def keep_storage(t: Tensor) -> Tensor:
            cast = fn(t)
            return cast.to(t.dtype) if cast.dtype in HALF else cast

        return super()._apply(keep_storage, recurse)

    def to(self, *args: Any, **kwargs: Any) -> NoCast:
        """Move the module; a half-precision dtype is dropped from the request, so the values stay exact."""
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        return super().to(device=device, dtype=None if dtype in HALF else dtype, non_blocking=non_blocking)


def to_engine_dtype(
    model: nn.Module, dtype: torch.dtype, no_cast: Literal["rounded", "exact"] = "rounded"
) -> nn.Module:
    """Cast `model` in place and return it.

    `no_cast="rounded"` is the engine: the no-cast modules' values pass through `dtype`. `no_cast="exact"` is the
    loading path that skips them: their float32 values stay as loaded.
    """
    if no_cast not in ("rounded", "exact"):
        raise ValueError(f"no_cast must be 'rounded' or 'exact', not {no_cast!r}")
    if no_cast == "rounded":
        return model.to(dtype)
    exempt = [m for m in model.modules() if isinstance(m, NoCast)]
    tensors = [t for m in exempt for t in (*m.parameters(), *m.buffers()) if t.is_floating_point()]
    exact = [t.detach().clone() for t in tensors]
    model.to(dtype)
    # The cast replaces buffers by new tensors, so they are looked up again, in the same order.
    tensors = [t for m in exempt for t in (*m.parameters(), *m.buffers()) if t.is_floating_point()]
    with torch.no_grad():
        for t, value in zip(tensors, exact, strict=True):
            t.copy_(value)
    return model
