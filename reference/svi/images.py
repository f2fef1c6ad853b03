"""Pictures on their way into the VAE (spec section 1): `(frames, H, W, 3)` in [0, 1] to `(3, frames, H, W)` in [-1, 1]."""

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

BLACK = -1.0  # the one value that noise augmentation leaves alone


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """Resize `(frames, H, W, 3)` in [0, 1] by Lanczos, frame by frame, through truncated 8-bit pictures.

    Nothing is touched when the sizes agree.
    """
    if tuple(images.shape[1:3]) == (height, width):
        return images
    bytes_ = (images.cpu().numpy() * 255).clip(0, 255).astype(np.uint8)
    resized = [Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS) for frame in bytes_]
    return torch.from_numpy(np.stack([np.asarray(frame) for frame in resized])).float().to(images.device) / 255


def to_pixels(images: Tensor, height: int, width: int) -> Tensor:
    """Drop further channels, resize where needed, map to [-1, 1]: -> `(3, frames, height, width)` float32."""
    sized = resize(images[..., :3], height, width)
    return rearrange(sized, "f h w c -> c f h w").float() * 2 - 1


def add_noise(pixels: Tensor, strength: float) -> Tensor:
    """`x + strength·eps`, eps from the global generator; exactly black values stay black."""
    noise = torch.randn_like(pixels) * strength
    return pixels + torch.where(pixels == BLACK, torch.zeros_like(noise), noise)
