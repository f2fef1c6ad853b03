"""Image preparation: the official rules as drop-in parts of the library's pipeline (spec A12, A14, B4).

The library prepares pictures with PIL (Lanczos for the condition frames; shortest edge, centre crop for CLIP); the
official code with tensor bicubic interpolation without antialiasing. `OfficialVideoProcessor` and
`OfficialClipProcessor` have the call signature of the objects they replace in the pipeline and take images in [-1,
1], `(3, H, W)` or `(1, 3, H, W)` float32.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.video_processor import VideoProcessor
from torch import Tensor
from transformers import BatchFeature, CLIPImageProcessor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def unit_image(pixels: Tensor) -> Tensor:
    """uint8 `(H, W, 3)` to float32 `(3, H, W)` in [-1, 1]."""
    if pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise ValueError(f"expected uint8 (H, W, 3), got {pixels.dtype} {tuple(pixels.shape)}")
    return (pixels.permute(2, 0, 1).float() / 255 - 0.5) / 0.5


def official_size(image: Tensor, max_area: int) -> tuple[int, int]:
    """Pixel height and width (multiples of 16) of the video made from `image` `(3, H, W)` (spec A14)."""
    aspect = image.shape[-2] / image.shape[-1]
    return floor_to_grid(math.sqrt(max_area * aspect)), floor_to_grid(math.sqrt(max_area / aspect))


def floor_to_grid(side: float) -> int:
    """Floor to whole patches: an even number of latent rows of 8 pixels."""
    return int(side // 8 // 2) * 2 * 8


def match_last_image(first: Tensor, last: Tensor) -> Tensor:
    """Crop the last image as the official code does when the two images differ in size (spec A14).

    The target is `[round(W2·r), round(H2·r)]`, `r = max(W1/W2, H1/H2)`, and is read as (height, width): the axes are
    exchanged. Nothing is resized; where the target is larger than the image, zeros (mid grey) are added. The result
    feeds both the condition video and CLIP.
    """
    (h1, w1), (h2, w2) = first.shape[-2:], last.shape[-2:]
    if (h1, w1) == (h2, w2):
        return last
    ratio = max(w1 / w2, h1 / h2)
    return centre_crop(last, round(w2 * ratio), round(h2 * ratio))


def centre_crop(image: Tensor, height: int, width: int) -> Tensor:
    """Crop `(3, H, W)` about its centre, padding with zeros first where it is too small (the torchvision rule)."""
    h, w = image.shape[-2:]
    down, across = max(height - h, 0), max(width - w, 0)
    image = F.pad(image, (across // 2, (across + 1) // 2, down // 2, (down + 1) // 2))
    h, w = image.shape[-2:]
    top, left = round((h - height) / 2.0), round((w - width) / 2.0)
    return image[..., top : top + height, left : left + width]


class OfficialVideoProcessor(VideoProcessor):
    """`VideoProcessor` whose `preprocess` resizes as the official code: tensor bicubic, no antialias, on [-1, 1]."""

    def preprocess(self, image: Tensor, height: int, width: int, **_: Any) -> Tensor:
        return F.interpolate(batched(image), size=(height, width), mode="bicubic")


class OfficialClipProcessor:
    """The official CLIP input: bicubic squash to a square whatever the aspect, then normalise (spec A12)."""

    def __init__(self, size: int = 224, antialias: bool = False):
        self.size = size
        self.antialias = antialias

    def __call__(self, images: Tensor | list[Tensor], return_tensors: str = "pt", **_: Any) -> BatchFeature:
        images = images if isinstance(images, list) else [images]
        squashed = torch.cat([self.squash(batched(image)) for image in images])
        mean, std = (torch.tensor(v, device=squashed.device).view(1, 3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
        return BatchFeature({"pixel_values": ((squashed * 0.5 + 0.5) - mean) / std})

    def squash(self, image: Tensor) -> Tensor:
        """`(n, 3, H, W)` to `(n, 3, size, size)`."""
        return F.interpolate(
            image, size=(self.size, self.size), mode="bicubic", align_corners=False, antialias=self.antialias
        )


def native_clip_processor(size: int = 224) -> CLIPImageProcessor:
    """The library's own CLIP preprocessing at another size: shortest edge by PIL bicubic, centre crop (spec B4)."""
    return CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def batched(image: Tensor) -> Tensor:
    """`(3, H, W)` to `(1, 3, H, W)`; batches pass."""
    return image[None] if image.ndim == 3 else image
