"""Faults of poses, audio and the reference picture (spec B07 to B13, B34, B19)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ported.echomimic import pipeline, poses, sound
from ported.echomimic.blocks import DenoiserBlock
from ported.echomimic.build import Networks
from ported.echomimic.faults.record import PortFault, modules_of, patch, patched, recast


def with_policy(bounds: poses.Bounds, ref_width: int | None) -> Any:
    """The same drawing under another policy."""
    draw = poses.draw_maps

    def drawn(found: list[poses.Pose], width: int, height: int, policy: Any = None) -> Tensor:
        return draw(found, width, height, poses.Policy(bounds, ref_width))

    return patch(poses, "draw_maps", drawn)


@contextmanager
def shift_one(networks: Networks) -> Iterator[None]:
    """One frame is missing: every later one comes one early, the last stands twice."""
    draw = poses.draw_maps

    def drawn(found: list[poses.Pose], width: int, height: int, policy: Any = None) -> Tensor:
        return draw([found[0], *found[2:], found[-1]], width, height, policy)

    with patched(poses, "draw_maps", drawn):
        yield


def transposed_canvas(width: int, height: int) -> tuple[int, int, int]:
    return width, height, 3


@contextmanager
def maps_shifted(networks: Networks) -> Iterator[None]:
    """Pose maps one frame early inside a request."""
    scale = pipeline.scaled_maps
    with patched(pipeline, "scaled_maps", lambda maps: scale(torch.cat([maps[:1], maps[2:], maps[-1:]]))):
        yield


def maps_bgr(maps: Tensor) -> Tensor:
    return poses.scale_maps(maps.flip(-1))


def maps_not_divided(maps: Tensor) -> Tensor:
    return maps.permute(0, 3, 1, 2).float()


def default_fps(features: Tensor, fps: float) -> Tensor:
    return sound.frame_windows(features, 25)


@contextmanager
def audio_dropped(networks: Networks) -> Iterator[None]:
    """The denoiser is given silence."""
    conditions = pipeline.conditions

    def silent(job: pipeline.Job, window: list[int]) -> tuple[Tensor, Tensor]:
        audio, pose = conditions(job, window)
        return torch.zeros_like(audio), pose

    with patched(pipeline, "conditions", silent):
        yield


class _UnweighedAudio(DenoiserBlock):
    def weigh_audio(self, attended: Tensor) -> Tensor:
        return attended


@contextmanager
def audio_ratio_one(networks: Networks) -> Iterator[None]:
    """Audio attention counts once instead of three times."""
    with recast(modules_of(networks.denoising_unet, DenoiserBlock), _UnweighedAudio):
        yield


@contextmanager
def resize_twice(networks: Networks) -> Iterator[None]:
    """The picture is resized with bicubic before the pipeline resizes it with Lanczos."""
    right = pipeline.reference_tensor

    def twice(picture: Any, width: int, height: int) -> Tensor:
        image = Image.fromarray(np.asarray(picture)).convert("RGB").resize((width, height))
        return right(np.asarray(image), width, height)

    with patched(pipeline, "reference_tensor", twice):
        yield


@contextmanager
def range_0_1(networks: Networks) -> Iterator[None]:
    """The picture goes to the VAE in [0, 1]."""
    right = pipeline.reference_tensor
    with patched(pipeline, "reference_tensor", lambda *args: (right(*args) + 1) / 2):
        yield


def not_scaled(networks: Networks, reference: Tensor) -> Tensor:
    return pipeline.posterior_mean(networks, reference)


def sampled(networks: Networks, reference: Tensor) -> Tensor:
    return networks.vae.encode(reference).latent_dist.sample(torch.Generator().manual_seed(0))


FAULTS = (
    PortFault("pose_frame_skipped", "B07", "V7", "a pose outside the canvas is left out", with_policy("skip", 800)),
    PortFault("pose_file_missing", "B07", "V7", "a missing pose moves the later ones up", shift_one),
    PortFault("pose_shift_one", "B07", "V7", "pose maps one frame early", maps_shifted),
    PortFault("pose_ref_w", "B08", "C6", "hands drawn at the smaller side instead of 800", with_policy("crop", None)),
    PortFault(
        "pose_canvas_transposed", "B09", "P3", "canvas with rows and columns exchanged", patch(poses, "canvas_shape", transposed_canvas)
    ),
    PortFault("pose_bounds_clamped", "B10", "C6", "a drawing squeezed into the canvas", with_policy("clamp", 800)),
    PortFault("pose_bgr", "B11", "C7", "pose maps with red and blue exchanged", patch(pipeline, "scaled_maps", maps_bgr)),
    PortFault(
        "pose_not_divided", "B11", "C8", "pose maps not divided by 255", patch(pipeline, "scaled_maps", maps_not_divided)
    ),
    PortFault("audio_fps", "B12", "C5", "audio windows for 25 frames a second", patch(pipeline, "audio_windows", default_fps)),
    PortFault("audio_dropped", "B13", "N5", "audio replaced by zeros", audio_dropped),
    PortFault("audio_ratio_1", "B13", "N5", "audio attention not weighted by 3", audio_ratio_one),
    PortFault("ref_resize_twice", "B34", "C6", "picture resized twice", resize_twice),
    PortFault("ref_range_0_1", "B19", "C8", "picture in [0, 1]", range_0_1),
    PortFault("ref_latent_not_scaled", "B19", "C10", "reference latent not scaled", patch(pipeline, "encode_reference", not_scaled)),
    PortFault("ref_posterior_sampled", "B19", "C9", "reference latent sampled", patch(pipeline, "encode_reference", sampled)),
)  # fmt: skip
