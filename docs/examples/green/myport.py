"""The port: the same decoder, with its running sum kept in half precision to save memory."""

import torch
from torch import nn


class FastDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.widen = nn.Conv2d(8, 32, 3, padding=1)
        self.planes = nn.Conv2d(32, 3, 1, bias=False)
        self.seen, self.count = None, 0

    def forward(self, latent):
        h = torch.relu(self.widen(latent))
        power = h.square().sum(dim=1, keepdim=True)
        total = power if self.seen is None else self.seen.float() + power
        self.seen = total.half()
        self.count += 1
        return self.planes(h / (self.seen.float() / self.count).sqrt())
