"""Faults of masks, interpolation and corruption (spec 14: IF-03 to IF-07, IF-18, IF-22, IF-27, IF-28, IF-33, IF-35, IF-38, X)."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ported.interp import conditioning, corruption, patches, replacement, sampling, schedules, temporal, training
from ported.interp.corruption import Builder, Corrupted, Corruption
from ported.interp.draws import Draws
from ported.interp.faults.record import Port, PortFault, patched, swap
from ported.interp.flow import LatentFlowInterpolator, LatentLerpResidualInterpolator
from ported.interp.replacement import Anchors, Side
from ported.interp.sinkhorn import SinkhornWarpInterpolator

_corrupt_flat, _corrupt_tokens = corruption.corrupt_flat, corruption.corrupt_tokens
_with_anchors, _draw_noise, _fill = replacement.with_anchors, corruption.draw_noise, corruption.fill
_interpolate, _linear, _smooth = temporal.interpolate, temporal.linear, temporal.smooth


def tokens_without_warper(z0: Tensor, draws: Draws, k_min: int, levels: int, options: Corruption, adjacent: bool = False,
                          masks_levels: Tensor | None = None, idx_levels: Sequence[Tensor] | None = None,
                          s_idx: Tensor | None = None, interp_model: nn.Module | None = None,
                          anchor_values: Tensor | None = None, anchor_idx: Tensor | None = None) -> Corrupted:  # fmt: skip
    """The builder does not know the argument that the trainer always passes."""
    return _corrupt_tokens(
        z0,
        draws,
        k_min,
        levels,
        options,
        adjacent,
        masks_levels,
        idx_levels,
        s_idx,
        interp_model,
        anchor_values,
        anchor_idx,
    )


def dtype_of_another_function(warper: Any, otherwise: torch.dtype) -> torch.dtype:
    """The branch for a warper without parameters uses a name of another function."""
    first = next(iter(warper.parameters()), None) if hasattr(warper, "parameters") else None
    return latents_sel.dtype if first is None else first.dtype  # noqa: F821 (this is the bug)


def validity_with_an_axis(side: Side, anchors: Anchors, frames: int) -> Side:
    """The mask of usable anchors gets an axis too many."""
    whole = _with_anchors(side, anchors, frames)
    usable = side.replaced[:, None, :, None, None]
    return replace(side, values=torch.where(usable, whole.values, side.values).flatten(0, 1))


def noise_for_anchors(build: Builder, side: Side) -> tuple[Tensor, Tensor | None]:
    """Before a warper the supplied anchors are ignored: the latents get noise."""
    if build.warper is None or build.anchors is None:
        return _fill(build, side)
    latents = patches.unpatchify(build.z0[side.samples], build.patch_size, build.shape)
    rows = torch.arange(len(latents))[:, None]
    given = latents[rows, side.idx]
    latents[rows, side.idx] = given + build.options.student_noise_std * build.draws.randn(given.shape, given.dtype)
    dtype = corruption.warper_dtype(build.warper, latents.dtype)
    return build.warper.interpolate(latents.to(dtype), side.idx)


def flat_confidence_lost(
    z0: Tensor, draws: Draws, k_min: int, levels: int, options: Corruption, *rest: Any, **more: Any
) -> Corrupted:
    """Confidence is written into a boolean-mask copy."""
    return _corrupt_flat(z0, draws, k_min, levels, replace(options, confidence_lost=True), *rest, **more)


def factor_over_frames(confidence: Tensor, level: Tensor, levels: int, mode: str = "linear") -> Tensor:
    """λ viewed as `(b, 1)`: with a token axis it lies along time."""
    factor = conditioning.anneal_factor(level, levels, mode).view(-1, 1)
    return confidence + (1 - confidence) * factor


@contextmanager
def anneal_over_frames(port: Port) -> Iterator[None]:
    """IF-18 wherever confidences are annealed."""
    with ExitStack() as stack:
        for owner in (conditioning, training, sampling):
            stack.enter_context(patched(owner, "anneal_confidence", factor_over_frames))
        yield


def smooth_uncast(video: Tensor, kernel: Tensor) -> Tensor:
    """A float32 kernel on half-precision values."""
    weight = kernel.float().expand(video.shape[-1], 1, -1)
    return F.conv1d(video.mT, weight, padding=len(kernel) // 2, groups=video.shape[-1]).mT


def noise_on_keyframes(build: Builder, video: Tensor, side: Side) -> Tensor | None:
    """Given keyframes get a quarter of the noise whatever was asked for."""
    return _draw_noise(build._replace(options=replace(build.options, anchor_noise_frac=0.25)), video, side)


def one_stream(self: Draws, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Noise comes from the generator of the masks."""
    return torch.randn(tuple(shape), generator=self.masks).to(dtype)


def confidence_of_used(side: Side, anchors: Anchors, frames: int) -> Side:
    """Keyframes without an anchor are not counted as replaced: another confidence than the model was trained with."""
    done = _with_anchors(side, anchors, frames)
    if anchors.idx is None or anchors.values.shape[1] == frames:
        return done
    present = (side.idx[:, :, None] == anchors.idx[side.samples][:, None]).any(dim=2)
    return replace(done, replaced=done.replaced & present)


