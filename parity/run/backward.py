"""A side whose run goes backward, too: the same loss, or the same random cotangents of its results, on both sides."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from parity.capture import nested
from parity.capture.probes import Gradients, Probe
from parity.case import Side
from parity.case.seeding import normal
from parity.errors import CaseError


def with_backward(side: Side, seed: int = 0) -> Side:
    """Return a side that runs on a copy of its model, goes backward from what its run returns, and shows the gradients.

    A run that has gone backward itself (a training step) is left as it is. Floating inputs of the modules ask for gradients.
    """

    def build(setting: Any) -> Any:
        model = copy.deepcopy(side.build(setting))
        for root in side.modules(model).values():
            for parameter in root.parameters():
                parameter.grad = None
        return model

    def run(model: Any, inputs: Any) -> Any:
        result = side.run(model, inputs)
        roots = side.modules(model).values()
        if not any(p.grad is not None for root in roots for p in root.parameters()):
            backward_from(result, seed)
        return result

    def probes(model: Any) -> Sequence[Probe]:
        found = list(side.probes(model))
        return [*found, *(Gradients(root, prefix=prefix) for prefix, root in side.modules(model).items())]

    return replace(side, build=build, run=run, probes=probes)


def backward_from(result: Any, seed: int = 0) -> None:
    """Go backward from a result: from the loss itself when one number is all there is, else from random cotangents of all its parts.

    The cotangents are drawn by the counter-based generator, by the place of the part among the parts, so both sides get the same.
    Raises CaseError when nothing in the result depends on anything that asks for a gradient.
    """
    parts = [value for _, value in nested.tensors(result) if value.requires_grad]
    if not parts:
        raise CaseError(
            "backward=True: nothing that the model returns has a gradient; is it detached, run under no_grad, or are all parameters frozen?"
        )
    if len(parts) == 1 and parts[0].numel() == 1:
        parts[0].sum().backward()
        return
    torch.autograd.backward(parts, [_cotangent(value, seed, i) for i, value in enumerate(parts)])


def _cotangent(value: Tensor, seed: int, place: int) -> Tensor:
    return normal(value.shape, seed, f"cotangent/{place}", torch.float32).to(value.dtype).to(value.device)


def asking_for_gradients(inputs: Any) -> Any:
    """Return the inputs with every floating tensor as a copy that asks for a gradient (and may be written into)."""

    def leaf(path: str, value: Tensor) -> Tensor | None:
        if not (value.is_floating_point() or value.is_complex()):
            return None
        return value.detach().clone().requires_grad_().view_as(value)

    return nested.replace(inputs, leaf)
