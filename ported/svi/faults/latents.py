"""Faults in the VAE's calls and in how latents are put together."""

from typing import Any

import torch
from torch import Tensor

from ported.svi import conditioning, frames, sampling
from ported.svi import vae as vae_calls
from ported.svi.conditioning import Condition, Request
from ported.svi.faults.record import Port, PortFault, replaced, swap, swap_all, version
from ported.svi.versions import RIGHT, Version
from ported.wan.vae import statistics

right_continue, right_encode_clip = conditioning.continue_latents, conditioning.encode_clip


def zero_latents_between(vae: Any, pixels: Tensor, end_flag: bool) -> Tensor:
    """First and last frame encoded alone, zero latents between them."""
    first, last = vae_calls.encode(vae, pixels[:, :1]), vae_calls.encode(vae, pixels[:, -1:])
    count = 1 + (pixels.shape[1] - 1) // 4
    return torch.cat([first, first.new_zeros(16, count - 2, *first.shape[2:]), last], dim=1)


def two_clips(vae: Any, pixels: Tensor, end_flag: bool) -> Tensor:
    """The first frame alone, the rest as a second clip, which begins with a latent of one frame again."""
    return torch.cat([vae_calls.encode(vae, pixels[:, :1]), vae_calls.encode(vae, pixels[:, 1:])], dim=1)


def flag_without_frame(vae: Any, pixels: Tensor, end_flag: bool) -> Tensor:
    """The end flag on a clip without an extra frame."""
    return vae_calls.encode(vae, pixels, True)


def decode_with_flag(vae: Any, latent: Tensor, condition: Condition, version: Version = RIGHT) -> Tensor:
    """The decode that goes with `flag_without_frame`."""
    return vae_calls.decode(vae, sampling.trim(latent, condition), True)


def end_as_chunk(vae: Any, video: Tensor, any_end_frame: bool = False) -> Tensor:
    """The isolated end frame is encoded as a chunk of four, with the caches of the frames before it."""
    x, feat_map = video[None].to(vae.dtype), vae_calls.fresh(vae, "encoder")
    chunks = 2 + (x.shape[2] - 2) // 4 if any_end_frame else 1 + (x.shape[2] - 1) // 4
    parts = [vae_calls.encode_chunk(vae, x[:, :, :1], feat_map)]
    for i in range(1, chunks):
        chunk = x[:, :, 4 * i - 3 : 4 * i + 1]
        if any_end_frame and i == chunks - 1:
            chunk = x[:, :, -1:].repeat(1, 1, 4, 1, 1)
        parts.append(vae_calls.encode_chunk(vae, chunk, feat_map))
    mean, _ = vae.quant_conv(torch.cat(parts, dim=2)).chunk(2, dim=1)
    centre, inverse_std = statistics(vae, mean)
    return ((mean - centre) * inverse_std)[0].float()


