"""Faults of windows, motion modules, latents and solver (spec B21 to B29)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from ported.echomimic import pipeline
from ported.echomimic.blocks import FramePositions, FrameResnet, MotionTransformer
from ported.echomimic.build import Networks
from ported.echomimic.faults.record import PortFault, modules_of, patch, patched, recast
from ported.echomimic.settings import SCHEDULER


def open_windows(length: int, size: int, overlap: int) -> list[list[int]]:
    """Windows that stop where the last one fits, so that frames behind it are in none."""
    if length <= size:
        return [list(range(length))]
    return [list(range(start, start + size)) for start in range(0, length - size + 1, size - overlap)]


def not_shifted(windows: list[list[int]], step: int, length: int) -> list[list[int]]:
    return windows


@contextmanager
def motion_not_loaded(networks: Networks) -> Iterator[None]:
    """The motion file's keys matched nothing: the output projections are still zero."""
    found = [module.proj_out for module in modules_of(networks.denoising_unet, MotionTransformer)]
    kept = [(layer.weight.data, layer.bias.data) for layer in found]
    for layer in found:
        layer.weight.data, layer.bias.data = torch.zeros_like(layer.weight), torch.zeros_like(layer.bias)
    try:
        yield
    finally:
        for layer, (weight, bias) in zip(found, kept, strict=True):
            layer.weight.data, layer.bias.data = weight, bias


class _NormOverFrames(nn.GroupNorm):
    def forward(self, input: Tensor) -> Tensor:
        clip = input.transpose(0, 1)[None]  # all rows of a pass at once
        return super().forward(clip)[0].transpose(0, 1)


@contextmanager
def groupnorm_over_frames(networks: Networks) -> Iterator[None]:
    """GroupNorm of the ResNet blocks takes its statistics over all frames of a window."""
    denoiser = networks.denoising_unet
    norms = [norm for block in modules_of(denoiser, FrameResnet) for norm in (block.norm1, block.norm2)]
    norms.append(denoiser.conv_norm_out)
    with recast(norms, _NormOverFrames):
        yield


FIRST = threading.local()  # the first frame of the window that is computed


class _AbsolutePositions(FramePositions):
    def rows(self, frames: int) -> Tensor:
        index = (torch.arange(frames) + getattr(FIRST, "frame", 0)) % self.pe.shape[1]
        return self.pe[:, index]


class _NoPositions(FramePositions):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states


class _SwappedPositions(FramePositions):
    def rows(self, frames: int) -> Tensor:
        table = self.pe[:, :frames]
        return table.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)


@contextmanager
def pe_absolute(networks: Networks) -> Iterator[None]:
    """Positions are frame numbers of the video instead of places in the window."""
    right = pipeline.window_velocity

    def noted(job: pipeline.Job, latents: Tensor, timestep: Tensor, window: list[int]) -> Tensor:
        FIRST.frame = window[0]
        return right(job, latents, timestep, window)

    found = modules_of(networks.denoising_unet, FramePositions)
    with recast(found, _AbsolutePositions), patched(pipeline, "window_velocity", noted):
        yield


def positions(cls: type) -> Any:
    """Motion modules with another encoding."""
    return lambda networks: recast(modules_of(networks.denoising_unet, FramePositions), cls)


def solver(**changes: Any) -> Any:
    """The library's solver, configured otherwise."""

    @contextmanager
    def inject(networks: Networks) -> Iterator[None]:
        kept = networks.scheduler
        networks.scheduler = DDIMScheduler.from_config({**SCHEDULER, **changes})
        try:
            yield
        finally:
            networks.scheduler = kept

    return inject


class _NextTimestep(DDIMScheduler):
    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **kwargs: Any) -> Any:
        """Step to the next entry of the list instead of t − 1000 // N."""
        later = self.timesteps[self.timesteps < timestep]
        target = int(later.max()) if later.numel() else -1
        kept, self.num_inference_steps = self.num_inference_steps, _Ratio(1000, int(timestep) - target)
        try:
            return super().step(model_output, timestep, sample, **kwargs)
        finally:
            self.num_inference_steps = kept


class _Ratio(int):
    """A number of steps that divides `total` to exactly `quotient`."""

    def __new__(cls, total: int, quotient: int) -> _Ratio:
        made = super().__new__(cls, max(1, total // quotient))
        made.quotient = quotient
        return made

    def __rfloordiv__(self, other: int) -> int:
        return self.quotient


@contextmanager
def next_timestep(networks: Networks) -> Iterator[None]:
    """The previous time step is the next one of the list."""
    with recast([networks.scheduler], _NextTimestep):
        yield


def not_unscaled(networks: Networks, latents: Tensor) -> Tensor:
    return latents


@contextmanager
def shared_state(networks: Networks) -> Iterator[None]:
    """Two requests share banks and the solver: what the later one wrote is what both read."""
    shared: dict[str, Tensor] = {}
    read = pipeline.read_reference

    def overwrite(job: pipeline.Job, latent: Tensor) -> dict[str, Tensor]:
        shared.update(read(job, latent))
        return shared

    with patched(pipeline, "read_reference", overwrite):
        yield


FAULTS = (
    PortFault("windows_not_closed", "B21", "V9", "frames at the end in no window", patch(pipeline, "closed_windows", open_windows)),
    PortFault("motion_not_loaded", "B22", "W2", "motion modules not loaded", motion_not_loaded),
    PortFault("groupnorm_over_frames", "B23", "N7", "GroupNorm over all frames", groupnorm_over_frames),
    PortFault("pe_absolute", "B24", "P2", "positions are frame numbers", pe_absolute),
    PortFault("pe_missing", "B24", "N5", "no positions in the motion modules", positions(_NoPositions)),
    PortFault("pe_swapped", "B24", "P1", "sine and cosine exchanged", positions(_SwappedPositions)),
    PortFault("windows_not_shifted", "B25", "V9", "windows do not move from step to step", patch(pipeline, "windows_at", not_shifted)),
    PortFault("latents_not_clamped", "B26", "C8", "initial latents not clamped", patch(pipeline, "initial_latents", lambda noise: noise)),
    PortFault("leading_spacing", "B27", "T5", "leading time steps", solver(timestep_spacing="leading")),
    PortFault("no_zero_snr", "B27", "T5", "betas not rescaled to zero SNR", solver(rescale_betas_zero_snr=False)),
    PortFault("epsilon_prediction", "B27", "T8", "velocity taken for noise", solver(prediction_type="epsilon")),
    PortFault("prev_next_timestep", "B27", "T4", "steps to the next entry of the list", next_timestep),
    PortFault("final_alpha", "B27", "T5", "the last step ends at the first training alpha", solver(set_alpha_to_one=False)),
    PortFault("latent_not_unscaled", "B28", "C10", "latents not unscaled before decoding", patch(pipeline, "unscale", not_unscaled)),
    PortFault("shared_state", "B29", "K4", "requests share banks", shared_state),
)  # fmt: skip
