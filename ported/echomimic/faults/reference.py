"""Faults of banks and guidance (spec B14 to B20, B35)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ported.echomimic import pipeline
from ported.echomimic.blocks import DenoiserBlock
from ported.echomimic.build import Networks
from ported.echomimic.faults.record import PortFault, modules_of, patch, patched, recast


class _AllSeeReference(DenoiserBlock):
    def self_attention(self, hidden_states: Tensor, bank: Tensor | None, guided: bool) -> Tensor:
        return super().self_attention(hidden_states, bank, False)


@contextmanager
def uncond_sees_reference(networks: Networks) -> Iterator[None]:
    """The unconditional rows see the reference too."""
    with recast(modules_of(networks.denoising_unet, DenoiserBlock), _AllSeeReference):
        yield


def conditional_first(part: Tensor) -> Tensor:
    return torch.cat((part, torch.zeros_like(part)))


def guidance_swapped(both: Tensor, scale: float) -> Tensor:
    conditional, unconditional = both.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def keeps(audio: bool) -> Any:
    """Conditions whose unconditional half keeps the audio or the pose."""

    def conditions(job: pipeline.Job, window: list[int]) -> tuple[Tensor, Tensor]:
        sound, pose = job.audio[:, window], job.pose[:, :, window]
        if audio:
            return sound.repeat(2, 1, 1, 1), pipeline.with_zeros(pose)
        return pipeline.with_zeros(sound), pose.repeat(2, 1, 1, 1, 1)

    return patch(pipeline, "conditions", conditions)


def executed(path: str) -> tuple[int, str]:
    """Down, mid, up: the order in which blocks run."""
    return {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}[path.partition(".")[0]], path


@contextmanager
def bank_order(networks: Networks) -> Iterator[None]:
    """The writer's blocks in the order in which they ran, the reader's in the order of the search."""
    right = pipeline.block_order

    def order(network: Any) -> list[str]:
        found = right(network)
        if network is not networks.reference_unet:
            return found
        widths = dict(network.widths_in_order())
        return sorted(found, key=lambda path: (-widths[path], *executed(path)))

    with patched(pipeline, "block_order", order):
        yield


@contextmanager
def bank_empty(networks: Networks) -> Iterator[None]:
    """The banks are not handed over."""
    with patched(pipeline, "hand_over", lambda *args: {}):
        yield


@contextmanager
def bank_appended(networks: Networks) -> Iterator[None]:
    """The reference network runs at every step, and its banks are never emptied."""
    kept: dict[str, list[Tensor]] = {}
    latents: list[Tensor] = []
    step = pipeline.denoise_step

    def remember(job: pipeline.Job, latent: Tensor) -> dict[str, Tensor]:
        latents.append(latent)
        written = networks.reference_unet(latent, torch.tensor(0), kept)
        arguments = (written, job.guided, pipeline.bank_dtype(job))
        return pipeline.hand_over(networks.reference_unet, networks.denoising_unet, *arguments)

    def again(job: pipeline.Job, x: Tensor, timestep: Tensor, number: int, windows: Any) -> Tensor:
        if number:
            job.banks = pipeline.read_reference(job, latents[-1])
        return step(job, x, timestep, number, windows)

    with patched(pipeline, "read_reference", remember), patched(pipeline, "denoise_step", again):
        yield


@contextmanager
def ref_timestep(networks: Networks) -> Iterator[None]:
    """The reference network runs at the first time step of the denoiser."""
    network = networks.reference_unet
    forward = network.forward
    with patched(network, "forward", lambda latent, timestep, sink=None: forward(latent, torch.tensor(999), sink)):
        yield


@contextmanager
def bank_dtype(networks: Networks) -> Iterator[None]:
    """Banks keep the model's dtype."""
    with patched(pipeline, "bank_dtype", lambda job: job.networks.dtype):
        yield


FAULTS = (
    PortFault("uncond_sees_reference", "B14", "C1", "unconditional rows see the reference", uncond_sees_reference),
    PortFault("cfg_halves_swapped", "B15", "C1", "conditions before zeros", patch(pipeline, "with_zeros", conditional_first)),
    PortFault("guidance_swapped", "B15", "C1", "halves exchanged at the guidance", patch(pipeline, "guide", guidance_swapped)),
    PortFault("uncond_keeps_audio", "B16", "C1", "unconditional half keeps the audio", keeps(audio=True)),
    PortFault("uncond_keeps_pose", "B16", "C1", "unconditional half keeps the pose", keeps(audio=False)),
    PortFault("bank_order", "B17", "C5", "banks paired in different orders", bank_order),
    PortFault("bank_empty", "B18", "K3", "banks not handed over", bank_empty),
    PortFault("bank_appended_every_step", "B18", "K4", "banks grow with every step", bank_appended),
    PortFault("ref_timestep", "B19", "T6", "reference network at the denoiser's time step", ref_timestep),
    PortFault("standard_cfg_le_1", "B20", "N5", "overlapping windows added up, not averaged", patch(pipeline, "average", lambda total, count: total)),
    PortFault("bank_dtype", "B35", "N4", "banks not rounded to float16", bank_dtype),
)  # fmt: skip
