"""A program as the side of a case: the calls of its root modules, made again as often as the harness needs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from parity.capture.probes import Modules, Probe
from parity.capture.roots import RootCalls
from parity.case import Side
from parity.run.given import Arguments, side_of


class Program(nn.Module):
    """The root modules of a program, and its calls of them; what is between the calls is not run again: each gets the arguments that it got."""

    def __init__(self, roots: Sequence[nn.Module]) -> None:
        super().__init__()
        self.roots = nn.ModuleList(roots)

    def forward(self, *calls: tuple[int, tuple[Any, ...], dict[str, Any]]) -> Any:
        """Make the calls in order; return what the only one returns, nothing where there are several."""
        results = [self.roots[root](*args, **kwargs) for root, args, kwargs in calls]
        return results[0] if len(results) == 1 else None


def side_of_calls(found: RootCalls, pattern: str = ".*") -> Side:
    """Return a side that makes the calls of a program again. pattern: the module paths that are recorded."""
    side = side_of(Program(found.roots), Arguments(tuple(found.calls)), None)

    def roots(program: Any) -> dict[str, nn.Module]:
        return dict(zip(found.prefixes, program.roots, strict=True))

    def probes(program: Any) -> list[Probe]:
        return [Modules(root, pattern=pattern, prefix=prefix) for prefix, root in roots(program).items()]

    return replace(side, probes=probes, modules=roots)


def dtype_of_calls(found: RootCalls) -> torch.dtype:
    """Return the dtype of the first floating parameter of the roots; float32 where there is none."""
    weights = (p.dtype for root in found.roots for p in root.parameters() if p.is_floating_point())
    return next(weights, torch.float32)
