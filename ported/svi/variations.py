"""Changes that a right port may make (no divergence may be reported for them beyond rounding)."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ported.svi import conditioning, frames, sampling
from ported.svi import vae as vae_calls
from ported.svi.conditioning import Condition, Request
from ported.svi.faults.record import Port, swap
from ported.svi.versions import RIGHT, Version
from ported.wan.vae import statistics


@dataclass(frozen=True)
class PortVariation:
    """`exact`: results are equal bits on the same machine."""

    name: str
    text: str
    inject: Callable[[Port], AbstractContextManager[Any]]
    exact: bool = False


right_empty, right_clip, right_frame_mask = conditioning.empty_frames, conditioning.clip_pixels, conditioning.frame_mask


def convs_by_clip(vae: Any, video: Tensor, any_end_frame: bool = False) -> Tensor:
    """`quant_conv` over each clip by itself, as the reference runs it."""
    x, feat_map = video[None].to(vae.dtype), vae_calls.fresh(vae, "encoder")
    chunks = 2 + (x.shape[2] - 2) // 4 if any_end_frame else 1 + (x.shape[2] - 1) // 4
    known = chunks - any_end_frame
    parts = [vae_calls.encode_chunk(vae, x[:, :, max(0, 4 * i - 3) : 4 * i + 1], feat_map) for i in range(known)]
    moments = [vae.quant_conv(torch.cat(parts, dim=2))]
    if any_end_frame:
        alone = vae_calls.encode_chunk(vae, x[:, :, -1:], vae_calls.fresh(vae, "encoder"))
        moments.append(vae.quant_conv(alone))
    mean = torch.cat(moments, dim=2)[:, :16]
    centre, inverse_std = statistics(vae, mean)
    return ((mean - centre) * inverse_std)[0].float()


def normalised_by_std(vae: Any, video: Tensor, any_end_frame: bool = False) -> Tensor:
    """Division by the standard deviation in place of a product with its reciprocal."""
    latents = right_encode(vae, video, any_end_frame)
    centre, inverse_std = statistics(vae, latents)
    std = torch.tensor(vae.config.latents_std).view(-1, 1, 1, 1).to(latents)
    return (latents / inverse_std[0] + centre[0] - centre[0]) / std


right_encode = vae_calls.encode


def expanded_grey(request: Request, count: int) -> Tensor:
    """One grey frame, expanded."""
    if request.definition.get("svi_empty_frames_mode") == "anchor":
        return right_empty(request, count)
    return request.input_video.new_zeros(()).expand(3, count, *request.input_video.shape[2:])


def strided_pixels(request: Request, n: int) -> Tensor:
    """Pixels whose channels lie innermost in memory."""
    return right_clip(request, n).permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)


def written_in_place(request: Request, n: int) -> Tensor:
    """Pixels written into one tensor, no concatenation."""
    video = torch.zeros(3, n, *request.input_video.shape[2:])
    start, end = conditioning.start_pixels(request), conditioning.end_pixels(request)
    first, last = start.shape[1], n - end.shape[1]
    video[:, :first], video[:, last:] = start, end
    video[:, first:last] = conditioning.empty_frames(request, last - first)
    return video


def boolean_mask(request: Request, n: int) -> Tensor:
    """The frame mask as booleans first."""
    return right_frame_mask(request, n).bool().float()


def masked_by_index(entries: Tensor, lat_frames: int) -> Tensor:
    """Sub-frames by strided slices, no view."""
    if entries.shape[1] != 4 * lat_frames:
        raise RuntimeError(f"{entries.shape[1]} entries do not fill {lat_frames} latents")
    return torch.stack([entries[0, c::4] for c in range(4)])


def half_and_half(picture: Tensor) -> Tensor:
    """`(v/255 - 0.5)/0.5`: the same float32 bits for every byte."""
    return (picture.permute(2, 0, 1)[:, None].float() / 255 - 0.5) / 0.5


def end_flag_and_drop(vae: Any, latent: Tensor, condition: Condition, version: Version = RIGHT) -> Tensor:
    """The end latent decoded alone, its frame dropped: what the reference does."""
    if not condition.trim_frames:
        return vae_calls.decode(vae, latent[0])
    return vae_calls.decode(vae, latent[0], True)[:, : -condition.trim_frames]


def by_sigma(schedule: Any, i: int, flow: Tensor, sample: Tensor) -> Tensor:
    """The step from differences of sigmas, not of time steps."""
    sigmas = torch.cat([schedule.timesteps, torch.zeros(1)]) / 1000
    return sample + (sigmas[i + 1] - sigmas[i]) * flow


def guided_by_sum(flow: Tensor, other: Tensor, scale: float) -> Tensor:
    """`g·v_c + (1-g)·v_u`."""
    return scale * flow + (1 - scale) * other


def shifted_by_division(u: Tensor, shift: float) -> Tensor:
    """`1000·S / (S - 1 + 1000/u)`."""
    return 1000 * shift / (shift - 1 + 1000 / u)


VARIATIONS: dict[str, PortVariation] = {
    v.name: v
    for v in (
        PortVariation("convs_by_clip", "quant_conv over each clip by itself", swap(vae_calls, "encode", convs_by_clip)),
        PortVariation("normalised_by_std", "latents divided by the standard deviation", swap(vae_calls, "encode", normalised_by_std)),
        PortVariation("expanded_grey", "grey frames are one value expanded", swap(conditioning, "empty_frames", expanded_grey), True),
        PortVariation("strided_pixels", "pixels with channels innermost", swap(conditioning, "clip_pixels", strided_pixels)),
        PortVariation("written_in_place", "pixels written into one tensor", swap(conditioning, "clip_pixels", written_in_place), True),
        PortVariation("boolean_mask", "the frame mask as booleans first", swap(conditioning, "frame_mask", boolean_mask), True),
        PortVariation("masked_by_index", "sub-frames by strided slices", swap(conditioning, "sub_frames", masked_by_index), True),
        PortVariation("half_and_half", "bytes to [-1, 1] by another formula of the same bits", swap(frames, "to_tensor", half_and_half), True),
        PortVariation("end_flag_and_drop", "the end latent decoded alone, its frame dropped", swap(sampling, "decode", end_flag_and_drop)),
        PortVariation("by_sigma", "steps from differences of sigmas", swap(sampling.EulerSchedule, "step", by_sigma)),
        PortVariation("guided_by_sum", "guidance as a weighted sum", swap(sampling, "guided", guided_by_sum)),
        PortVariation("shifted_by_division", "the flow shift in another form", swap(sampling, "shifted", shifted_by_division)),
    )
}  # fmt: skip
