"""Faults of the image condition: mask, condition video, condition latents (spec D20-D30 and the list below).

All but the pixel faults replace `WanImageToVideoPipeline.prepare_latents` on the class while the run lasts.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline
from diffusers.pipelines.wan import pipeline_wan_i2v
from torch import Tensor

from ported.wan import image
from ported.wan.faults.record import Port, PortFault, patched

Prepared = tuple[Tensor, Tensor]
MASK = 4  # channels of the mask, in front of the 16 latent channels


@contextmanager
def prepared(change: Callable[[Tensor, Tensor], Prepared]) -> Iterator[None]:
    """Apply `change(latents, condition)` to what `prepare_latents` returns: noise, and mask with condition latents."""
    prepare = WanImageToVideoPipeline.prepare_latents

    def prepare_latents(self: WanImageToVideoPipeline, *args: Any, **kwargs: Any) -> Prepared:
        return change(*prepare(self, *args, **kwargs))

    with patched(WanImageToVideoPipeline, "prepare_latents", prepare_latents):
        yield


@contextmanager
def posterior_sampled(port: Port) -> Iterator[None]:
    """The condition is a sample of the VAE's posterior instead of its mode."""

    def retrieve_latents(encoder_output: Any, generator: Any = None, sample_mode: str = "sample") -> Tensor:
        return encoder_output.latent_dist.sample(generator or torch.Generator().manual_seed(0))

    with patched(pipeline_wan_i2v, "retrieve_latents", retrieve_latents):
        yield


@contextmanager
def noise_overwritten(port: Port) -> Iterator[None]:
    """The starting noise is overwritten by the condition latents."""

    def overwrite(latents: Tensor, condition: Tensor) -> Prepared:
        latents = condition[:, MASK:]
        return latents, condition

    with prepared(overwrite):
        yield


@contextmanager
def condition_not_normalised(port: Port) -> Iterator[None]:
    """The condition latents keep the VAE's own mean and standard deviation."""

    def undo(latents: Tensor, condition: Tensor) -> Prepared:
        config = port.vae.config
        mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std))
        raw = condition[:, MASK:] / (1.0 / std) + mean
        return latents, torch.cat([condition[:, :MASK], raw], dim=1)

    with prepared(undo):
        yield


