"""What the modules of a model hold at one moment: parameters, buffers, scalar settings. A fault that is switched off afterwards takes nothing back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class ModuleState:
    """Parameters and buffers by dotted name (aliases of the storage they had), and the scalar attributes of the module itself."""

    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


def tensors_of(state: ModuleState) -> tuple[Tensor, ...]:
    """Return the parameters and buffers of a state."""
    return (*state.parameters.values(), *state.buffers.values())


def state_of(module: nn.Module) -> ModuleState:
    """Return what a module holds now."""
    return ModuleState(
        {name: value.detach() for name, value in module.named_parameters()},
        {name: value.detach() for name, value in module.named_buffers()},
        _scalars(module),
    )


def own_state(module: nn.Module) -> ModuleState:
    """Return what a module holds itself, without its children."""
    return ModuleState(
        {name: value.detach() for name, value in module.named_parameters(recurse=False)},
        {name: value.detach() for name, value in module.named_buffers(recurse=False)},
        _scalars(module),
    )


def states_of(roots: Mapping[str, nn.Module]) -> dict[str, ModuleState]:
    """Return the state of every module under its roots, by prefix and path."""
    return {prefix + path: state_of(module) for prefix, root in roots.items() for path, module in root.named_modules()}


def _scalars(module: nn.Module) -> dict[str, Any]:
    found = {}
    for name, value in vars(module).items():
        if name.startswith("_") or name == "training":
            continue
        if isinstance(value, (bool, int, float, str)) or (
            isinstance(value, tuple) and all(isinstance(v, (int, float)) for v in value)
        ):
            found[name] = value
    return found
