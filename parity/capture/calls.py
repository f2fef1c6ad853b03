"""What a call tells of itself: the names of its arguments, where its code begins, whether a compiler or a backward pass is at work."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor


def lent(given: Any, changed: Any) -> list[tuple[Tensor, Tensor, int]]:
    """Return the arguments that other tensors stand for in this call, with the stand-ins and their versions."""
    (args, kwargs), (new_args, new_kwargs) = given, changed
    pairs = [*zip(args, new_args, strict=True), *((kwargs[k], new_kwargs[k]) for k in kwargs)]
    return [
        (old, new, new._version)
        for old, new in pairs
        if isinstance(old, Tensor) and old is not new and not new.is_inference()
    ]


def begins(function: Callable[..., Any]) -> str:
    """Return where the code of a function begins, as "file:line"; nothing for what is not written in Python."""
    try:
        code = getattr(inspect.unwrap(function), "__code__", None)
    except (AttributeError, ValueError):  # what stands for a function, and is none
        return ""
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else ""


def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep a compiler that is in use from tracing into the recorder: it would compile it anew for every site."""
    if "torch._dynamo" not in sys.modules:
        return function
    return cast(Callable[..., Any], _disable()(function))


@functools.cache
def _disable() -> Callable[..., Any]:
    """Return the decorator itself: to make it costs more than to apply it, and there are two hooks a module."""
    return cast(Callable[..., Any], torch.compiler.disable())


def bind(function: Callable[..., Any], args: Any, kwargs: Any) -> inspect.BoundArguments | None:
    """Return the arguments of a call by name, defaults included; None where they do not fit or there is no signature."""
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return None
    bound.apply_defaults()
    return bound


@functools.cache
def argument_names(cls: Any) -> tuple[str, ...]:
    """Return the names of what the forward function of a module class takes by place."""
    try:
        parameters = inspect.signature(cls.forward).parameters.values()
    except (TypeError, ValueError):
        return ()
    return tuple(p.name for p in list(parameters)[1:] if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))


def going_backward() -> bool:
    """Tell whether a backward pass is running: what modules compute then, they compute again (checkpointing)."""
    return torch._C._current_autograd_node() is not None


def is_fake(value: Tensor) -> bool:
    """Tensors without data (meta device, tracing) are not recorded."""
    return value.is_meta or type(value).__name__ in ("FakeTensor", "FunctionalTensor")