@contextmanager
def pixels(port: Port, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Apply `change` to the preprocessed pictures `(n, 3, H, W)`."""
    cls = type(port.pipe.video_processor)
    preprocess = cls.preprocess

    def changed(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        return change(preprocess(self, *args, **kwargs))

    with patched(cls, "preprocess", changed):
        yield


@contextmanager
def pixels_normalised_twice(port: Port) -> Iterator[None]:
    """2x - 1 is applied to pixels that are in [-1, 1] already."""
    with pixels(port, lambda picture: 2 * picture - 1):
        yield


@contextmanager
def pixels_not_divided(port: Port) -> Iterator[None]:
    """0..255 is taken as if it were 0..1."""
    with pixels(port, lambda picture: 2 * (255 * (picture + 1) / 2) - 1):
        yield


@contextmanager
def colours_reversed(port: Port) -> Iterator[None]:
    """Blue, green, red."""
    with pixels(port, lambda picture: picture.flip(1)):
        yield


@contextmanager
def last_mask_all_channels(port: Port) -> Iterator[None]:
    """The last latent frame is marked known in all four sub-channels instead of the last one."""

    def mark(latents: Tensor, condition: Tensor) -> Prepared:
        condition[:, :MASK, -1] = 1
        return latents, condition

    with prepared(mark):
        yield


@contextmanager
def mask_inverted(port: Port) -> Iterator[None]:
    """0 = known."""

    def invert(latents: Tensor, condition: Tensor) -> Prepared:
        condition[:, :MASK] = 1 - condition[:, :MASK]
        return latents, condition

    with prepared(invert):
        yield


@contextmanager
def latents_before_mask(port: Port) -> Iterator[None]:
    """The 20 channels are latents, then mask."""
    with prepared(lambda latents, condition: (latents, torch.cat([condition[:, MASK:], condition[:, :MASK]], dim=1))):
        yield


@contextmanager
def mask_length_81(port: Port) -> Iterator[None]:
    """The mask is built for 81 frames whatever their number."""

    def rebuild(latents: Tensor, condition: Tensor) -> Prepared:
        batch, _, _, height, width = condition.shape
        known = torch.ones(batch, 1, 81, height, width)
        known[:, :, 1:80] = 0
        known = torch.cat([known[:, :, :1].repeat_interleave(4, dim=2), known[:, :, 1:]], dim=2)
        mask = known.view(batch, -1, 4, height, width).transpose(1, 2)
        return latents, torch.cat([mask, condition[:, MASK:]], dim=1)

    with prepared(rebuild):
        yield


@contextmanager
def vae_input(change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Apply `change` to the video `(b, 3, t, h, w)` that goes into the VAE."""
    encode = AutoencoderKLWan.encode

    def changed(self: AutoencoderKLWan, x: Tensor, return_dict: bool = True) -> Any:
        return encode(self, change(x), return_dict)

    with patched(AutoencoderKLWan, "encode", changed):
        yield


@contextmanager
def condition_video_zeroed(port: Port) -> Iterator[None]:
    """A wrong slice blanks the whole condition video."""

    def blank(video: Tensor) -> Tensor:
        video = video.clone()
        video[:, :, :] = 0
        return video

    with vae_input(blank):
        yield


@contextmanager
def last_frame_one_early(port: Port) -> Iterator[None]:
    """The last picture stands at frame F-2 instead of F-1."""

    def early(video: Tensor) -> Tensor:
        video = video.clone()
        video[:, :, -2], video[:, :, -1] = video[:, :, -1].clone(), 0
        return video

    with vae_input(early):
        yield


@contextmanager
def vae_input_bf16(port: Port) -> Iterator[None]:
    """The condition video is cast to the latent dtype of a bfloat16 run instead of the VAE's."""
    with vae_input(lambda video: video.bfloat16().to(video.dtype)):
        yield


@contextmanager
def last_image_squashed(port: Port) -> Iterator[None]:
    """A last image of another size is resized to the target, the library's way, instead of the official crop."""
    with patched(image, "match_last_image", lambda first, last: last):
        yield


@contextmanager
def size_floored_to_8(port: Port) -> Iterator[None]:
    """Sizes are floored to multiples of 8 pixels, which leaves half a patch."""
    with patched(image, "floor_to_grid", lambda side: int(side // 8) * 8):
        yield


_FLF = {"model_type": "flf2v"}
FAULTS: tuple[PortFault, ...] = (
    PortFault(
        "posterior_sampled", "D20", "C9", "VAE posterior sampled for the condition", posterior_sampled, "conditioning"
    ),
    PortFault(
        "noise_overwritten", "D21", "C5", "noise overwritten by condition latents", noise_overwritten, "conditioning"
    ),
    PortFault(
        "condition_not_normalised",
        "D22",
        "C10",
        "condition latents not normalised",
        condition_not_normalised,
        "conditioning",
    ),
    PortFault(
        "pixels_normalised_twice",
        "D23",
        "C8",
        "condition pixels normalised twice",
        pixels_normalised_twice,
        "conditioning",
    ),
    PortFault(
        "pixels_not_divided", "D23", "C8", "condition pixels 0..255 as float", pixels_not_divided, "conditioning"
    ),
    PortFault("colours_reversed", "B", "C7", "condition picture in BGR order", colours_reversed, "conditioning"),
    PortFault(
        "last_mask_all_channels",
        "D24",
        "C5",
        "last latent frame known in all four sub-channels",
        last_mask_all_channels,
        "conditioning",
        _FLF,
    ),
    PortFault(
        "condition_video_zeroed", "D25", "C5", "whole condition video zeroed", condition_video_zeroed, "conditioning"
    ),
    PortFault(
        "last_frame_one_early", "D25", "V8", "last picture at frame F-2", last_frame_one_early, "conditioning", _FLF
    ),
    PortFault(
        "mask_length_81",
        "D26",
        "C5",
        "mask length fixed to 81 frames",
        mask_length_81,
        "conditioning",
        {"not_frames": 81},
        "error",
    ),
    PortFault(
        "last_image_squashed",
        "D27",
        "C6",
        "last image of another size resized, not cropped as officially",
        last_image_squashed,
        "conditioning",
        {"model_type": "flf2v", "unequal_images": True},
    ),
    PortFault(
        "size_floored_to_8",
        "D29",
        "V5",
        "height and width floored to 8 instead of 16 pixels",
        size_floored_to_8,
        "conditioning",
        {"odd_latent": True},
        "shape",
    ),
    PortFault("vae_input_bf16", "D30", "N4", "condition video rounded to bfloat16", vae_input_bf16, "conditioning"),
    PortFault("mask_inverted", "D+", "C5", "mask inverted", mask_inverted, "conditioning"),
    PortFault(
        "latents_before_mask", "D+", "C5", "condition latents in front of the mask", latents_before_mask, "conditioning"
    ),
)
