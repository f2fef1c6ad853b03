"""Values that are not finite: seen at once, traced to the operation that made them, never only cleaned away.

A stage's result is checked when it is there. When it is not finite, the stage runs again with every layer watched, and the first one with finite
inputs and another output is named.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ported.echomimic.quantise import WeightOnlyInt8

HALF_RANGE = 65504.0


@dataclass(frozen=True)
class Finding:
    """The first value that was not finite: where, made by what, out of what."""

    stage: str
    step: int | None = None
    window: int | None = None
    module: str = ""
    operation: str = ""
    count: int = 0
    of: int = 0
    input_max: float | None = None
    term: str = ""

    def __str__(self) -> str:
        where = f"{self.stage}" + (f", step {self.step}" if self.step is not None else "")
        where += f", window {self.window}" if self.window is not None else ""
        by = f", {self.module} ({self.operation})" if self.module else f", {self.operation}"
        largest = "" if self.input_max is None else f"; largest input {self.input_max:.6g}"
        return f"{self.count} of {self.of} values are not finite: {where}{by}{largest}" + (
            f"; {self.term}" if self.term else ""
        )


class NonFiniteError(RuntimeError):
    """A run stopped because of `finding`."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))
        self.finding = finding


def bad(value: Tensor) -> int:
    """How many values are not finite."""
    return int((~torch.isfinite(value)).sum()) if value.is_floating_point() else 0


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for item in value for t in tensors(item)] if isinstance(value, (list, tuple)) else []


@dataclass
class Watch:
    """Findings of one run and what to do about them: `fail` raises at the first, `clean` goes on and keeps it."""

    policy: str = "fail"
    first: Finding | None = None

    def check(self, value: Tensor, explain: Callable[[int, int], Finding]) -> Tensor:
        """Return the value as it is. `explain` gets the number of bad values and of all."""
        if self.policy != "ignore" and self.first is None and (count := bad(value)):
            self.first = explain(count, value.numel())
            if self.policy == "fail":
                raise NonFiniteError(self.first)
        return value


def first_layer(network: nn.Module, run: Callable[[], Any], finding: Finding) -> Finding:
    """Run again and name the first layer whose result is not finite though its inputs are."""
    found: list[Finding] = []
    handles: list[RemovableHandle] = []

    def watch(path: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            if found or not sum(map(bad, tensors(result))):
                return
            inputs = [t for t in tensors((args, kwargs)) if t.is_floating_point()]
            if any(map(bad, inputs)):
                return
            found.append(describe(finding, path, layer, inputs, tensors(result)))

        return hook

    for path, layer in network.named_modules():
        handles.append(layer.register_forward_hook(watch(path), with_kwargs=True))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else finding


def describe(finding: Finding, path: str, layer: nn.Module, inputs: list[Tensor], results: list[Tensor]) -> Finding:
    """Say what a layer did and which of its terms left the range."""
    largest = max((float(t.abs().max()) for t in inputs if t.numel()), default=None)
    term = ""
    if isinstance(layer, WeightOnlyInt8) and inputs and layer.order == "after" and bad(layer.product(inputs[0])):
        exact = float(layer.product(inputs[0].float()).abs().max())
        term = (
            f"the product x·qᵀ in {inputs[0].dtype} before its scale: {exact:.6g} in float32, over {HALF_RANGE:.0f}; "
            "the float32 product or bfloat16 is finite"
        )
    elif inputs and inputs[0].dtype == torch.float16:
        term = f"the result does not fit {inputs[0].dtype}"
    count, total = sum(map(bad, results)), sum(t.numel() for t in results)
    return Finding(finding.stage, finding.step, finding.window, path, type(layer).__name__, count, total, largest, term)


def clean(video: Tensor) -> tuple[Tensor, int]:
    """Replace NaN and −inf by 0, +inf by 1, clamp to [0, 1]; return how many values were replaced."""
    count = bad(video)
    return torch.nan_to_num(video, nan=0.0, posinf=1.0, neginf=0.0).clamp(0, 1), count
