"""The weights of a captured model, as the manifest of its trace describes them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from parity.trace import Parameter
from parity.trace.fingerprint import digest, fingerprint

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
    whole = fingerprint(value)
    halves = [half for half in _HALVES if value.is_floating_point() and value.element_size() > 2]
    digests = {_name(value.dtype): whole.digest, **{_name(half): digest(value.to(half)) for half in halves}}
    small = _folded(whole.sketch) if value.is_floating_point() else ()
    return Parameter(tuple(value.shape), _name(value.dtype), whole.stats, digests, small)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _folded(whole: Tensor) -> tuple[float, ...]:
    """Return a linear sketch of few buckets: those of a large one, added up."""
    padded = torch.zeros(-(-len(whole) // _BUCKETS) * _BUCKETS, dtype=whole.dtype)
    padded[: len(whole)] = whole
    return tuple(padded.view(-1, _BUCKETS).sum(0).tolist())
