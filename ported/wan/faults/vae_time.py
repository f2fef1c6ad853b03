"""Faults of the VAE's time axis: first frame, caches, chunks (spec D31-D34, D39 and the list below)."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample, WanResidualBlock
from torch import Tensor

from ported.wan.faults.record import Port, PortFault, patched, recast

Cache = list[Any]


def resamples(port: Port, mode: str) -> list[WanResample]:
    """Every resampler of one mode."""
    return [m for m in port.vae.modules() if isinstance(m, WanResample) and m.mode == mode]


def interleave(x: Tensor) -> Tensor:
    """`(b, 2c, t, h, w)` to `(b, c, 2t, h, w)`: channel group 0 is frame 2k, group 1 frame 2k+1."""
    b, c, t, h, w = x.shape
    x = x.reshape(b, 2, c // 2, t, h, w)
    return torch.stack((x[:, 0], x[:, 1]), 3).reshape(b, c // 2, t * 2, h, w)


def in_space(resample: WanResample, x: Tensor) -> Tensor:
    """The spatial part of a resampler, frame by frame."""
    b, _, t = x.shape[:3]
    return resample.resample(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (b, t)).transpose(1, 2)


def remembered(x: Tensor, old: Tensor | None) -> Tensor:
    """What a slot keeps of `x`: its last two frames, one of them borrowed from `old` when `x` has one."""
    new = x[:, :, -2:].clone()
    return new if new.shape[2] == 2 or old is None else torch.cat([old[:, :, -1:], new], dim=2)


class _EveryFrameDoubled(WanResample):
    def forward(self, x: Tensor, feat_cache: Cache, feat_idx: list[int]) -> Tensor:
        old = feat_cache[feat_idx[0]]
        feat_cache[feat_idx[0]] = remembered(x, old)
        feat_idx[0] += 1
        return in_space(self, interleave(self.time_conv(x, old)))


@contextmanager
def first_frame_doubled(port: Port) -> Iterator[None]:
    """The first latent frame is doubled in time like the others: 4T frames instead of 1 + 4(T-1)."""
    with recast(resamples(port, "upsample3d"), _EveryFrameDoubled):
        yield


class _SeesFirstFrame(WanResample):
    def forward(self, x: Tensor, feat_cache: Cache, feat_idx: list[int]) -> Tensor:
        old = feat_cache[feat_idx[0]]
        feat_cache[feat_idx[0]] = remembered(x, old)
        feat_idx[0] += 1
        if old is not None:
            x = interleave(self.time_conv(x, old))
        return in_space(self, x)


@contextmanager
def second_chunk_sees_first(port: Port) -> Iterator[None]:
    """The first time convolution gets the first frame as its past, where the model was trained on zeros."""
    with recast(resamples(port, "upsample3d"), _SeesFirstFrame):
        yield


@contextmanager
def time_downsampling_skipped(port: Port) -> Iterator[None]:
    """Only the spatial half of the 3D downsamplers runs: T latents instead of 1 + (T-1)/4."""
    with ExitStack() as stack:
        for resample in resamples(port, "downsample3d"):
            stack.enter_context(patched(resample, "mode", "downsample2d"))
        yield


@contextmanager
def frame_count_misspelt(port: Port) -> Iterator[None]:
    """Frames per latent read from `temporal_upsample` where the attribute is `temperal_upsample`: too few."""
    decode = AutoencoderKLWan._decode

    def buffered(self: AutoencoderKLWan, z: Tensor, return_dict: bool = True) -> Any:
        a_latent = 2 ** sum(getattr(self.decoder, "temporal_upsample", ()))
        frames = 1 + (z.shape[2] - 1) * a_latent
        out = decode(self, z, return_dict)
        out.sample = out.sample[:, :, :frames]
        return out

    with patched(AutoencoderKLWan, "_decode", buffered):
        yield


class _OneFrameCaches(WanResidualBlock):
    def forward(self, x: Tensor, feat_cache: Cache, feat_idx: list[int]) -> Tensor:
        shortcut = self.conv_shortcut(x)
        for norm, conv in ((self.norm1, self.conv1), (self.norm2, self.conv2)):
            x = self.nonlinearity(norm(x))
            old, feat_cache[feat_idx[0]] = feat_cache[feat_idx[0]], x[:, :, -1:].clone()
            feat_idx[0] += 1
            x = conv(x, old)
        return x + shortcut


@contextmanager
def one_frame_caches(port: Port) -> Iterator[None]:
    """Caches hold one frame and borrow none, so each chunk begins with a zero frame."""
    with recast([m for m in port.vae.modules() if isinstance(m, WanResidualBlock)], _OneFrameCaches):
        yield


class _HalvesExchanged(WanResample):
    def forward(self, x: Tensor, feat_cache: Cache, feat_idx: list[int]) -> Tensor:
        first_chunk = feat_cache[feat_idx[0]] is None
        frames = x.shape[2]
        x = super().forward(x, feat_cache, feat_idx)
        return x if first_chunk else x.unflatten(2, (frames, 2)).flip(3).flatten(2, 3)


@contextmanager
def time_conv_halves_exchanged(port: Port) -> Iterator[None]:
    """Channel group 0 becomes frame 2k+1 and group 1 frame 2k."""
    with recast(resamples(port, "upsample3d"), _HalvesExchanged):
        yield


class _NeverCleared(AutoencoderKLWan):
    def clear_cache(self) -> None:
        if not hasattr(self, "_feat_map"):
            super().clear_cache()
        self._enc_feat_map = [None] * self._cached_conv_counts["encoder"]


@contextmanager
def decoder_cache_stale(port: Port) -> Iterator[None]:
    """The decoder's caches survive a decode: the next one begins with the last video's end, at four frames a latent."""
    with recast([port.vae], _NeverCleared):
        yield


FAULTS: tuple[PortFault, ...] = (
    PortFault(
        "first_frame_doubled",
        "D31",
        "V1",
        "first latent frame doubled in time",
        first_frame_doubled,
        "vae",
        {},
        "shape",
    ),
    PortFault(
        "second_chunk_sees_first",
        "D32",
        "V2",
        "second chunk's time convolution sees the first frame",
        second_chunk_sees_first,
        "vae",
        {"frames": 5},
    ),
    PortFault(
        "time_downsampling_skipped",
        "D33",
        "V2",
        "temporal downsampling skipped",
        time_downsampling_skipped,
        "vae",
        {"frames": 5},
        "shape",
    ),
    PortFault(
        "frame_count_misspelt",
        "D34",
        "V7",
        "frames per chunk read from a misspelt attribute",
        frame_count_misspelt,
        "vae",
        {"frames": 5},
        "shape",
    ),
    PortFault(
        "one_frame_caches", "D39", "V2", "caches of one frame, none borrowed", one_frame_caches, "vae", {"frames": 9}
    ),
    PortFault(
        "time_conv_halves_exchanged",
        "D+",
        "V2",
        "halves of the temporal upsampling exchanged",
        time_conv_halves_exchanged,
        "vae",
        {"frames": 5},
    ),
    PortFault(
        "decoder_cache_stale",
        "D+",
        "K4",
        "decoder caches not cleared between videos",
        decoder_cache_stale,
        "vae",
        {"decodes": 2},
        "shape",
    ),
)
