"""Faults of one segment's generation: pictures, features, mask, condition, noise, texts, frames."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor

from ported.multikeyframe import worker
from ported.multikeyframe.faults.record import Port, PortFault, patched
from ported.wan import image
from ported.wan.faults import FAULTS as WAN

Switch = AbstractContextManager[None]
MASK = 4


def resized_with_antialias(port: Port) -> Switch:
    """Keyframes are resized with antialiasing."""

    def preprocess(self: Any, picture: Tensor, height: int, width: int, **_: Any) -> Tensor:
        return F.interpolate(image.batched(picture), size=(height, width), mode="bicubic", antialias=True)

    return patched(image.OfficialVideoProcessor, "preprocess", preprocess)


def keyframes_bgr(port: Port) -> Switch:
    """Keyframes are read as OpenCV gives them: blue first."""
    original = worker.read_pair
    return patched(worker, "read_pair", lambda task: tuple(picture.flip(-1) for picture in original(task)))


def last_features_missing(port: Port) -> Switch:
    """The features of the first picture stand for both."""
    original = port.pipe.encode_image
    return patched(port.pipe, "encode_image", lambda *args, **kwargs: original(*args, **kwargs)[[0, 0]])


def prepared(port: Port, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Switch:
    """Apply `change(noise, condition)` to what the pipeline prepares."""
    original = port.pipe.prepare_latents
    return patched(port.pipe, "prepare_latents", lambda *args, **kwargs: change(*original(*args, **kwargs)))


def masked(port: Port, change: Callable[[Tensor], None]) -> Switch:
    """Change the mask `(1, 4, t, h, w)` in place."""

    def apply(noise: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        condition = condition.clone()
        change(condition[:, :MASK])
        return noise, condition

    return prepared(port, apply)


def mask_of_81_frames(port: Port) -> Switch:
    """The mask is made for 81 frames and cut to the segment's: the mark of the last frame is cut off."""

    def unmark(mask: Tensor) -> None:
        length = 81
        row = torch.zeros(length + 3)
        row[:4], row[-1] = 1, 1
        mask[:] = row.view(-1, 4).T[None, :, : mask.shape[2], None, None]

    return masked(port, unmark)


def first_mark_not_expanded(port: Port) -> Switch:
    """The first frame's mark is not expanded over its four sub-frames."""
    return masked(port, lambda mask: mask[:, 1:, 0].zero_())


def last_mark_in_first_sub_frame(port: Port) -> Switch:
    """The last frame's mark stands at sub-frame 0 of the last latent frame instead of sub-frame 3."""

    def move(mask: Tensor) -> None:
        mask[:, 0, -1], mask[:, 3, -1] = mask[:, 3, -1].clone(), 0

    return masked(port, move)


def condition_video_black(port: Port) -> Switch:
    """The frames between the keyframes are black (−1) instead of grey (0)."""
    original = AutoencoderKLWan.encode

    def encode(self: AutoencoderKLWan, x: Tensor, return_dict: bool = True) -> Any:
        x = x.clone()
        x[:, :, 1:-1] = -1
        return original(self, x, return_dict)

    return patched(AutoencoderKLWan, "encode", encode)


def last_keyframe_encoded_alone(port: Port) -> Switch:
    """The last latent of the condition is the last keyframe encoded by itself, not behind the grey frames."""
    original = AutoencoderKLWan._encode

    def _encode(self: AutoencoderKLWan, x: Tensor) -> Tensor:
        moments = original(self, x)
        alone = original(self, x[:, :, -1:])
        return torch.cat([moments[:, :, :-1], alone], dim=2)

    return patched(AutoencoderKLWan, "_encode", _encode)


def one_generator(port: Port) -> Switch:
    """One generator runs on over the segments instead of a new one for each seed."""
    shared = torch.Generator()

    def draw_noise(shape: tuple[int, ...], seed: int) -> Tensor:
        if shared.initial_seed() not in range(seed - 8, seed + 1):
            shared.manual_seed(seed)
        return torch.randn(shape, generator=shared, dtype=torch.float32)

    return patched(worker, "draw_noise", draw_noise)


def noise_half(port: Port) -> Switch:
    """Noise is drawn in bfloat16."""

    def draw_noise(shape: tuple[int, ...], seed: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.bfloat16).float()

    return patched(worker, "draw_noise", draw_noise)


