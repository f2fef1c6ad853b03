"""The pose encoder: pose maps to features that are added behind `conv_in` of the denoiser (spec 6.1)."""

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from .config import PoseEncoderConfig
from .layers import InflatedConv


class PoseEncoder(nn.Module):
    """3×3 convolutions with SiLU between them; each second one halves the size: (1, 3, f, H, W) -> (1, c, f, H/8, W/8)."""

    def __init__(self, config: PoseEncoderConfig) -> None:
        super().__init__()
        widths = config.block_out_channels
        self.conv_in = InflatedConv(config.conditioning_channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for here, after in itertools.pairwise(widths):
            self.blocks.append(InflatedConv(here, here, 3, padding=1))
            self.blocks.append(InflatedConv(here, after, 3, padding=1, stride=2))
        self.conv_out = InflatedConv(widths[-1], config.conditioning_embedding_channels, 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        x = F.silu(self.conv_in(maps))
        for block in self.blocks:
            x = F.silu(block(x))
        return self.conv_out(x)
