"""Faults of sampling and training (spec 14: IF-26, IF-32, X)."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ported.interp import sampling, training
from ported.interp.corruption import Corrupted
from ported.interp.faults.record import Port, PortFault, patched, swap
from ported.interp.sampling import Sampling
from ported.interp.training import AdamW, MovingAverage, Objective

_init = AdamW.__init__
_update = MovingAverage.update
_step = AdamW.step


def mask_of_this_level(masks_levels: Tensor, level: int, options: Sampling) -> Tensor:
    """The hard clamp holds what is kept at this level: interpolated frames are frozen."""
    return masks_levels[:, level]


def exhausted(self: AdamW, parameters: Iterable[nn.Parameter], lr: float = 1e-4, weight_decay: float = 1e-4) -> None:
    """A failed first constructor has used up the generator of parameters."""
    given = iter(parameters)
    list(given)
    _init(self, given, lr, weight_decay)


def annealed_with_one_level(batch: Corrupted, objective: Objective) -> tuple[Tensor | None, Tensor | None]:
    """The confidence of s − 1 is annealed with s."""
    if not objective.with_confidence:
        return None, None
    conf_s = training.anneal_confidence(batch.conf_s, batch.s_idx, objective.levels, objective.anneal)
    if objective.mode != "adj" or batch.conf_prev is None:
        return conf_s, None
    return conf_s, training.anneal_confidence(batch.conf_prev, batch.s_idx, objective.levels, objective.anneal)


def loss_by_count(delta: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Divided by the number of values instead of the sum of weights."""
    squared = (delta - target).square().sum(dim=-1)
    return (squared * weights).mean() / delta.shape[-1]


@contextmanager
def average_before_step(port: Port) -> Iterator[None]:
    """The average sees the parameters before the step."""

    def step_late(self: AdamW) -> None:
        pending.append(self)

    def update_first(self: MovingAverage) -> None:
        _update(self)
        while pending:
            _step(pending.pop())

    pending: list[AdamW] = []
    with patched(AdamW, "step", step_late), patched(MovingAverage, "update", update_first):
        yield


def coupled(self: AdamW, parameters: Iterable[nn.Parameter], lr: float = 1e-4, weight_decay: float = 1e-4) -> None:
    """Weight decay goes through the gradient."""
    self.parameters = list(parameters)
    self.inner = torch.optim.Adam(self.parameters, lr=lr, weight_decay=weight_decay)


def confidences_of_one_level(
    mask_s: Tensor, mask_prev: Tensor | None, level: int, options: Sampling
) -> tuple[Tensor | None, Tensor | None]:
    """The finer confidence is annealed with the coarser level."""
    if not options.with_confidence:
        return None, None
    coarser = sampling.level_confidence(mask_s, level, options)
    return coarser, None if mask_prev is None else sampling.level_confidence(mask_prev, level, options)


FAULTS: tuple[PortFault, ...] = (
    PortFault("optimiser_exhausted", "IF-26", "W2", "optimiser given a generator twice", swap(AdamW, "__init__", exhausted), "training", "error"),
    PortFault("clamp_mask_of_level", "IF-32", "V8", "hard clamp holds the frames of each level", swap(sampling, "clamp_mask", mask_of_this_level), "sampling"),
    PortFault("finer_annealed_with_coarser", "X", "T6", "finer confidence annealed with the coarser level", swap(training, "annealed", annealed_with_one_level), "training"),
    PortFault("sampled_finer_annealed_with_coarser", "X", "T6", "the same while sampling", swap(sampling, "level_confidences", confidences_of_one_level), "sampling"),
    PortFault("loss_by_count", "X", "N7", "loss divided by the number of values", swap(training, "weighted_loss", loss_by_count), "training"),
    PortFault("average_before_step", "X", "T7", "average updated before the step", average_before_step, "training"),
    PortFault("weight_decay_coupled", "X", "T4", "weight decay through the gradient", swap(AdamW, "__init__", coupled), "training"),
)  # fmt: skip
