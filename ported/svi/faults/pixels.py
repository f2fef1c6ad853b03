"""Faults in what is put into the VAE: leading frames, empty frames, end frame, anchor."""

import torch
from torch import Tensor

from ported.svi import conditioning, frames
from ported.svi.conditioning import Request
from ported.svi.faults.record import PortFault, swap, swap_all

right_empty, right_end, right_anchor = conditioning.empty_frames, conditioning.end_pixels, conditioning.anchor


def anchor_frames(request: Request, count: int) -> Tensor:
    """The anchor where grey belongs."""
    return frames.to_tensor(conditioning.anchor(request)).expand(-1, count, -1, -1)


def uniform_frames(request: Request, count: int) -> Tensor:
    """Random pixels where grey belongs."""
    return torch.rand(3, count, *request.input_video.shape[2:]) * 2 - 1


def normal_frames(request: Request, count: int) -> Tensor:
    """Normal pixels, limited, where grey belongs."""
    return torch.randn(3, count, *request.input_video.shape[2:]).clamp(-1, 1)


def black_frames(request: Request, count: int) -> Tensor:
    """Black where grey belongs."""
    return torch.full((3, count, *request.input_video.shape[2:]), -1.0)


def last_frame_repeated(request: Request, count: int) -> Tensor:
    """The last known frame held where grey belongs."""
    return request.input_video[:, -1:].expand(-1, count, -1, -1)


def prefix_pixels(request: Request) -> Tensor:
    """All prefix frames that the overlap would need, in place of the leading ones."""
    if request.prefix_video is None or not request.svi:
        return request.input_video
    return request.prefix_video[:, -(conditioning.ENCODED_BEFORE + request.overlap_size) :]


def prefix_known(request: Request, n: int) -> Tensor:
    """The mask that goes with `prefix_pixels`."""
    known = torch.ones(n)
    known[prefix_pixels(request).shape[1] : n - (request.image_end is not None)] = 0
    return known


def end_once(request: Request) -> Tensor:
    """One end frame, whatever the mask says."""
    return right_end(request)[:, :1]


def end_four_times(request: Request) -> Tensor:
    """Four end frames, whatever the version says."""
    return right_end(request)[:, :1].expand(-1, 4, -1, -1)


def mark_four(request: Request, known: Tensor) -> Tensor:
    """Four known sub-frames at the end, whatever the version says."""
    entries = torch.cat([known[:, :1].repeat_interleave(4, dim=1), known[:, 1:]], dim=1)
    entries[:, -4:] = 1
    return entries


def end_in_unit_range(request: Request) -> Tensor:
    """The end frame in [0, 1]."""
    return (right_end(request) + 1) / 2


def clip_one_early(request: Request, n: int) -> Tensor:
    """The end frame one place before the last."""
    start, end = conditioning.start_pixels(request), conditioning.end_pixels(request)
    empty = conditioning.empty_frames(request, n - start.shape[1] - end.shape[1])
    return torch.cat([start, empty[:, 1:], end, empty[:, :1]], dim=1)


def frame_before(request: Request) -> Tensor:
    """The frame before the window, although there are reference pictures."""
    return frames.to_picture(request.input_video[:, -1])


def through_tensor(request: Request) -> Tensor:
    """The anchor from picture to tensor and back, truncated."""
    return frames.to_picture(frames.to_tensor(right_anchor(request))[:, 0])


def channels_reversed(request: Request) -> Tensor:
    """The end frame in BGR."""
    return right_end(request).flip(0)


FAULTS = (
    PortFault("anchor_padding", "F5", "C5", "empty frames filled with the anchor", swap(conditioning, "empty_frames", anchor_frames)),
    PortFault("noise_padding", "F21", "C5", "empty frames filled with random pixels", swap(conditioning, "empty_frames", uniform_frames)),
    PortFault("normal_padding", "F21", "C5", "empty frames filled with normal noise", swap(conditioning, "empty_frames", normal_frames)),
    PortFault("black_padding", "C5", "C5", "empty frames black, not grey", swap(conditioning, "empty_frames", black_frames)),
    PortFault("held_padding", "F5", "C5", "empty frames hold the last leading frame", swap(conditioning, "empty_frames", last_frame_repeated)),
    PortFault(
        "prefix_not_marked", "F15", "V9", "nine prefix frames encoded, four marked known", swap(conditioning, "start_pixels", prefix_pixels)
    ),
    PortFault(
        "stale_prefix", "F16", "V9", "nine prefix frames encoded and known, the stitch keeps four",
        swap_all((conditioning, "start_pixels", prefix_pixels), (conditioning, "frame_mask", prefix_known)),
    ),
    PortFault("grey_marked_known", "F18", "V8", "four sub-frames marked known, three of them grey", swap(conditioning, "end_pixels", end_once)),
    PortFault(
        "end_repeated", "F19", "V8", "the end frame four times: the last four frames freeze",
        swap_all((conditioning, "end_pixels", end_four_times), (conditioning, "expand_ends", mark_four)),
    ),
    PortFault("end_in_unit_range", "C8", "C8", "end frame in [0, 1]", swap(conditioning, "end_pixels", end_in_unit_range)),
    PortFault("end_bgr", "C7", "C7", "end frame in BGR", swap(conditioning, "end_pixels", channels_reversed)),
    PortFault("end_one_early", "V8", "V8", "end frame one place before the last", swap(conditioning, "clip_pixels", clip_one_early)),
    PortFault("anchor_lost", "F23", "V8", "reference pictures lost: the frame before the window is the anchor", swap(conditioning, "anchor", frame_before)),
    PortFault("anchor_truncated", "F23", "V10", "the anchor goes through a tensor and back, truncated", swap(conditioning, "anchor", through_tensor)),
)  # fmt: skip
