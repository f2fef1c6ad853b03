"""Frames between 8-bit pictures and tensors (spec section 1)."""

import torch
from einops import rearrange
from torch import Tensor


def to_tensor(picture: Tensor) -> Tensor:
    """uint8 `(H, W, 3)` -> float32 `(3, 1, H, W)` in [-1, 1].

    Errors: ValueError for anything else.
    """
    if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
        raise ValueError(f"expected an 8-bit picture (H, W, 3), got {picture.dtype} {tuple(picture.shape)}")
    return rearrange(picture, "h w c -> c 1 h w").float() / 127.5 - 1


def to_picture(frame: Tensor) -> Tensor:
    """`(3, H, W)` in [-1, 1] -> uint8 `(H, W, 3)`, truncated: 63 of the 256 levels lose one."""
    return rearrange((frame + 1) * 127.5, "c h w -> h w c").clamp(0, 255).to(torch.uint8)
