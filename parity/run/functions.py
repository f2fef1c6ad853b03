"""A function given as an implementation: with the modules that it uses, so that they are copied, recorded and run in float64 like any other."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from parity.errors import CaseError

Model = nn.Module | tuple[Callable[..., Any], nn.Module]
Given = Model | Callable[..., Any] | tuple[Callable[..., Any], None]


class Bare(nn.Module):
    """Holds the modules that a function uses; nothing, where it uses none."""


def as_model(side: str, given: Given) -> Model:
    """Return what a user gave as a module, or as a pair (function, module).

    A method of a module becomes a pair with it. A plain function becomes a pair with the one module that it reaches by name (a variable of the function around
    it, or a global), or with a holder of them all, or of none. Raises CaseError for what is neither.
    """
    if isinstance(given, nn.Module):
        return given
    if isinstance(given, tuple) and len(given) == 2 and callable(given[0]):
        function, module = given
        if isinstance(module, nn.Module):
            return function, module
        if module is None:
            return _pair(function)
    if isinstance(given, type) or not callable(given):
        raise CaseError(
            f"the {side} is {_kind_of(given)}: give a module, a function, or a pair (function, module) "
            "where function(module, *inputs) runs it"
        )
    return _pair(given)


def _pair(function: Callable[..., Any]) -> Model:
    if isinstance(function, types.MethodType) and isinstance(function.__self__, nn.Module):
        return function.__func__, function.__self__
    found = _modules_of(function)
    if len(found) == 1:
        ((name, module),) = found.items()
        return _taking_module(function, lambda current: {name: current}), module
    holder = Bare()
    for name, module in found.items():
        holder.add_module(name, module)
    return _taking_module(function, lambda current: dict(current.named_children())), holder


def _modules_of(function: Callable[..., Any]) -> dict[str, nn.Module]:
    """Return the modules that a function reaches by name: its free variables and the globals that its code names."""
    if not isinstance(function, types.FunctionType):
        return {}
    free = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    values = {name: function.__globals__.get(name) for name in function.__code__.co_names}
    values |= {name: cell.cell_contents for name, cell in free.items() if _is_filled(cell)}
    return {name: value for name, value in values.items() if isinstance(value, nn.Module)}


def _is_filled(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _taking_module(
    function: Callable[..., Any], named: Callable[[nn.Module], Mapping[str, nn.Module]]
) -> Callable[..., Any]:
    """Return the function with the module as its first argument, in place of what it reached by name."""

    def run(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return _bound(function, named(module))(*args, **kwargs)

    try:
        own = inspect.signature(function)
    except ValueError:  # a builtin without one
        return run
    first = inspect.Parameter("module", inspect.Parameter.POSITIONAL_ONLY)
    run.__signature__ = own.replace(parameters=[first, *own.parameters.values()])  # type: ignore[attr-defined]
    return run


def _bound(function: Callable[..., Any], modules: Mapping[str, nn.Module]) -> Callable[..., Any]:
    """Return the function with other modules under the names that it uses; the function itself where it uses none."""
    if not modules or not isinstance(function, types.FunctionType):
        return function
    free = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    closure = tuple(types.CellType(modules[name]) if name in modules else cell for name, cell in free)
    names = {**function.__globals__, **modules}
    twin = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, closure)
    twin.__kwdefaults__ = function.__kwdefaults__
    return twin


def _kind_of(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, tuple) else "")
