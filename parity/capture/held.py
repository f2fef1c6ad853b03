"""Modules that refuse float64 in a run in float64: their own code computes in a narrower dtype, what they call goes on in float64."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from parity.capture import nested

HELD: ContextVar[bool] = ContextVar("held", default=False)  # in the code of such a module: its own casts are its own
_DEFAULT: ContextVar[torch.dtype] = ContextVar("default", default=torch.float32)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Remember the default dtype of the deployed run while another one is set."""
    token = _DEFAULT.set(dtype)
    try:
        yield
    finally:
        _DEFAULT.reset(token)


@contextmanager
def _inside(held: bool) -> Iterator[None]:
    """Run code as that of a module that is held back, or as that of the run in float64 again."""
    before, token = torch.get_default_dtype(), HELD.set(held)
    torch.set_default_dtype(_DEFAULT.get() if held else torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
        HELD.reset(token)


def hold_back(roots: Mapping[str, nn.Module], held: Mapping[str, torch.dtype]) -> None:
    """Let modules of a model in float64, named by site prefix and path, run their own code in the dtype given for each."""
    for module, dtype in _named(roots, held):
        _hold(module, dtype)


@contextmanager
def released(roots: Mapping[str, nn.Module], held: Mapping[str, torch.dtype]) -> Iterator[None]:
    """Let what modules that are held back call run in float64. Enter it after every hook that shall see values in float64."""
    with ExitStack() as stack:
        for module, dtype in _named(roots, held):
            for child in module.children():
                _release(child, dtype, stack)
        yield


def _named(roots: Mapping[str, nn.Module], held: Mapping[str, torch.dtype]) -> list[tuple[nn.Module, torch.dtype]]:
    every = {prefix + path: part for prefix, root in roots.items() for path, part in root.named_modules()}
    return [(every[site], dtype) for site, dtype in held.items() if site in every]


def _hold(module: nn.Module, dtype: torch.dtype) -> None:
    with _inside(True):
        for own in (module._parameters, module._buffers):
            for value in own.values():
                if value is not None:
                    value.data = _cast(value.data, torch.float64, dtype)
        for name, item in list(vars(module).items()):
            if isinstance(item, Tensor):
                vars(module)[name] = _cast(item, torch.float64, dtype)
            elif item is torch.float64:
                vars(module)[name] = dtype
    inner = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with _inside(True):
            args, kwargs = _all((args, kwargs), torch.float64, dtype)
            return _all(inner(*args, **kwargs), dtype, torch.float64)

    module.forward = forward


def _release(child: nn.Module, dtype: torch.dtype, stack: ExitStack) -> None:
    """Cast what a child is given to float64 before anything sees it, and its result back after all have."""
    open_calls: list[ExitStack | None] = []

    def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
        if not HELD.get():
            open_calls.append(None)
            return None
        given = _all((args, kwargs), dtype, torch.float64)
        call = ExitStack()
        call.enter_context(_inside(False))
        open_calls.append(call)
        return given

    def after(module: nn.Module, args: Any, result: Any) -> Any:
        call = open_calls.pop() if open_calls else None
        if call is None:
            return None
        call.close()
        return _all(result, torch.float64, dtype)

    stack.callback(child.register_forward_pre_hook(before, prepend=True, with_kwargs=True).remove)
    stack.callback(child.register_forward_hook(after, always_call=True).remove)


def _all(value: Any, wide: torch.dtype, narrow: torch.dtype) -> Any:
    return nested.replace(value, lambda path, tensor: _cast(tensor, wide, narrow))


def _cast(value: Tensor, old: torch.dtype, new: torch.dtype) -> Tensor:
    return value.to(new) if value.dtype == old else value
