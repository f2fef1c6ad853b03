"""Faults of the VAE within a frame: precision, padding, attention, tiles (spec D35-D38 and the list below)."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanResample, WanRMS_norm
from torch import Tensor, nn

from ported.wan.faults.record import Port, PortFault, patched, recast


class _HalfRMSNorm(WanRMS_norm):
    def forward(self, x: Tensor) -> Tensor:
        half = F.normalize(x.bfloat16(), dim=1) * self.scale * self.gamma.bfloat16()
        return half.to(x.dtype)


@contextmanager
def channel_norm_half(port: Port) -> Iterator[None]:
    """Channel norms run in bfloat16."""
    with recast([m for m in port.vae.modules() if isinstance(m, WanRMS_norm)], _HalfRMSNorm):
        yield


@contextmanager
def whole_vae_in(port: Port, dtype: torch.dtype) -> Iterator[None]:
    """Cast the VAE to `dtype`; its float32 weights come back afterwards."""
    tensors = list(port.vae.parameters())
    kept = [tensor.data for tensor in tensors]
    for tensor in tensors:
        tensor.data = tensor.data.to(dtype)
    try:
        yield
    finally:
        for tensor, data in zip(tensors, kept, strict=True):
            tensor.data = data


@contextmanager
def vae_fp16(port: Port) -> Iterator[None]:
    """The VAE runs in float16."""
    with whole_vae_in(port, torch.float16):
        yield


@contextmanager
def vae_bf16(port: Port) -> Iterator[None]:
    """The VAE runs in bfloat16."""
    with whole_vae_in(port, torch.bfloat16):
        yield


class _TopLeftPadded(nn.ZeroPad2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (1, 0, 1, 0))


@contextmanager
def downsample_padded_top_left(port: Port) -> Iterator[None]:
    """The strided convolutions are padded left and top instead of right and bottom."""
    resamples = [m for m in port.vae.modules() if isinstance(m, WanResample) and m.mode.startswith("downsample")]
    with recast([m.resample[0] for m in resamples], _TopLeftPadded):
        yield


class _HeadDimCut(WanAttentionBlock):
    def forward(self, x: Tensor) -> Tensor:
        b, c, t, h, w = x.shape
        frames = self.norm(x.transpose(1, 2).flatten(0, 1))
        q, k, v = self.to_qkv(frames).flatten(2).transpose(1, 2)[:, None].chunk(3, dim=-1)
        seen = c * 2 // 3  # 256 of 384: the kernel's tiles end there
        out = F.scaled_dot_product_attention(q[..., :seen], k[..., :seen], v, scale=c**-0.5)
        out = self.proj(out[:, 0].transpose(1, 2).reshape(b * t, c, h, w))
        return out.unflatten(0, (b, t)).transpose(1, 2) + x


@contextmanager
def attention_head_dim_cut(port: Port) -> Iterator[None]:
    """An attention kernel that does not support head dimension 384 leaves a third of the scores out."""
    with recast([m for m in port.vae.modules() if isinstance(m, WanAttentionBlock)], _HeadDimCut):
        yield


def small_tiles(port: Port) -> ExitStack:
    """Tiled decoding in tiles of 2 x 2 latents with one latent of overlap, so that tiny videos have several."""
    stack = ExitStack()
    sizes = {"min": 16, "stride": 8}
    stack.enter_context(patched(port.vae, "use_tiling", True))
    for kind, size in sizes.items():
        for side in ("height", "width"):
            stack.enter_context(patched(port.vae, f"tile_sample_{kind}_{side}", size))
    return stack


@contextmanager
def tile_overlap_in_latents(port: Port) -> Iterator[None]:
    """Tiles are blended over an overlap in latent units where pixels are meant: seams."""
    blend_v, blend_h = AutoencoderKLWan.blend_v, AutoencoderKLWan.blend_h
    ratio = port.vae.spatial_compression_ratio

    def vertical(self: AutoencoderKLWan, above: Tensor, tile: Tensor, extent: int) -> Tensor:
        return blend_v(self, above, tile, extent // ratio)

    def horizontal(self: AutoencoderKLWan, left: Tensor, tile: Tensor, extent: int) -> Tensor:
        return blend_h(self, left, tile, extent // ratio)

    with (
        small_tiles(port),
        patched(AutoencoderKLWan, "blend_v", vertical),
        patched(AutoencoderKLWan, "blend_h", horizontal),
    ):
        yield


class _TilesShareCaches(AutoencoderKLWan):
    def clear_cache(self) -> None:
        if not getattr(self, "_in_tiles", False):
            super().clear_cache()

    def tiled_decode(self, z: Tensor, return_dict: bool = True) -> Tensor:
        self.clear_cache()
        with patched(self, "_in_tiles", True):
            return super().tiled_decode(z, return_dict)


@contextmanager
def tiles_share_caches(port: Port) -> Iterator[None]:
    """Caches are not cleared between tiles: later tiles start inside a video and have four frames too many to blend."""
    with small_tiles(port), recast([port.vae], _TilesShareCaches):
        yield


FAULTS: tuple[PortFault, ...] = (
    PortFault(
        "tile_overlap_in_latents",
        "D35",
        "V4",
        "tile overlap in latent units where pixels are meant",
        tile_overlap_in_latents,
        "vae",
        {"latent_side": 3},
    ),
    PortFault(
        "tiles_share_caches",
        "D35",
        "V4",
        "caches not cleared between tiles",
        tiles_share_caches,
        "vae",
        {"latent_side": 3},
        "error",
    ),
    PortFault("channel_norm_half", "D36", "N3", "channel norms in bfloat16", channel_norm_half, "vae"),
    PortFault("vae_fp16", "D37", "Q1", "VAE in float16", vae_fp16, "vae"),
    PortFault("vae_bf16", "D37", "N4", "VAE in bfloat16", vae_bf16, "vae"),
    PortFault(
        "attention_head_dim_cut",
        "D38",
        "A9",
        "middle attention wrong for its head dimension",
        attention_head_dim_cut,
        "vae",
    ),
    PortFault(
        "downsample_padded_top_left", "D+", "V3", "downsampling padded left and top", downsample_padded_top_left, "vae"
    ),
)