def anchors_of_the_next_clip(values: Tensor, idx: Tensor | None = None) -> Anchors:
    """Anchors are joined to clips by their order in the stream, and the order differs."""
    return Anchors(values.roll(1, 0), idx)


@contextmanager
def warper_in_bf16(port: Port) -> Iterator[None]:
    """The warper is narrower than the tokens: given keyframes come back rounded."""
    warpers = port.all((LatentFlowInterpolator, LatentLerpResidualInterpolator, SinkhornWarpInterpolator))
    before = [{name: p.data for name, p in w.named_parameters()} for w in warpers]
    for warper in warpers:
        for p in warper.parameters():
            p.data = p.data.bfloat16()
    try:
        yield
    finally:
        for warper, old in zip(warpers, before, strict=True):
            for name, p in warper.named_parameters():
                p.data = old[name]


def half_up(value: float) -> int:
    """Halves go up instead of to the even number."""
    return math.floor(value + 0.5)


def segments_left(idx: Tensor, frames: int) -> tuple[Tensor, Tensor, Tensor]:
    """A keyframe belongs to the segment before it."""
    t = torch.arange(frames, device=idx.device).expand(len(idx), frames).contiguous()
    number = torch.searchsorted(idx.contiguous(), t, right=False).clamp(0, idx.shape[1] - 2)
    return number, idx.gather(1, number), idx.gather(1, number + 1)


def smooth_unrestored(idx: Tensor, values: Tensor, frames: int, mode: str = "linear", model: nn.Module | None = None,
                      kernel: Tensor | None = None) -> Tensor:  # fmt: skip
    """Smoothed keyframes are not restored."""
    if mode != "smooth":
        return _interpolate(idx, values, frames, mode, model, kernel)
    video = _linear(idx, values, frames)
    return _smooth(video, video.new_tensor(temporal.SMOOTHING) if kernel is None else kernel)


def patchify_channels_last(latents: Tensor, patch_size: int) -> tuple[Tensor, tuple[int, int]]:
    """Features of a token are ordered (py, px, c)."""
    b, t, c, h, w = latents.shape
    p = patch_size
    cut = latents.reshape(b, t, c, h // p, p, w // p, p).permute(0, 1, 3, 5, 4, 6, 2)
    return cut.reshape(b, t, (h // p) * (w // p), c * p * p), (h // p, w // p)


FAULTS: tuple[PortFault, ...] = (
    PortFault("builder_without_warper", "IF-03", "C5", "builder lacks the warper argument",
              swap(corruption, "corrupt_tokens", tokens_without_warper), "corruption", "error"),
    PortFault("dtype_of_another_function", "IF-04", "N4", "wrong name where a warper has no parameters",
              swap(corruption, "warper_dtype", dtype_of_another_function), "corruption", "error"),
    PortFault("validity_with_an_axis", "IF-05", "A3", "mask of usable anchors with an axis too many",
              swap(replacement, "with_anchors", validity_with_an_axis), "corruption", "error"),
    PortFault("anchors_ignored", "IF-06", "V8", "supplied anchors ignored",
              swap(corruption, "fill", noise_for_anchors), "corruption"),
    PortFault("flat_confidence_lost", "IF-07", "K8", "confidence of keyframes written into a copy",
              swap(corruption, "corrupt_flat", flat_confidence_lost), "corruption"),
    PortFault("anneal_over_frames", "IF-18", "C5", "annealing factor broadcast along time", anneal_over_frames, "training"),
    PortFault("smooth_kernel_uncast", "IF-22", "N4", "float32 kernel on bf16 values",
              swap(temporal, "smooth", smooth_uncast), "corruption", "error"),
    PortFault("noise_on_given_keyframes", "IF-27", "V8", "given keyframes are perturbed",
              swap(corruption, "draw_noise", noise_on_keyframes), "corruption"),
    PortFault("noise_from_mask_stream", "IF-28", "S2", "noise drawn from the generator of the masks",
              swap(Draws, "randn", one_stream), "corruption"),
    PortFault("confidence_of_used_anchors", "IF-33", "C5", "keyframes without an anchor count as clean",
              swap(replacement, "with_anchors", confidence_of_used), "corruption"),
    PortFault("anchors_of_the_next_clip", "IF-35", "V6", "anchors of another clip",
              swap(corruption, "Anchors", anchors_of_the_next_clip), "corruption"),
    PortFault("warper_in_bf16", "IF-38", "N4", "warper narrower than the tokens", warper_in_bf16, "flow"),
    PortFault("counts_rounded_half_up", "X", "V7", "halves rounded up in the schedule of counts",
              swap(schedules, "round", half_up), "masks"),
    PortFault("keyframe_in_segment_before", "X", "P2", "search for segments by the left side",
              swap(temporal, "segments", segments_left), "corruption"),
    PortFault("smooth_unrestored", "X", "V8", "smoothed keyframes not restored",
              swap(temporal, "interpolate", smooth_unrestored), "corruption"),
    PortFault("patches_channels_last", "X", "V5", "patch features ordered (py, px, c)",
              swap(patches, "patchify", patchify_channels_last), "loading"),
)  # fmt: skip
