"""The weights of a captured model, as the manifest of its trace describes them."""

from __future__ import annotations

from torch import nn

from parity.trace import Parameter
from parity.trace.fingerprint import stats


def describe_parameters(model: nn.Module, prefix: str = "") -> dict[str, Parameter]:
    """Describe every parameter by shape, dtype and statistics; the names are the state dict's, after `prefix`."""
    return {
        prefix + name: Parameter(tuple(value.shape), str(value.dtype).removeprefix("torch."), stats(value))
        for name, value in model.named_parameters(remove_duplicate=False)
        if value.numel() > 0 and not value.is_meta
    }
