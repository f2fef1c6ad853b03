"""How each network is asked for a change: what it sees of masks, confidences and levels (spec 7, 9 step 4, 10.2).

A refiner has `delta(x, level, mask_s, mask_prev, conf_s, conf_prev)`: x in the layout of its data, level `(b,)`, masks and
confidences `(b, t)` or `(b, t, n)`, None where there is no finer level or no confidence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from .conditioning import FrameProjector, mask_channels, wan_frame_features
from .denoisers import InterpLevelDenoiser, VideoTokenInterpLevelDenoiser
from .patches import patchify, unpatchify
from .wan import WanTransformer


@dataclass
class ToyRefiner:
    """Flat videos `(b, t, d)`."""

    model: InterpLevelDenoiser

    def delta(
        self,
        x: Tensor,
        level: Tensor,
        mask_s: Tensor,
        mask_prev: Tensor | None,
        conf_s: Tensor | None,
        conf_prev: Tensor | None,
    ) -> Tensor:
        """The change toward the finer level."""
        return self.model(x, level, mask_channels(mask_s, mask_prev, conf_s))


@dataclass
class TokenRefiner:
    """Token videos `(b, t, n, d)` with text `(b, l, text_dim)`."""

    model: VideoTokenInterpLevelDenoiser
    text: Tensor | None
    shape: tuple[int, int]

    def delta(
        self,
        x: Tensor,
        level: Tensor,
        mask_s: Tensor,
        mask_prev: Tensor | None,
        conf_s: Tensor | None,
        conf_prev: Tensor | None,
    ) -> Tensor:
        """The change toward the finer level; maps `(b, t)` count for all tokens."""
        parts = [None if part is None else over_all_tokens(part, x) for part in (mask_s, mask_prev, conf_s)]
        return self.model(x, level, mask_channels(*parts), self.text, self.shape)


@dataclass
class WanRefiner:
    """The same tokens, un-patchified for the Wan transformer; frame tokens follow the text when there is a projector."""

    model: WanTransformer
    text: Tensor
    shape: tuple[int, int]
    patch_size: int
    levels: int
    projector: FrameProjector | None = None

    def context(
        self,
        level: Tensor,
        mask_s: Tensor,
        mask_prev: Tensor | None,
        conf_s: Tensor | None,
        conf_prev: Tensor | None,
    ) -> Tensor:
        """Text tokens, then one token a frame: `(b, l + t, text_dim)`."""
        if self.projector is None:
            return self.text
        if conf_s is None:
            raise ValueError("frame tokens need confidences")
        masks = [None if mask is None else of_frames(mask) for mask in (mask_s, mask_prev)]
        features = wan_frame_features(masks[0], masks[1], conf_s, conf_prev, level, self.levels)
        return torch.cat([self.text, self.projector(features.to(self.text.dtype))], dim=1)

    def delta(
        self,
        x: Tensor,
        level: Tensor,
        mask_s: Tensor,
        mask_prev: Tensor | None,
        conf_s: Tensor | None,
        conf_prev: Tensor | None,
    ) -> Tensor:
        """The change toward the finer level."""
        context = self.context(level, mask_s, mask_prev, conf_s, conf_prev)
        latents = rearrange(unpatchify(x, self.patch_size, self.shape), "b t c h w -> b c t h w")
        change = self.model(latents, level, context)
        return patchify(rearrange(change, "b c t h w -> b t c h w"), self.patch_size)[0]


Refiner = ToyRefiner | TokenRefiner | WanRefiner


def over_all_tokens(part: Tensor, x: Tensor) -> Tensor:
    """A map of frames for every token of `(b, t, n, d)`."""
    return part if part.dim() == 3 else part[..., None].expand(*part.shape, x.shape[2])


def of_frames(mask: Tensor) -> Tensor:
    """The mask of frames from one that repeats it over tokens."""
    return mask if mask.dim() == 2 else mask[..., 0]