def statistics_swapped(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """The standard deviation where its reciprocal belongs."""
    mean, inverse_std = statistics(vae, like)
    return mean, 1 / inverse_std


def no_statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Latents are not normalised."""
    mean, inverse_std = statistics(vae, like)
    return torch.zeros_like(mean), torch.ones_like(inverse_std)


def first_latents(vae: Any, request: Request) -> Tensor | None:
    """The first latents of the prefix in place of the last."""
    prefix, needed = request.prefix_video, conditioning.ENCODED_BEFORE + request.overlap_size
    if prefix is None or prefix.shape[1] < needed:
        return None
    return vae_calls.encode(vae, prefix[:, -needed:])[None, :, : request.overlap_size // 4]


def one_latent_more(vae: Any, request: Request) -> Tensor | None:
    """One overlapped latent too many."""
    prefix, needed = request.prefix_video, conditioning.ENCODED_BEFORE + request.overlap_size
    if prefix is None or prefix.shape[1] < needed:
        return None
    return vae_calls.encode(vae, prefix[:, -needed:])[None, :, -(request.overlap_size // 4) - 1 :]


def no_overlap(vae: Any, request: Request) -> Tensor | None:
    """The prefix is never encoded."""
    return None


def short_prefix(vae: Any, request: Request) -> Tensor | None:
    """Only the overlap is encoded, without the frames before it: its latents lack their past."""
    if request.prefix_video is None or request.prefix_video.shape[1] < request.overlap_size + 1:
        return None
    return vae_calls.encode(vae, request.prefix_video[:, -(request.overlap_size + 1) :])[None, :, -1:]


def grey_latents(vae: Any, request: Request, lat_frames: int) -> tuple[Tensor, int]:
    """Encoded grey frames where zero latents belong."""
    lat_y, pre_trim = right_continue(vae, request, lat_frames)
    grey = vae_calls.encode(vae, torch.zeros(3, 4 * lat_frames - 3, *request.input_video.shape[2:]))
    known = 1 + pre_trim
    return torch.cat([lat_y[:, :known], grey[:, known:]], dim=1), pre_trim


def anchor_twice(vae: Any, request: Request, lat_frames: int) -> tuple[Tensor, int]:
    """The anchor's latent repeated over the whole clip."""
    lat_y, pre_trim = right_continue(vae, request, lat_frames)
    anchor = vae_calls.encode(vae, frames.to_tensor(conditioning.anchor(request)))
    return torch.where(lat_y == 0, anchor.expand_as(lat_y), lat_y), pre_trim


def clip_skipped(port: Port) -> Any:
    """With SVI the end frame's branch is taken and its encode is not."""

    def missing(vae: Any, pixels: Tensor, end_flag: bool) -> Tensor:
        raise UnboundLocalError("cannot access local variable 'lat_y' where it is not associated with a value")

    return replaced((conditioning, "encode_clip", missing))


FAULTS = (
    PortFault("zero_latents_between", "F3", "V8", "anchor and end encoded alone, zero latents between", swap(conditioning, "encode_clip", zero_latents_between)),
    PortFault("two_clips", "F4", "V1", "the anchor alone, the rest as a second clip", swap(conditioning, "encode_clip", two_clips)),
    PortFault(
        "end_flag_without_frame", "F6", "V8", "the VAE's end flag on a 4k+1 clip",
        swap_all((conditioning, "encode_clip", flag_without_frame), (sampling, "decode", decode_with_flag)), "shape",
    ),
    PortFault("end_flag_after_trim", "F7", "V8", "the end flag at a decode whose end latent is trimmed", version(flag_at_decode=True), "shape"),
    PortFault("end_pasted", "F31", "V8", "the end frame encoded alone and pasted into zero latents", version(pasted_end=True, known_sub_frames=1)),
    PortFault("end_as_chunk", "V2", "V2", "the isolated end frame is encoded as a chunk of four, with caches that are not empty", swap(vae_calls, "encode", end_as_chunk)),
    PortFault("std_not_inverted", "C10", "C10", "latents multiplied by the standard deviation", swap(vae_calls, "statistics", statistics_swapped)),
    PortFault("not_normalised", "C10", "C10", "latents are not normalised", swap(vae_calls, "statistics", no_statistics)),
    PortFault("overlap_from_front", "V9", "V9", "the first latents of the prefix, not the last", swap(conditioning, "overlap_of_prefix", first_latents)),
    PortFault("overlap_one_more", "F4", "V9", "one overlapped latent too many", swap(conditioning, "overlap_of_prefix", one_latent_more)),
    PortFault("overlap_without_past", "V9", "V9", "the overlap encoded without the frames before it", swap(conditioning, "overlap_of_prefix", short_prefix)),
    PortFault("overlap_lost", "F14", "V9", "the prefix is too short for the overlap: the anchor alone", swap(conditioning, "overlap_of_prefix", no_overlap)),
    PortFault("grey_for_zero_latents", "F3", "C5", "encoded grey where zero latents belong", swap(conditioning, "continue_latents", grey_latents)),
    PortFault("anchor_repeated", "F5", "C5", "the anchor's latent over the whole clip", swap(conditioning, "continue_latents", anchor_twice)),
    PortFault("encode_skipped", "F1", "V8", "SVI and end frame together: no latents", clip_skipped, "error"),
    PortFault("empty_statistics", "F26", "V7", "statistics of no empty frames", version(empty_statistics=True), "error"),
    PortFault("motion_by_pixels", "F27", "V7", "the motion amplitude counts latents in pixel frames", version(pixel_motion=True)),
)  # fmt: skip
