"""Sizes, masks and condition videos of the three pipelines (spec A14)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

TIME_STRIDE, SPACE_STRIDE, PATCH = 4, 8, 2
FLF2V_MASK_FRAMES = 81  # a literal upstream, see quirks
LATENT_CHANNELS = 16


def latent_frames(frames: int) -> int:
    """Latent frames of a video.

    Errors: ValueError unless `frames` is 4n+1.
    """
    if frames < 1 or (frames - 1) % TIME_STRIDE:
        raise ValueError(f"frames must be 4n+1, got {frames}")
    return (frames - 1) // TIME_STRIDE + 1


def t2v_latent_shape(size: tuple[int, int], frames: int) -> tuple[int, int, int, int]:
    """`(16, T_lat, h, w)` for a video of `size` = (width, height) pixels."""
    width, height = size
    return LATENT_CHANNELS, latent_frames(frames), height // SPACE_STRIDE, width // SPACE_STRIDE


def image_latent_shape(image_size: tuple[int, int], max_area: int, frames: int) -> tuple[int, int, int, int]:
    """`(16, T_lat, h, w)` that keeps the aspect ratio of an image of `image_size` = (height, width) within `max_area`.

    h and w are even; the video has 8h by 8w pixels.
    """
    ratio = image_size[0] / image_size[1]
    h, w = (round(math.sqrt(area) // SPACE_STRIDE // PATCH * PATCH) for area in (max_area * ratio, max_area / ratio))
    return LATENT_CHANNELS, latent_frames(frames), h, w


def sequence_length(latent_shape: tuple[int, int, int, int], sp_size: int = 1) -> int:
    """Tokens of one sample, rounded up to a multiple of the sequence-parallel world size."""
    _, t, h, w = latent_shape
    return math.ceil(h * w / PATCH**2 * t / sp_size) * sp_size


def frame_mask(known: list[int], frames: int, height: int, width: int) -> Tensor:
    """Mask `(4, T_lat, h, w)` float32, 1 where the pixel frame is known.

    Frame 0 is repeated four times, the other frames fill the four sub-channels of a latent frame in order: a known
    frame 0 sets all four at latent frame 0, a known last frame sets sub-channel 3 of the last latent frame only.
    """
    row = torch.zeros(frames)
    row[known] = 1
    row = torch.cat([row[:1].repeat(TIME_STRIDE), row[1:]])  # frames + 3 = 4·T_lat
    mask = row.view(latent_frames(frames), TIME_STRIDE).transpose(0, 1)
    return mask[:, :, None, None].repeat(1, 1, height, width)


def i2v_mask(frames: int, height: int, width: int) -> Tensor:
    """First frame known: `(4, T_lat, h, w)`."""
    return frame_mask([0], frames, height, width)


def flf2v_mask(frames: int, height: int, width: int, fixed_frames: bool = False) -> Tensor:
    """First and last frame known: `(4, T_lat, h, w)`.

    The length is the literal 81 whatever `frames` is, unless `fixed_frames` (quirk `flf2v-81`).
    """
    length = frames if fixed_frames else FLF2V_MASK_FRAMES
    return frame_mask([0, length - 1], length, height, width)


def image_to_tensor(image: Tensor) -> Tensor:
    """uint8 `(h, w, 3)` -> float32 `(3, h, w)` in [−1, 1]."""
    return (image.permute(2, 0, 1).float() / 255 - 0.5) / 0.5


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Bicubic without antialias: `(3, h, w)` -> `(3, height, width)`."""
    return F.interpolate(image[None], size=(height, width), mode="bicubic")[0]


def center_crop(image: Tensor, height: int, width: int) -> Tensor:
    """Cut the middle out of `(3, h, w)`; where the crop is larger the image is padded with zeros (mid grey)."""
    h, w = image.shape[1:]
    if width > w or height > h:
        x, y = max(width - w, 0), max(height - h, 0)
        image = F.pad(image, (x // 2, (x + 1) // 2, y // 2, (y + 1) // 2))
        h, w = image.shape[1:]
    top, left = round((h - height) / 2), round((w - width) / 2)
    return image[:, top : top + height, left : left + width]


def match_last_image(first: Tensor, last: Tensor) -> Tensor:
    """What flf2v does to a last image of another size: a centre crop with exchanged axes (quirk `flf2v-crop`).

    `ratio = max(W₁/W₂, H₁/H₂)`; the target `[round(W₂·ratio), round(H₂·ratio)]` is read as (height, width) and no
    resize happens. Images are `(3, h, w)`.
    """
    if first.shape == last.shape:
        return last
    (h1, w1), (h2, w2) = first.shape[1:], last.shape[1:]
    ratio = max(w1 / w2, h1 / h2)
    return center_crop(last, round(w2 * ratio), round(h2 * ratio))


def condition_video(first: Tensor, last: Tensor | None, frames: int, height: int, width: int) -> Tensor:
    """First image, zero frames (mid grey), and the last image when there is one: `(3, frames, height, width)`."""
    images = [resize(first, height, width)[:, None]]
    if last is not None:
        images.append(resize(last, height, width)[:, None])
    grey = first.new_zeros(3, frames - len(images), height, width)
    return torch.cat([images[0], grey, *images[1:]], dim=1)


def condition_tensor(mask: Tensor, latents: Tensor) -> Tensor:
    """`cat([mask, latents])`: `(4, T_lat, h, w)`, `(16, T_lat, h, w)` -> y `(20, T_lat, h, w)`, mask first.

    Errors: ValueError when the latent lengths differ, which is how flf2v fails for other lengths than 81.
    """
    if mask.shape[1:] != latents.shape[1:]:
        raise ValueError(
            f"mask (t, h, w) {tuple(mask.shape[1:])} and latents {tuple(latents.shape[1:])} do not fit together; "
            "flf2v masks 81 frames unless fixed_frames is set"
        )
    return torch.cat([mask.to(latents), latents])
