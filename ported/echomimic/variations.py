"""Changes that a right port may make (no divergence may be reported for them beyond rounding)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor, nn

from ported.echomimic import pipeline
from ported.echomimic.blocks import DenoiserBlock, FrameResnet
from ported.echomimic.build import Networks
from ported.echomimic.faults.record import modules_of, patch, recast
from ported.echomimic.networks import Denoiser
from ported.echomimic.quantise import WeightOnlyInt8, quantise


@dataclass(frozen=True)
class PortVariation:
    """One legitimate change."""

    name: str
    text: str
    inject: Callable[[Networks], AbstractContextManager[None]]


def attentions(networks: Networks) -> list[Attention]:
    """Every attention of the denoiser and the reference network."""
    return [
        module
        for network in (networks.denoising_unet, networks.reference_unet)
        for module in network.modules()
        if isinstance(module, Attention)
    ]


@contextmanager
def written_out_attention(networks: Networks) -> Iterator[None]:
    """Scores, softmax and product instead of the fused kernel."""
    found = attentions(networks)
    kept = [module.processor for module in found]
    for module in found:
        module.processor = AttnProcessor()
    try:
        yield
    finally:
        for module, processor in zip(found, kept, strict=True):
            module.processor = processor


@contextmanager
def math_kernel(networks: Networks) -> Iterator[None]:
    """torch's plain kernel."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        yield


class _HalfByHalf(FeedForward):
    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return torch.cat([super(_HalfByHalf, self).forward(part) for part in hidden_states.chunk(2, dim=1)], dim=1)


class _KeysFirst(DenoiserBlock):
    def keys(self, normed: Tensor, bank: Tensor | None) -> Tensor:
        """The bank's tokens before the own ones: attention does not see the order of keys."""
        own = normed.shape[1]
        both = super().keys(normed, bank)
        return torch.cat((both[:, own:], both[:, :own]), dim=1)


class _OnlyNeeded(DenoiserBlock):
    def self_attention(self, hidden_states: Tensor, bank: Tensor | None, guided: bool) -> Tensor:
        """The same, through an intermediate in another order of addition."""
        mixed = super().self_attention(hidden_states, bank, guided)
        return (mixed - hidden_states) + hidden_states


class _ShortcutFirst(FrameResnet):
    def forward(self, hidden_states: Tensor, temb: Tensor) -> Tensor:
        short = hidden_states if self.conv_shortcut is None else self.conv_shortcut(hidden_states)
        y = self.conv1(nn.functional.silu(self.norm1(hidden_states)))
        shift = self.time_emb_proj(nn.functional.silu(temb))[:, :, None, None]
        y = (y.unflatten(0, (len(shift), -1)) + shift[:, None]).flatten(0, 1)
        y = self.conv2(nn.functional.silu(self.norm2(y)))
        return y + short


def recasting(kind: type, cls: type) -> Callable[[Networks], AbstractContextManager[None]]:
    """A class of blocks of the denoiser written differently."""
    return lambda networks: recast(modules_of(networks.denoising_unet, kind), cls)


@contextmanager
def channels_last(networks: Networks) -> Iterator[None]:
    """Convolution weights of the denoiser in channels-last memory."""
    convs = modules_of(networks.denoising_unet, nn.Conv2d)
    kept = [conv.weight.data for conv in convs]
    for conv in convs:
        conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for conv, weight in zip(convs, kept, strict=True):
            conv.weight.data = weight


@contextmanager
def transposed_weights(networks: Networks) -> Iterator[None]:
    """Linear weights stored column by column."""
    linears = modules_of(networks.denoising_unet, nn.Linear)
    kept = [linear.weight.data for linear in linears]
    for linear in linears:
        linear.weight.data = linear.weight.data.t().contiguous().t()
    try:
        yield
    finally:
        for linear, weight in zip(linears, kept, strict=True):
            linear.weight.data = weight


class _TwoPasses(Denoiser):
    def forward(self, sample: Tensor, timestep: Tensor, audio: Tensor, pose_features: Tensor, banks: Any = None, guided: bool = False) -> Tensor:  # fmt: skip
        """Both halves of guidance in passes of their own; the unconditional one has no bank."""
        if not guided:
            return super().forward(sample, timestep, audio, pose_features, banks, False)
        halves = zip(sample.chunk(2), audio.chunk(2), pose_features.chunk(2), strict=True)
        seen = ({}, {path: bank[:1] for path, bank in (banks or {}).items()})
        passes = [super(_TwoPasses, self).forward(x, timestep, a, p, b, False) for (x, a, p), b in zip(halves, seen, strict=True)]  # fmt: skip
        return torch.cat(passes)


