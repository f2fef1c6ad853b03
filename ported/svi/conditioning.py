"""The conditioning block: pixels, latents and mask of one window (spec section 6)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from ported.svi import frames
from ported.svi import vae as vae_calls
from ported.svi.versions import RIGHT, Version

ENCODED_BEFORE = 5  # prefix frames that are encoded before the overlap


@dataclass(frozen=True)
class Request:
    """Inputs of one window. Videos `(3, t, H, W)` in [-1, 1]; pictures uint8 `(H, W, 3)`.

    input_video: the known leading frames; prefix_video: all that came before; model_type: "i2v" is Wan 2.1.
    svi2pro: the keyword that overrides the definition, where given.
    """

    model_type: str
    definition: Mapping[str, Any]
    frame_num: int
    input_video: Tensor
    image_end: Tensor | None = None
    input_ref_images: tuple[Tensor, ...] = ()
    pre_video_frame: Tensor | None = None
    prefix_video: Tensor | None = None
    overlap_size: int = 0
    overlapped_latents: Tensor | None = None
    window_no: int = 1
    motion_amplitude: float = 1.0
    svi2pro: bool | None = None
    version: Version = field(default=RIGHT)

    @property
    def svi(self) -> bool:
        """Whether this window runs in SVI mode."""
        return bool(self.definition.get("svi2pro", False) if self.svi2pro is None else self.svi2pro)

    @property
    def isolated_end(self) -> bool:
        """Whether the end frame is an extra latent of its own (Wan 2.1)."""
        return self.image_end is not None and self.model_type == "i2v"

    @property
    def leading(self) -> int:
        """Known leading frames."""
        return self.input_video.shape[1]


@dataclass(frozen=True)
class Condition:
    """y `(20, T, h, w)`, mask first; counts for what follows; `clean`: start latents that a plain window re-imposes."""

    y: Tensor
    mask: Tensor
    lat_y: Tensor
    frame_num: int
    lat_frames: int
    trim_frames: int
    pre_trim: int
    end_flag: bool
    svi: bool
    clean: Tensor | None = None


def condition(vae: AutoencoderKLWan, request: Request) -> Condition:
    """Make the condition channels of one window.

    Errors: ValueError when SVI mode has no anchor; RuntimeError when frames and latents do not fit together.
    """
    end_flag = request.isolated_end
    n = request.frame_num + end_flag
    lat_frames = (n - 2) // 4 + 2 if end_flag else (n - 1) // 4 + 1
    pre_trim, clean = 0, None
    if request.svi and (request.image_end is None or request.version.pasted_end):
        lat_y, pre_trim = continue_latents(vae, request, lat_frames)
        if request.image_end is not None:
            lat_y = paste_end(vae, request, lat_y)
            pre_trim = 0
    else:
        lat_y = encode_clip(vae, clip_pixels(request, n), end_flag)
        if request.svi:
            pre_trim = request.version.pre_trim_with_end
        else:
            clean = lat_y[:, : 1 + (request.leading - 1) // 4]
    lat_y = move(request, lat_y)
    mask = latent_mask(request, n, lat_frames, *lat_y.shape[2:])
    return Condition(
        y=join(mask, lat_y),
        mask=mask,
        lat_y=lat_y,
        frame_num=n,
        lat_frames=lat_frames,
        trim_frames=int(end_flag),
        pre_trim=pre_trim,
        end_flag=end_flag,
        svi=request.svi,
        clean=clean,
    )


def join(mask: Tensor, lat_y: Tensor) -> Tensor:
    """Mask first: `(4, T, h, w)`, `(16, T, h, w)` -> `(20, T, h, w)`."""
    return torch.cat([mask, lat_y])


# -- pixels -----------------------------------------------------------------------------------------------------------


def clip_pixels(request: Request, n: int) -> Tensor:
    """`[leading | empty | end]` `(3, n, H, W)`."""
    start = start_pixels(request)
    parts, end = [start], end_pixels(request)
    parts.append(empty_frames(request, n - start.shape[1] - end.shape[1]))
    return torch.cat([*parts, end], dim=1)


def start_pixels(request: Request) -> Tensor:
    """The known leading frames."""
    return request.input_video


def end_pixels(request: Request) -> Tensor:
    """The end frame, in SVI mode of Wan 2.2 as often as a latent has frames: `(3, 0, 1 or 4, H, W)`."""
    if request.image_end is None:
        return request.input_video[:, :0]
    copies = request.version.end_copies if request.svi and request.model_type == "i2v_2_2" else 1
    return request.image_end[:, None].expand(-1, copies, -1, -1)


def empty_frames(request: Request, count: int) -> Tensor:
    """Frames to be generated: zeros, the anchor, or noise, as the definition of an SVI model says.

    Errors: RuntimeError for a negative count.
    """
    like = request.input_video
    shape = (3, count, *like.shape[2:])
    mode = request.definition.get("svi_empty_frames_mode") or "zeros"
    if not request.svi or mode == "zeros":
        empty = torch.zeros(shape, device=like.device)
    elif mode == "anchor":
        empty = frames.to_tensor(anchor(request)).to(like.device).expand(shape)
    elif mode == "noise":
        empty = noise_frames(request, shape)
    else:
        raise ValueError(f"svi_empty_frames_mode '{mode}' is not one of zeros, anchor, noise")
    if request.svi and request.version.empty_statistics:
        empty.min(), empty.max()
    return empty


def noise_frames(request: Request, shape: tuple[int, ...]) -> Tensor:
    """Random frames of the global generator, uniform or normal, in [-1, 1]."""
    if request.definition.get("svi_empty_frames_noise_type") == "normal":
        return torch.randn(shape).clamp(-1, 1)
    return torch.rand(shape) * 2 - 1


def anchor(request: Request) -> Tensor:
    """The picture that SVI holds on to, uint8 `(H, W, 3)`: the window's reference picture, else the frame before.

    Errors: ValueError when there is neither.
    """
    if request.input_ref_images:
        return request.input_ref_images[min(request.window_no, len(request.input_ref_images)) - 1]
    if request.pre_video_frame is None:
        raise ValueError("Missing Reference Image: SVI needs a reference picture or the frame before the window")
    return request.pre_video_frame


# -- latents ----------------------------------------------------------------------------------------------------------


def encode_clip(vae: AutoencoderKLWan, pixels: Tensor, end_flag: bool) -> Tensor:
    """Encode the window's pixels once: `(3, n, H, W)` -> `(16, T, h, w)`."""
    return vae_calls.encode(vae, pixels, end_flag)


