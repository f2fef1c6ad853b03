"""The root modules that a program calls, noticed while it runs: a root is called while no other module runs."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from parity.capture import nested
from parity.capture.wrapping import wrap
from parity.errors import CaseError

Called = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]


class RootWatch:
    """While it is entered, `called(module, args, kwargs)` runs before each call of a root module. model: only roots of this class."""

    def __init__(self, called: Called, model: str = "") -> None:
        self._called, self._model = called, model
        self._depths = threading.local()  # of running modules, in each thread

    def __enter__(self) -> RootWatch:
        self._undo = wrap(nn.Module, "__call__", self._around)
        return self

    def __exit__(self, *_: object) -> None:
        self._undo()

    def _around(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module, depth = args[0], getattr(self._depths, "now", 0)
        self._depths.now = depth + 1
        try:
            if depth == 0 and (not self._model or type(module).__name__ == self._model):
                self._called(module, args[1:], kwargs)
            return function(*args, **kwargs)
        finally:
            self._depths.now = depth


def prefix_of(module: nn.Module, index: int) -> str:
    """Return what the sites of the root that was called as number `index` begin with."""
    return "" if index == 0 else f"{type(module).__name__}.{index}."


@dataclass
class RootCalls:
    """The root modules of a program as they were before their first calls, and every call: (root, arguments, keyword arguments)."""

    roots: list[nn.Module] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
    calls: list[tuple[int, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)


def gather_calls(program: Callable[[], object], model: str = "") -> RootCalls:
    """Run a program and return copies of its root modules and of the arguments of their calls, which can then be made again.

    Raises CaseError for a module or an argument that cannot be copied.
    """
    found = RootCalls()
    known: dict[int, int] = {}
    kept: list[nn.Module] = []  # so that an id stays its module's own

    def called(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with nested.no_modes(), torch.no_grad():
            if id(module) not in known:
                known[id(module)] = index = len(kept)
                kept.append(module)
                found.roots.append(_copied(module, f"the module {type(module).__name__}"))
                found.prefixes.append(prefix_of(module, index))
            given = _copied((args, kwargs), f"an argument of {type(module).__name__}")
            found.calls.append((known[id(module)], *given))

    with RootWatch(called, model):
        program()
    return found


def _copied(value: Any, what: str) -> Any:
    """Return a copy that shares nothing; tensors inside a graph of gradients are cut off it."""
    memo = {id(t): t.detach().clone() for _, t in nested.tensors(value)} if not isinstance(value, nn.Module) else {}
    try:
        return copy.deepcopy(value, memo)
    except Exception as error:
        raise CaseError(
            f"{what} cannot be copied ({type(error).__name__}), so the run cannot be made again: capture it without --floors"
        ) from None
