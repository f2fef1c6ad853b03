"""Which frames are known: the mask of pixel frames and its expansion to latent sub-frames (spec section 3, steps 1 and 2)."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

SUB_FRAMES = 4  # pixel frames of a latent frame


def pixel_mask(frames: int, start: int, end: int, height: int, width: int) -> Tensor:
    """`(1, frames, h, w)`: 1 for the first `start` and the last `end` frames."""
    mask = torch.zeros(1, frames, height, width)
    mask[:, :start] = 1
    if end:
        mask[:, -end:] = 1
    return mask


def fit_temporal_mask(mask: Tensor, frames: int, height: int, width: int) -> Tensor:
    """A user's mask `(f, H, W)` as pixel mask `(1, frames, h, w)`: nearest in space, cut or filled with zeros in time."""
    sized = F.interpolate(mask[None].float(), size=(height, width), mode="nearest")
    missing = frames - sized.shape[1]
    return F.pad(sized, (0, 0, 0, 0, 0, missing)) if missing > 0 else sized[:, :frames]


def to_sub_frames(mask: Tensor, isolated_end: bool) -> Tensor:
    """Expand `(1, frames, h, w)` to `(4, T, h, w)`: channel c of latent t is entry 4t+c.

    The first frame fills a latent of its own, and so does the last when it was encoded alone.

    Errors: RuntimeError when the entries do not fill whole latents.
    """
    first, middle, last = mask[:, :1], mask[:, 1:], mask[:, :0]
    if isolated_end:
        middle, last = mask[:, 1:-1], mask[:, -1:]
    entries = torch.cat([first.repeat_interleave(SUB_FRAMES, 1), middle, last.repeat_interleave(SUB_FRAMES, 1)], dim=1)
    latents = entries.view(1, entries.shape[1] // SUB_FRAMES, SUB_FRAMES, *entries.shape[2:])
    return rearrange(latents, "1 t c h w -> c t h w")
