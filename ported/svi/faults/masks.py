"""Faults in what is marked as known."""

import torch
from torch import Tensor

from ported.svi import conditioning
from ported.svi.conditioning import Request
from ported.svi.faults.record import PortFault, swap

right_sub_frames, right_expand, right_frame_mask = (
    conditioning.sub_frames,
    conditioning.expand_ends,
    conditioning.frame_mask,
)


def both_expanded(request: Request, known: Tensor) -> Tensor:
    """The last frame fills a latent although the clip has no extra frame."""
    return torch.cat(
        [known[:, :1].repeat_interleave(4, 1), known[:, 1:-1], known[:, -1:].repeat_interleave(4, 1)], dim=1
    )


def end_unmarked(request: Request, known: Tensor) -> Tensor:
    """Only one of four sub-frames of the end latent is known."""
    if request.isolated_end:
        return right_expand(request, known)
    return torch.cat([known[:, :1].repeat_interleave(4, dim=1), known[:, 1:]], dim=1)


def end_forgotten(request: Request, n: int) -> Tensor:
    """The end frame is not marked at all."""
    known = right_frame_mask(request, n)
    known[request.leading :] = 0
    return known


def first_in_last(request: Request, known: Tensor) -> Tensor:
    """The first frame in the last of its latent's four sub-frames, not in all."""
    entries = right_expand(request, known).clone()
    entries[:, :3] = 0
    return entries


def one_frame_short(request: Request, n: int) -> Tensor:
    """The last leading frame is not marked."""
    known = right_frame_mask(request, n)
    known[request.leading - 1] = 0
    return known


def whole_latents(request: Request, known: Tensor) -> Tensor:
    """Latents that hold a known frame are marked whole."""
    entries = right_expand(request, known)
    latents = entries.unflatten(1, (-1, 4)).amax(dim=2)
    return latents.repeat_interleave(4, dim=1)


def axes_exchanged(entries: Tensor, lat_frames: int) -> Tensor:
    """Sub-frames before latents in the view, and no transpose."""
    return entries.reshape(4, lat_frames, *entries.shape[2:])


def inverted(entries: Tensor, lat_frames: int) -> Tensor:
    """1 where a frame is to be generated."""
    return 1 - right_sub_frames(entries, lat_frames)


def signed(entries: Tensor, lat_frames: int) -> Tensor:
    """The mask mapped to [-1, 1] like the pixels."""
    return right_sub_frames(entries, lat_frames) * 2 - 1


def latents_first(mask: Tensor, lat_y: Tensor) -> Tensor:
    """Mask behind the latents."""
    return torch.cat([lat_y, mask])


def motion_known(request: Request, n: int) -> Tensor:
    """The frames of the overlapped latents are marked as known."""
    known = right_frame_mask(request, n)
    known[1 : 1 + request.overlap_size] = 1
    return known


FAULTS = (
    PortFault("end_one_sub_frame", "F20", "V8", "one of four sub-frames of the end latent known", swap(conditioning, "expand_ends", end_unmarked)),
    PortFault("end_not_marked", "C5", "V8", "the end frame is not marked as known", swap(conditioning, "frame_mask", end_forgotten)),
    PortFault("first_in_last_channel", "C5", "C5", "the first frame marked in one of four sub-frames", swap(conditioning, "expand_ends", first_in_last)),
    PortFault("leading_one_short", "C5", "C5", "the last leading frame is not marked", swap(conditioning, "frame_mask", one_frame_short)),
    PortFault("whole_latents_known", "C5", "C5", "latents with a known frame marked whole", swap(conditioning, "expand_ends", whole_latents)),
    PortFault("axes_exchanged", "F38", "C5", "sub-frame and time axes exchanged in the mask", swap(conditioning, "sub_frames", axes_exchanged)),
    PortFault("mask_inverted", "C5", "C5", "1 where a frame is to be generated", swap(conditioning, "sub_frames", inverted)),
    PortFault("mask_signed", "C5", "C5", "the mask mapped to [-1, 1]", swap(conditioning, "sub_frames", signed)),
    PortFault("latents_first", "F38", "C5", "the mask behind the latents", swap(conditioning, "join", latents_first)),
    PortFault("motion_marked_known", "H4", "C5", "overlapped latents marked as known", swap(conditioning, "frame_mask", motion_known)),
    PortFault("both_ends_expanded", "F2", "C5", "both ends fill a latent on a 4k+1 clip", swap(conditioning, "expand_ends", both_expanded), "error"),
)  # fmt: skip
