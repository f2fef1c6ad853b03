"""Which functions of a library a model runs: their lines, and the modules that were running them."""

from __future__ import annotations

import sys
import types
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules import module as hooks

# Parts of a library that are not the model: settings, loading, outputs, generation, decorators.
_AROUND = ("/utils/", "/hooks", "/loaders/", "/generation/", "/quantizers/", "/integrations/", "configuration_", "modeling_utils", "modeling_outputs", "modeling_layers", "generic.py", "/__init__.py")  # fmt: skip
LIBRARIES = ("/diffusers/", "/transformers/")


def is_model_code(file: str) -> bool:
    """Tell whether a file belongs to the models of a library."""
    return any(part in file for part in LIBRARIES) and not any(part in file for part in _AROUND)


@dataclass(frozen=True)
class Executed:
    """One function that ran: its code, and for each of its lines the paths of the modules that were running it."""

    code: types.CodeType
    lines: Mapping[int, frozenset[str]]


def executed(model: nn.Module, run: Callable[[], Any]) -> tuple[Executed, ...]:
    """Run and return the library's functions in the order in which they first ran."""
    seen: dict[types.CodeType, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    with _module_stack(model) as stack:

        def look(frame: types.FrameType, event: str, arg: Any) -> Any:
            if event == "call" and not is_model_code(frame.f_code.co_filename):
                return None
            if event in ("call", "line"):
                seen[frame.f_code][frame.f_lineno].add(stack[-1] if stack else "")
            return look

        before = sys.gettrace()
        sys.settrace(look)
        try:
            run()
        finally:
            sys.settrace(before)
    return tuple(Executed(code, {n: frozenset(p) for n, p in lines.items()}) for code, lines in seen.items())


@contextmanager
def _module_stack(model: nn.Module) -> Iterator[list[str]]:
    """Keep the paths of the modules that are running, innermost last."""
    paths = {id(module): path for path, module in model.named_modules()}
    stack: list[str] = []

    def enter(module: nn.Module, args: Any) -> None:
        if id(module) in paths:
            stack.append(paths[id(module)])

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if id(module) in paths:
            stack.pop()

    handles = (
        hooks.register_module_forward_pre_hook(enter),
        hooks.register_module_forward_hook(leave, always_call=True),
    )
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()
