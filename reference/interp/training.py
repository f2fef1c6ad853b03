"""The objective and one training step (spec 9).

Precision: the loss is computed in the dtype of prediction and target, promoted with the float32 weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .conditioning import anneal_confidence
from .corruption import Corrupted
from .refiners import Refiner


@dataclass(frozen=True)
class Objective:
    """What is learned and how frames count. mode: adj (toward the next level) or x0 (toward the clean video)."""

    mode: str = "adj"
    levels: int = 4
    with_confidence: bool = True
    anneal: str = "linear"
    w_anchor: float = 0.3
    w_missing: float = 1.0


class Prediction(NamedTuple):
    """One forward of a batch: annealed confidences, target, what was predicted, the weights of its errors, the loss."""

    conf_s: Tensor | None
    conf_prev: Tensor | None
    target: Tensor
    delta: Tensor
    weights: Tensor
    loss: Tensor


def error_weights(certainty: Tensor, w_anchor: float, w_missing: float) -> Tensor:
    """Weight of every frame or token: from w_missing at certainty 0 to w_anchor at 1; a bool mask chooses."""
    if certainty.dtype == torch.bool:
        return torch.where(certainty, w_anchor, w_missing)
    return w_missing + (w_anchor - w_missing) * certainty


def weighted_loss(delta: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """`Σ w Σ_d (δ − target)² / (Σ w · D + 1e-8)`."""
    squared = ((delta - target) ** 2).sum(dim=-1)
    return (squared * weights).sum() / (weights.sum() * delta.shape[-1] + 1e-8)


def predict(refiner: Refiner, z0: Tensor, batch: Corrupted, objective: Objective) -> Prediction:
    """Run the refiner on a corrupted batch and measure its error."""
    adjacent = objective.mode == "adj"
    conf_s = conf_prev = None
    if objective.with_confidence:
        conf_s = anneal_confidence(batch.conf_s, batch.s_idx, objective.levels, objective.anneal)
        if adjacent and batch.conf_prev is not None:
            conf_prev = anneal_confidence(batch.conf_prev, batch.s_idx - 1, objective.levels, objective.anneal)
    mask_prev = batch.mask_prev if adjacent else None
    wanted = batch.z_prev if adjacent else z0
    target = wanted - batch.z_s
    delta = refiner.delta(batch.z_s, batch.s_idx, batch.mask_s, mask_prev, conf_s, conf_prev)
    if objective.with_confidence:
        certainty = conf_prev if adjacent else conf_s
    else:
        certainty = mask_prev if adjacent else batch.mask_s
    weights = error_weights(certainty, objective.w_anchor, objective.w_missing)
    return Prediction(conf_s, conf_prev, target, delta, weights, weighted_loss(delta, target, weights))


@dataclass
class AdamW:
    """AdamW written out: decoupled weight decay, then the bias-corrected step."""

    parameters: Sequence[nn.Parameter]
    lr: float = 1e-4
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    steps: int = 0
    first: list[Tensor] = field(default_factory=list)
    second: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.parameters = list(self.parameters)
        self.first = [torch.zeros_like(p) for p in self.parameters]
        self.second = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient, then forget the gradients."""
        self.steps += 1
        b1, b2 = self.betas
        for p, m, v in zip(self.parameters, self.first, self.second, strict=True):
            if p.grad is None:
                continue
            p.mul_(1 - self.lr * self.weight_decay)
            m.mul_(b1).add_(p.grad, alpha=1 - b1)
            v.mul_(b2).add_(p.grad * p.grad, alpha=1 - b2)
            denominator = (v / (1 - b2**self.steps)).sqrt() + self.eps
            p.sub_(self.lr / (1 - b1**self.steps) * m / denominator)
            p.grad = None


@dataclass
class MovingAverage:
    """`shadow = decay · shadow + (1 − decay) · p` over the trainable parameters, in parameter order."""

    parameters: Sequence[nn.Parameter]
    decay: float = 0.999
    shadow: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.parameters = list(self.parameters)
        self.shadow = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Move the shadow toward the parameters."""
        for shadow, p in zip(self.shadow, self.parameters, strict=True):
            shadow.mul_(self.decay).add_(p, alpha=1 - self.decay)


def trainable(*modules: nn.Module | None) -> dict[str, nn.Parameter]:
    """Parameters that learn, by name, in parameter order."""
    found: dict[str, nn.Parameter] = {}
    for module in modules:
        if module is not None:
            found |= {name: p for name, p in module.named_parameters() if p.requires_grad}
    return found


def gradients(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Gradients by name; parameters without one are left out."""
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
    """Forward, backward, optimiser step, moving average; returns the forward and the gradients before the step."""
    with torch.enable_grad():
        prediction = predict(refiner, z0, batch, objective)
        prediction.loss.backward()
    found = {name: grad.clone() for name, grad in gradients(parameters).items()}
    optimiser.step()
    average.update()
    return prediction, found
