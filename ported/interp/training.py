"""Objective and step with torch's own optimiser (spec 9)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ported.interp.conditioning import anneal_confidence
from ported.interp.corruption import Corrupted
from ported.interp.refiners import Refiner


@dataclass(frozen=True)
class Objective:
    """mode adj or x0, number of levels, whether confidences are used, and the weights of errors."""

    mode: str = "adj"
    levels: int = 4
    with_confidence: bool = True
    anneal: str = "linear"
    w_anchor: float = 0.3
    w_missing: float = 1.0


class Prediction(NamedTuple):
    """One forward with everything the loss is made of."""

    conf_s: Tensor | None
    conf_prev: Tensor | None
    target: Tensor
    delta: Tensor
    weights: Tensor
    loss: Tensor


def error_weights(certainty: Tensor, w_anchor: float, w_missing: float) -> Tensor:
    """Weights of errors from certainty in [0, 1] or a mask."""
    return torch.add(w_missing, certainty.float(), alpha=w_anchor - w_missing)


def weighted_loss(delta: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of squared errors."""
    squared = (delta - target).square().sum(dim=-1)
    return torch.sum(squared * weights) / (weights.sum() * delta.shape[-1] + 1e-8)


def annealed(batch: Corrupted, objective: Objective) -> tuple[Tensor | None, Tensor | None]:
    """Confidences of level s and of s − 1, each annealed with its own level."""
    if not objective.with_confidence:
        return None, None
    conf_s = anneal_confidence(batch.conf_s, batch.s_idx, objective.levels, objective.anneal)
    if objective.mode != "adj" or batch.conf_prev is None:
        return conf_s, None
    return conf_s, anneal_confidence(batch.conf_prev, batch.s_idx - 1, objective.levels, objective.anneal)


def predict(refiner: Refiner, z0: Tensor, batch: Corrupted, objective: Objective) -> Prediction:
    """Run the refiner and weigh its errors."""
    adjacent = objective.mode == "adj"
    conf_s, conf_prev = annealed(batch, objective)
    mask_prev = batch.mask_prev if adjacent else None
    target = (batch.z_prev if adjacent else z0) - batch.z_s
    delta = refiner.delta(batch.z_s, batch.s_idx, batch.mask_s, mask_prev, conf_s, conf_prev)
    confidences = (conf_s, conf_prev) if objective.with_confidence else (batch.mask_s, mask_prev)
    weights = error_weights(confidences[int(adjacent)], objective.w_anchor, objective.w_missing)
    return Prediction(conf_s, conf_prev, target, delta, weights, weighted_loss(delta, target, weights))


class AdamW:
    """torch's AdamW over a list of parameters; gradients are forgotten after a step."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float = 1e-4, weight_decay: float = 1e-4) -> None:
        self.parameters = list(parameters)
        self.inner = torch.optim.AdamW(self.parameters, lr=lr, weight_decay=weight_decay, foreach=True)

    def step(self) -> None:
        """One update."""
        self.inner.step()
        self.inner.zero_grad(set_to_none=True)


class MovingAverage:
    """Exponential moving average of parameters, updated all at once."""

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float = 0.999) -> None:
        self.parameters, self.decay = list(parameters), decay
        self.shadow = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Move toward the parameters."""
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.parameters], 1 - self.decay)


def trainable(*modules: nn.Module | None) -> dict[str, nn.Parameter]:
    """Parameters that learn, by name."""
    named = [item for m in modules if m is not None for item in m.named_parameters()]
    return {name: p for name, p in named if p.requires_grad}


def gradients(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Gradients that there are, by name."""
    return {name: p.grad for name, p in parameters.items() if p.grad is not None}


def train_step(
    refiner: Refiner,
    z0: Tensor,
    batch: Corrupted,
    objective: Objective,
    parameters: dict[str, nn.Parameter],
    optimiser: AdamW,
    average: MovingAverage,
) -> tuple[Prediction, dict[str, Tensor]]:
    """One iteration; returns the forward and the gradients that the optimiser saw."""
    with torch.enable_grad():
        prediction = predict(refiner, z0, batch, objective)
        prediction.loss.backward()
    found = {name: grad.clone() for name, grad in gradients(parameters).items()}
    optimiser.step()
    average.update()
    return prediction, found