def continue_latents(vae: AutoencoderKLWan, request: Request, lat_frames: int) -> tuple[Tensor, int]:
    """`[anchor | overlapped latents | zeros]` `(16, T, h, w)`, and the leading pixel frames to drop."""
    overlapped = request.overlapped_latents
    if overlapped is None:
        overlapped = overlap_of_prefix(vae, request)
    first = vae_calls.encode(vae, frames.to_tensor(anchor(request)).to(request.input_video), False)
    known = first if overlapped is None else torch.cat([first, overlapped[0].to(first)], dim=1)
    zeros = known.new_zeros(known.shape[0], lat_frames - known.shape[1], *known.shape[2:])
    return torch.cat([known, zeros], dim=1), int(overlapped is not None)


def overlap_of_prefix(vae: AutoencoderKLWan, request: Request) -> Tensor | None:
    """The last latents of the prefix, `(1, 16, k, h, w)`, when it is long enough to encode them behind others."""
    needed = ENCODED_BEFORE + request.overlap_size
    prefix = request.prefix_video
    if prefix is None or prefix.shape[1] < needed:
        return None
    return vae_calls.encode(vae, prefix[:, -needed:], False)[None, :, -request.overlap_size // 4 :]


def paste_end(vae: AutoencoderKLWan, request: Request, lat_y: Tensor) -> Tensor:
    """Overwrite the last latent by the end frame encoded alone (spec section 9)."""
    assert request.image_end is not None
    end = vae_calls.encode(vae, request.image_end[:, None], False)
    return torch.cat([lat_y[:, :-1], end], dim=1)


def move(request: Request, lat_y: Tensor) -> Tensor:
    """Scale what differs from the first latent by the motion amplitude, around its mean; the end latent stays."""
    a = request.motion_amplitude
    if a <= 1:
        return lat_y
    skipped = request.leading if request.version.pixel_motion else 1 + (request.leading - 1) // 4
    first = lat_y[:, :1]
    d = lat_y[:, skipped:] - first
    mean = d.mean(dim=(0, 2, 3), keepdim=True)
    moved = (first + (d - mean) * a + mean).clamp(-6, 6)
    out = torch.cat([lat_y[:, :skipped], moved], dim=1)
    return out if request.image_end is None else torch.cat([out[:, :-1], lat_y[:, -1:]], dim=1)


# -- mask -------------------------------------------------------------------------------------------------------------


def latent_mask(request: Request, n: int, lat_frames: int, height: int, width: int) -> Tensor:
    """`(4, T, h, w)` float32, 1 where a sub-frame is known."""
    known = frame_mask(request, n)[None, :, None, None].expand(1, n, height, width)
    return sub_frames(expand_ends(request, known), lat_frames)


def frame_mask(request: Request, n: int) -> Tensor:
    """`(n,)`: 1 for the leading frames and the end frame; without an end frame an SVI clip knows its first frame only."""
    known = torch.ones(n)
    if request.image_end is not None and not (request.svi and request.version.pasted_end):
        known[request.leading : n - 1] = 0
    elif request.image_end is not None:
        known[1 : n - 1] = 0
    else:
        known[1 if request.svi else request.leading :] = 0
    return known


def expand_ends(request: Request, known: Tensor) -> Tensor:
    """Repeat the first frame for a latent, and an isolated end; an SVI end of Wan 2.2 marks its sub-frames afterwards."""
    parts = [known[:, :1].repeat_interleave(4, dim=1), known[:, 1:]]
    if request.isolated_end:
        parts[1:] = [known[:, 1:-1], known[:, -1:].repeat_interleave(4, dim=1)]
    entries = torch.cat(parts, dim=1)
    if request.svi and request.image_end is not None and not request.isolated_end:
        entries[:, -request.version.known_sub_frames :] = 1
    return entries


def sub_frames(entries: Tensor, lat_frames: int) -> Tensor:
    """`(1, 4T, h, w)` -> `(4, T, h, w)`.

    Errors: RuntimeError when the entries do not fill the latents.
    """
    return entries.view(1, lat_frames, 4, *entries.shape[2:]).transpose(1, 2)[0]
