"""The reference: a decoder that turns latents into frames, one at a time, in units of the mean power that it has seen so far."""

import torch
from torch import nn


class Decoder(nn.Module):
    """Latent [1, 8, H, W] of one frame to planes Y, U, V [1, 3, H, W], around zero."""

    def __init__(self):
        super().__init__()
        self.widen = nn.Conv2d(8, 32, 3, padding=1)
        self.planes = nn.Conv2d(32, 3, 1, bias=False)
        self.seen, self.count = None, 0

    def forward(self, latent):
        h = torch.relu(self.widen(latent))
        power = h.square().sum(dim=1, keepdim=True)
        self.seen = power if self.seen is None else self.seen + power
        self.count += 1
        return self.planes(h / (self.seen / self.count).sqrt())


def decode(decoder, latents):
    """Latents [F, 8, H, W] to frames [F, H, W, 3] in bytes."""
    decoder.seen, decoder.count = None, 0
    planes = torch.cat([decoder(latent[None]) for latent in latents])
    y, u, v = planes.clamp(0, 1).unbind(dim=1)
    u, v = u - 0.5, v - 0.5
    rgb = torch.stack([y + 1.402 * v, y - 0.344 * u - 0.714 * v, y + 1.772 * u], dim=-1)
    return (rgb.clamp(0, 1) * 255).round().to(torch.uint8)
