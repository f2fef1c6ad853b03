"""What each network is given at a level, and how its answer is read (spec 7, 9 step 4, 10.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ported.interp.conditioning import FrameProjector, mask_channels, wan_frame_features
from ported.interp.denoisers import InterpLevelDenoiser, VideoTokenInterpLevelDenoiser
from ported.interp.patches import patchify, unpatchify
from ported.interp.wan import WanTransformer

Maybe = Tensor | None


@dataclass
class ToyRefiner:
    """Flat clips."""

    model: InterpLevelDenoiser

    def delta(
        self, x: Tensor, level: Tensor, mask_s: Tensor, mask_prev: Maybe, conf_s: Maybe, conf_prev: Maybe
    ) -> Tensor:
        """Predicted change."""
        return self.model(x, level, mask_channels(mask_s, mask_prev, conf_s))


@dataclass
class TokenRefiner:
    """Token clips with text."""

    model: VideoTokenInterpLevelDenoiser
    text: Tensor | None
    shape: tuple[int, int]

    def delta(
        self, x: Tensor, level: Tensor, mask_s: Tensor, mask_prev: Maybe, conf_s: Maybe, conf_prev: Maybe
    ) -> Tensor:
        """Predicted change; maps of frames are repeated over tokens."""
        tokens = x.shape[2]
        whole = [
            m if m is None or m.dim() == 3 else m.unsqueeze(-1).expand(-1, -1, tokens)
            for m in (mask_s, mask_prev, conf_s)
        ]
        return self.model(x, level, mask_channels(*whole), self.text, self.shape)


@dataclass
class WanRefiner:
    """Token clips through the Wan transformer; frame tokens are appended to the text."""

    model: WanTransformer
    text: Tensor
    shape: tuple[int, int]
    patch_size: int
    levels: int
    projector: FrameProjector | None = None

    def context(self, level: Tensor, mask_s: Tensor, mask_prev: Maybe, conf_s: Maybe, conf_prev: Maybe) -> Tensor:
        """Text, then frame tokens."""
        if self.projector is None:
            return self.text
        if conf_s is None:
            raise ValueError("frame tokens are made from confidences: there are none")
        frames = [m if m is None or m.dim() == 2 else m[..., 0] for m in (mask_s, mask_prev)]
        features = wan_frame_features(*frames, conf_s, conf_prev, level, self.levels)
        return torch.cat((self.text, self.projector(features.to(self.text.dtype))), dim=1)

    def delta(
        self, x: Tensor, level: Tensor, mask_s: Tensor, mask_prev: Maybe, conf_s: Maybe, conf_prev: Maybe
    ) -> Tensor:
        """Predicted change."""
        context = self.context(level, mask_s, mask_prev, conf_s, conf_prev)
        latents = unpatchify(x, self.patch_size, self.shape).transpose(1, 2)
        return patchify(self.model(latents, level, context).transpose(1, 2), self.patch_size)[0]


Refiner = ToyRefiner | TokenRefiner | WanRefiner
