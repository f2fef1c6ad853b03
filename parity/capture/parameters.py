"""The weights of a captured model, as the manifest of its trace describes them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from parity.trace import Parameter
from parity.trace.fingerprint import digest, sketch, stats

_BUCKETS = 31  # enough to tell a changed weight from another one
_HALVES = (torch.bfloat16, torch.float16)


def describe_parameters(model: nn.Module, prefix: str = "") -> dict[str, Parameter]:
    """Describe every parameter by shape, dtype, statistics, hashes and a small sketch; the names are the state dict's, after `prefix`."""
    return {
        prefix + name: _described(value.detach())
        for name, value in model.named_parameters(remove_duplicate=False)
        if value.numel() > 0 and not value.is_meta
    }


def _described(value: Tensor) -> Parameter:
    dtypes = [value.dtype, *(half for half in _HALVES if value.is_floating_point() and value.element_size() > 2)]
    digests = {str(dtype).removeprefix("torch."): digest(value.to(dtype)) for dtype in dtypes}
    small = _folded(sketch(value)) if value.is_floating_point() else ()
    return Parameter(tuple(value.shape), str(value.dtype).removeprefix("torch."), stats(value), digests, small)


def _folded(whole: Tensor) -> tuple[float, ...]:
    """Return a linear sketch of few buckets: those of a large one, added up."""
    padded = torch.zeros(-(-len(whole) // _BUCKETS) * _BUCKETS, dtype=whole.dtype)
    padded[: len(whole)] = whole
    return tuple(padded.view(-1, _BUCKETS).sum(0).tolist())
