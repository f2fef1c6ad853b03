"""Strict loading under the upstream names (spec waypoint, section 2)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn


def load_weights(model: nn.Module, source: str | Path | Mapping[str, Tensor]) -> nn.Module:
    """Load a safetensors file or a state dict into `model` and return it.

    Values are cast to the dtype of the parameter they fill, so half-precision checkpoints of an fp32 model are upcast.
    Missing keys, unexpected keys, other shapes, and keys that share one parameter with different values raise ONE
    ValueError that lists them all.
    """
    state = load_file(source) if isinstance(source, (str, Path)) else source
    own = {**dict(model.named_parameters(remove_duplicate=False)), **_persistent_buffers(model)}
    if any(t.is_meta for t in own.values()):
        raise ValueError("cannot load weights into a model on the meta device: build it on a real device first")
    problems = _problems(own, state)
    if problems:
        raise ValueError("cannot load Waypoint weights strictly:\n  " + "\n  ".join(problems))
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])
    return model


def _persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that belong to the state dict."""
    persistent = model.state_dict(keep_vars=True)
    return {name: b for name, b in model.named_buffers(remove_duplicate=False) if name in persistent}


def _problems(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Describe every difference between what the model has and what is given."""
    problems = [f"missing: {name} {list(own[name].shape)}" for name in sorted(own.keys() - state.keys())]
    problems += [f"unexpected: {name} {list(state[name].shape)}" for name in sorted(state.keys() - own.keys())]
    first: dict[int, str] = {}
    for name in sorted(own.keys() & state.keys()):
        if own[name].shape != state[name].shape:
            problems.append(f"shape: {name} is {list(state[name].shape)}, expected {list(own[name].shape)}")
            continue
        twin = first.setdefault(id(own[name]), name)
        if twin != name and not torch.equal(state[twin], state[name]):
            problems.append(f"tied: {name} must equal {twin}, both fill one parameter")
    return problems
