"""Another shape for a port: its parts carry other names, its code still finds them under the old ones."""

from __future__ import annotations

import hashlib

from torch import nn


def renamed(model: nn.Module) -> nn.Module:
    """Rename the children of every module (but not of lists) in place, as another author would: names that say nothing of the old ones."""
    for module in list(model.modules()):
        if isinstance(module, (nn.ModuleList, nn.Sequential, nn.ModuleDict)) or not module._modules:
            continue
        aliases = {old: _alias(old) for old in module._modules}
        module._modules = type(module._modules)((aliases[name], child) for name, child in module._modules.items())
        module.__class__ = _aliased(type(module), aliases)
    return model


def _alias(name: str) -> str:
    return f"part_{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _aliased(cls: type[nn.Module], aliases: dict[str, str]) -> type[nn.Module]:
    def __getattr__(self: nn.Module, name: str) -> object:
        return cls.__getattr__(self, aliases.get(name, name))

    return type(cls.__name__, (cls,), {"__getattr__": __getattr__, "__module__": cls.__module__})
