"""A short training run of the token refiner on moving shapes, and how much better than interpolation it then is (spec 9, 11).

The network starts as the interpolation itself: its last layer is zero. Clips are shrunk to `size` pixels and cut into patches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ported.interp.corruption import Corruption, corrupt_tokens
from ported.interp.denoisers import VideoTokenInterpLevelDenoiser
from ported.interp.draws import Draws
from ported.interp.masks import nested_masks, nested_masks_from_base
from ported.interp.patches import patchify
from ported.interp.refiners import TokenRefiner
from ported.interp.sampling import Sampling, refine
from ported.interp.schedules import uniform_indices
from ported.interp.temporal import interpolate
from ported.interp.toy_data import moving_shapes
from ported.interp.training import AdamW, MovingAverage, Objective, trainable, train_step

# Given keyframes are exact, nothing pulls a refined frame back to the interpolation (spec 10.2, storyboard).
STORYBOARD = Sampling(conf_anchor=0.95, soft_clamp=False, clamp_policy="all_anchors")


@dataclass(frozen=True)
class Shape:
    """What a refiner is made for. `size`: pixels of its training clips; colours are in [0, 1]."""

    patch_size: int = 4
    levels: int = 4
    keyframes: int = 4
    frames: int = 16
    size: int = 16
    d_model: int = 96
    n_layers: int = 3
    n_heads: int = 4
    d_ff: int = 192
    d_cond: int = 8

    @property
    def data_dim(self) -> int:
        return 3 * self.patch_size**2


@dataclass(frozen=True)
class Budget:
    """How long to learn. Clips `first`, `first + 1`, … of the data are used once each."""

    steps: int = 400
    batch: int = 16
    lr: float = 2e-3
    seed: int = 0
    first: int = 100_000


@dataclass
class Run:
    """A trained refiner: the average of its weights over the run, and the loss of every step."""

    model: VideoTokenInterpLevelDenoiser
    shape: Shape
    losses: list[float] = field(default_factory=list)


def make_model(shape: Shape) -> VideoTokenInterpLevelDenoiser:
    """A refiner that changes nothing yet."""
    sizes = {k: v for k, v in asdict(shape).items() if k in ("d_model", "n_layers", "n_heads", "d_ff", "d_cond")}
    model = VideoTokenInterpLevelDenoiser(shape.data_dim, shape.levels, 3, text_dim=1, **sizes)
    torch.nn.init.zeros_(model.out.weight)
    torch.nn.init.zeros_(model.out.bias)
    return model


def clips(first: int, count: int, shape: Shape, seed: int = 0) -> Tensor:
    """Tokens `(count, t, n, d)` of clips of moving shapes."""
    made = torch.stack([moving_shapes(first + i, shape.frames, 32, seed) for i in range(count)])
    small = F.interpolate(made.flatten(0, 1), size=(shape.size,) * 2, mode="bilinear", align_corners=False)
    return patchify(small.unflatten(0, (count, shape.frames)), shape.patch_size)[0]


def train(shape: Shape, budget: Budget, say: Callable[[int, float], None] = lambda step, loss: None) -> Run:
    """Train from level to level: from the interpolation of few keyframes to that of the next finer level."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(budget.seed)
        model = make_model(shape)
    rows = shape.size // shape.patch_size
    refiner, draws = TokenRefiner(model, None, (rows, rows)), Draws.seeded(budget.seed, budget.seed + 1)
    parameters = trainable(model)
    optimiser, average = AdamW(parameters.values(), budget.lr), MovingAverage(parameters.values(), 0.98)
    options = Corruption(mode="dist", student_replace_prob=0.0)
    objective, run = Objective(levels=shape.levels), Run(model, shape)
    for step in range(budget.steps):
        for group in optimiser.inner.param_groups:
            group["lr"] = budget.lr * min(1.0, (step + 1) / 20) * (1 - step / budget.steps)
        z0 = clips(budget.first + step * budget.batch, budget.batch, shape, budget.seed)
        masks = nested_masks(len(z0), shape.frames, shape.keyframes, shape.levels, draws, "geom")
        batch = corrupt_tokens(z0, draws, shape.keyframes, shape.levels, options, True, *masks)
        prediction, _ = train_step(refiner, z0, batch, objective, parameters, optimiser, average)
        run.losses.append(prediction.loss.item())
        say(step, run.losses[-1])
    with torch.no_grad():
        for parameter, kept in zip(parameters.values(), average.shadow, strict=True):
            parameter.copy_(kept)
    model.eval()
    return run


@torch.no_grad()
def compare(run: Run, count: int = 32, first: int = 0, seed: int = 0) -> tuple[float, float]:
    """Mean squared error of linear interpolation, and of the refiner, on frames between keyframes of clips that were never trained on."""
    shape = run.shape
    z0, draws = clips(first, count, shape, seed), Draws.seeded(seed + 7, seed + 8)
    idx = uniform_indices(count, shape.frames, shape.keyframes, draws)
    masks, _ = nested_masks_from_base(idx, shape.frames, shape.levels, draws, "geom")
    start = interpolated(z0, idx)
    rows = shape.size // shape.patch_size
    refined = refine(TokenRefiner(run.model, None, (rows, rows)), start, masks, STORYBOARD)
    between = ~masks[:, shape.levels]
    errors = [(clip - z0)[between].square().mean().item() for clip in (start, refined)]
    return errors[0], errors[1]


def interpolated(z0: Tensor, idx: Tensor) -> Tensor:
    """Tokens `(b, t, n, d)` between the keyframes `(b, K)` of a clip, token by token."""
    tokens, rows = z0.shape[2], torch.arange(len(z0))[:, None]
    values = z0[rows, idx].transpose(1, 2).flatten(0, 1)
    made = interpolate(idx.repeat_interleave(tokens, dim=0), values, z0.shape[1])
    return made.unflatten(0, (-1, tokens)).transpose(1, 2)