def guide_from_conditional(both: Tensor, scale: float) -> Tensor:
    unconditional, conditional = both.chunk(2)
    return scale * conditional + (1 - scale) * unconditional


def decode_together(networks: Networks, latents: Tensor) -> Tensor:
    rows = pipeline.unscale(networks, latents)[0].transpose(0, 1)
    pictures = networks.vae.decode(rows).sample
    return (pictures * 0.5 + 0.5).clamp(0, 1).float().transpose(0, 1)[None]


def no_round_trip(scheduler: Any, velocity: Tensor, sample: Tensor, timestep: Tensor) -> Tensor:
    return velocity


def average_by_reciprocal(total: Tensor, count: Tensor) -> Tensor:
    return total * (1.0 / count)


def latents_by_limits(noise: Tensor) -> Tensor:
    return noise.minimum(noise.new_tensor(1.5)).maximum(noise.new_tensor(-1.5))


def maps_by_factor(maps: Tensor) -> Tensor:
    return (maps.float() * (1 / 255)).permute(0, 3, 1, 2).contiguous()


@contextmanager
def one_thread_more(networks: Networks) -> Iterator[None]:
    """Another number of threads: another order of summation."""
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def int8_denoiser(networks: Networks) -> Iterator[None]:
    """The denoiser quantised to int8, weights only, safely."""
    denoiser = networks.denoising_unet
    quantise(denoiser, keep=True)
    try:
        yield
    finally:
        for path, layer in list(denoiser.named_modules()):
            if isinstance(layer, WeightOnlyInt8):
                denoiser.set_submodule(path, layer.plain())


@contextmanager
def dequantise_first(networks: Networks) -> Iterator[None]:
    """Int8 layers multiply by the dequantised weight instead of scaling the product."""
    found = [m for n in networks.parts().values() for m in n.modules() if isinstance(m, WeightOnlyInt8)]
    for layer in found:
        layer.order = "before"
    try:
        yield
    finally:
        for layer in found:
            layer.order = "fp32"


@contextmanager
def compiled_blocks(networks: Networks) -> Iterator[None]:
    """Feed-forwards of the denoiser through the compiler's graph capture."""
    blocks = modules_of(networks.denoising_unet, FeedForward)
    for block in blocks:
        block.compile(backend="aot_eager", dynamic=False)
    try:
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None


VARIATIONS: dict[str, PortVariation] = {
    variation.name: variation
    for variation in (
        PortVariation("written_out_attention", "attention written out", written_out_attention),
        PortVariation("math_kernel", "plain attention kernel", math_kernel),
        PortVariation("feed_forward_in_halves", "feed-forward in halves", recasting(FeedForward, _HalfByHalf)),
        PortVariation("bank_before_own", "keys in another order", recasting(DenoiserBlock, _KeysFirst)),
        PortVariation("residual_again", "a residual taken off and added", recasting(DenoiserBlock, _OnlyNeeded)),
        PortVariation("shortcut_first", "ResNet block written differently", recasting(FrameResnet, _ShortcutFirst)),
        PortVariation("channels_last", "convolutions in channels-last memory", channels_last),
        PortVariation("transposed_weights", "weights stored transposed", transposed_weights),
        PortVariation(
            "two_passes",
            "guidance in two passes",
            lambda networks: recast([networks.denoising_unet], _TwoPasses),
        ),
        PortVariation("guide_from_conditional", "guidance formula rewritten", patch(pipeline, "guide", guide_from_conditional)),
        PortVariation("decode_together", "all frames decoded in one batch", patch(pipeline, "decode", decode_together)),
        PortVariation("no_round_trip", "velocity kept as it is", patch(pipeline, "through_x0", no_round_trip)),
        PortVariation("average_by_reciprocal", "mean by the reciprocal", patch(pipeline, "average", average_by_reciprocal)),
        PortVariation("latents_by_limits", "clamp by minimum and maximum", patch(pipeline, "initial_latents", latents_by_limits)),
        PortVariation("maps_by_factor", "pose maps times 1/255", patch(pipeline, "scaled_maps", maps_by_factor)),
        PortVariation("one_thread_more", "one thread more", one_thread_more),
        PortVariation("int8_denoiser", "denoiser in int8, weights only", int8_denoiser),
        PortVariation("dequantise_first", "int8 weights dequantised before the product", dequantise_first),
        PortVariation("compiled_blocks", "feed-forwards compiled", compiled_blocks),
    )
}  # fmt: skip
