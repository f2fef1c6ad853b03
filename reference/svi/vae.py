"""Calls of the Wan VAE with the end flag, and tiled (spec section 2).

With the flag the last frame (or latent) is one of its own: encoded and decoded with empty caches. The 1x1x1
convolutions `conv1` and `conv2` run once over everything before it and once over it.
"""

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from reference.wan.vae import WanVAE, causal_convs, chunk_bounds
from reference.wan.vae_cache import FeatureCache

SPACE = 8  # pixels of a latent's side


def end_chunks(frames: int) -> list[tuple[int, int]]:
    """Frame ranges of an encode with the end flag: 1, 4, 4, …, and the very last frame; what lies between is ignored.

    Errors: ValueError for fewer than two frames, where the flag means nothing.
    """
    if frames < 2:
        raise ValueError(f"an encode with the end flag needs two frames or more, got {frames}")
    known = 1 + (frames - 2) // 4  # chunks before the last frame
    return [(0, 1), *((4 * i - 3, 4 * i + 1) for i in range(1, known)), (frames - 1, frames)]


def encode(vae: WanVAE, video: Tensor, end: bool = False) -> Tensor:
    """Encode `(3, t, H, W)` in [-1, 1] -> normalised means `(16, T, h, w)` float32.

    T is `1 + (t-1)//4`, with the flag `2 + (t-2)//4`.
    """
    chunks = end_chunks(video.shape[1]) if end else chunk_bounds(video.shape[1])
    x = video[None].to(vae.conv1.weight.dtype)
    cache = FeatureCache(len(causal_convs(vae.encoder)))
    parts = []
    for i, (start, stop) in enumerate(chunks):
        if end and i == len(chunks) - 1:
            cache = FeatureCache(len(cache.slots))
        parts.append(vae.encode_chunk(x[:, :, start:stop], cache))
    groups = [parts[:-1], parts[-1:]] if end else [parts]
    moments = torch.cat([vae.conv1(torch.cat(group, dim=2)) for group in groups], dim=2)
    mean, _log_variance = moments[0].chunk(2, dim=0)
    return vae.normalise(mean).float()


def decode(vae: WanVAE, latent: Tensor, end: bool = False) -> Tensor:
    """Decode normalised `(16, T, h, w)` -> `(3, t, 8h, 8w)` float32, not limited to [-1, 1].

    t is `4T-3`, with the flag `4T-6`: the last latent, decoded alone, gives one frame.

    Errors: ValueError for a single latent with the flag.
    """
    if end and latent.shape[1] < 2:
        raise ValueError("a decode with the end flag needs two latent frames or more, got 1")
    z = vae.denormalise(latent)[None].to(vae.conv2.weight.dtype)
    groups = [z[:, :, :-1], z[:, :, -1:]] if end else [z]
    frames = []
    for group in groups:
        x = vae.conv2(group)
        cache = FeatureCache(len(causal_convs(vae.decoder)))
        frames += [vae.decode_chunk(x[:, :, i : i + 1], cache) for i in range(x.shape[2])]
    return torch.cat(frames, dim=2)[0].float()


# -- tiles ------------------------------------------------------------------------------------------------------------


def tile_starts(length: int, size: int, stride: int) -> list[int]:
    """Multiples of the stride, without those behind a tile that already reached the border."""
    return [p for p in range(0, length, stride) if not (p >= stride and p - stride + size >= length)]


def ramp(length: int, border: int, first: bool, last: bool) -> Tensor:
    """Weights of a tile along one axis: `1/b, 2/b, … 1` towards each side that is no border of the image."""
    weights = torch.ones(length)
    rising = (torch.arange(border) + 1) / border
    if not first:
        weights[:border] = rising
    if not last:
        weights[-border:] = rising.flip(0)
    return weights


def blend(
    video: Tensor,
    run: Callable[[Tensor], Tensor],
    tile: tuple[int, int],
    stride: tuple[int, int],
    scale: float,
) -> Tensor:
    """Run every tile of `(c, t, H, W)` on its own and average the results, `(c', t', H·scale, W·scale)`."""
    height, width = video.shape[2:]
    total: Tensor | None = None
    weight = torch.zeros(1, 1, round(height * scale), round(width * scale))
    border = [max(1, round((size - step) * scale)) for size, step in zip(tile, stride, strict=True)]
    starts = product(tile_starts(height, tile[0], stride[0]), tile_starts(width, tile[1], stride[1]))
    for top, left in starts:
        part = run(video[:, :, top : top + tile[0], left : left + tile[1]])
        rows = ramp(part.shape[2], border[0], top == 0, top + tile[0] >= height)
        columns = ramp(part.shape[3], border[1], left == 0, left + tile[1] >= width)
        mask = torch.minimum(rows[:, None], columns[None])
        if total is None:
            total = torch.zeros(*part.shape[:2], *weight.shape[2:])
        y, x = round(top * scale), round(left * scale)
        place = (..., slice(y, y + part.shape[2]), slice(x, x + part.shape[3]))
        total[place] += part * mask
        weight[place] += mask
    if total is None:
        raise ValueError(f"no tile fits into {height}x{width} pixels")
    return total / weight


def encode_tiled(
    vae: WanVAE,
    video: Tensor,
    end: bool = False,
    tile: tuple[int, int] | None = None,
    stride: tuple[int, int] | None = None,
) -> Tensor:
    """Encode tile by tile; tile and stride in pixels, by default half the picture and half of that."""
    tile = tile or (video.shape[2] // 2, video.shape[3] // 2)
    stride = stride or (tile[0] // 2, tile[1] // 2)
    return blend(video, lambda part: encode(vae, part, end), tile, stride, 1 / SPACE)


def decode_tiled(
    vae: WanVAE,
    latent: Tensor,
    end: bool = False,
    tile: tuple[int, int] = (272, 272),
    stride: tuple[int, int] = (144, 128),
) -> Tensor:
    """Decode tile by tile, clamped to [-1, 1]; tile and stride in pixels."""
    tile, stride = ((a // SPACE, b // SPACE) for a, b in (tile, stride))
    return blend(latent, lambda part: decode(vae, part, end), tile, stride, SPACE).clamp(-1, 1)