def text_of_first_segment(port: Port) -> Switch:
    """A worker encodes its first text once and keeps it for later segments."""
    original = worker.Worker.text_features
    kept: dict[str, Tensor] = {}

    def text_features(self: worker.Worker, prompt: str) -> Tensor:
        branch = "negative" if prompt.startswith("镜头") else "positive"
        if branch not in kept:
            kept[branch] = original(self, prompt)
        return kept[branch]

    return patched(worker.Worker, "text_features", text_features)


def negative_prompt_empty(port: Port) -> Switch:
    """The negative prompt is the empty text."""
    original = worker.Worker.text_features
    return patched(
        worker.Worker,
        "text_features",
        lambda self, prompt: original(self, "" if prompt.startswith("镜头") else prompt),
    )


def frames_half_range(port: Port) -> Switch:
    """Frames in [−1, 1] are written as if they were in [0, 1]."""

    def to_frames(video: Tensor) -> Any:
        levels = (video.float().clamp(0, 1) * 255).to(torch.uint8)
        return levels.permute(1, 2, 3, 0).contiguous().cpu().numpy()

    return patched(worker, "to_frames", to_frames)


def frames_bgr(port: Port) -> Switch:
    """Frames are written blue first."""
    original = worker.to_frames
    return patched(worker, "to_frames", lambda video: original(video)[..., ::-1].copy())


def frames_wrap(port: Port) -> Switch:
    """255.5 is added before the cast, so that white wraps to black."""

    def to_frames(video: Tensor) -> Any:
        levels = ((video.float().clamp(-1, 1) + 1) * 128).to(torch.int64) % 256
        return levels.to(torch.uint8).permute(1, 2, 3, 0).contiguous().cpu().numpy()

    return patched(worker, "to_frames", to_frames)


def of_wan(name: str, spec_id: str) -> PortFault:
    """A fault of the Wan port that first-last-frame generation has in particular."""
    fault = WAN[name]
    return PortFault(name, spec_id, fault.bug_class, fault.text, fault.inject, "segment")


FAULTS: tuple[PortFault, ...] = (
    PortFault("resized_with_antialias", "+", "C6", "keyframes resized with antialias", resized_with_antialias, "segment"),
    PortFault("keyframes_bgr", "+", "C7", "keyframes read blue first", keyframes_bgr, "segment"),
    PortFault("last_features_missing", "+", "C5", "features of the first picture twice", last_features_missing, "segment"),
    PortFault("mask_of_81_frames", "M1", "C5", "mask of 81 frames, cut to the segment", mask_of_81_frames, "segment"),
    PortFault("first_mark_not_expanded", "+", "C5", "first frame marked in one sub-frame", first_mark_not_expanded, "segment"),
    PortFault(
        "last_mark_in_first_sub_frame", "+", "C5", "last frame marked in sub-frame 0", last_mark_in_first_sub_frame, "segment"
    ),
    PortFault("condition_video_black", "+", "C8", "black between the keyframes", condition_video_black, "segment"),
    PortFault(
        "last_keyframe_encoded_alone", "+", "V8", "last keyframe encoded by itself", last_keyframe_encoded_alone, "segment"
    ),
    PortFault("one_generator", "M31", "S3", "one generator over all segments", one_generator, "segment"),
    PortFault("noise_half", "+", "T9", "noise drawn in bfloat16", noise_half, "segment"),
    PortFault("text_of_first_segment", "+", "K4", "text features kept over segments", text_of_first_segment, "segment"),
    PortFault("negative_prompt_empty", "+", "C3", "negative prompt empty", negative_prompt_empty, "segment"),
    PortFault("frames_half_range", "+", "C8", "frames written as [0, 1]", frames_half_range, "segment"),
    PortFault("frames_bgr", "+", "C7", "frames written blue first", frames_bgr, "segment"),
    PortFault("frames_wrap", "+", "V10", "white wraps to black", frames_wrap, "segment"),
    of_wan("last_mask_all_channels", "D24"),
    of_wan("mask_inverted", "D+"),
    of_wan("latents_before_mask", "D+"),
    of_wan("last_frame_one_early", "D25"),
    of_wan("condition_not_normalised", "D22"),
    of_wan("clip_first_last_exchanged", "D+"),
    of_wan("guidance_one_prompt", "+"),
    of_wan("shift_of_other_model", "D43"),
)  # fmt: skip
