"""Small modules of the world model (spec waypoint, section 3).

Precision: everything computes in the dtype of its input, except NoiseConditioner, which computes in the dtype of its
own table (float32) and returns the dtype of sigma.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from reference.waypoint.config import Config
from reference.waypoint.precision import NoCast

# What `F.rms_norm` takes as its default for fp32 AND bf16 input. Pinned, so that a float64 copy of the model computes
# the same function.
RMS_EPS = torch.finfo(torch.float32).eps

FOURIER_FREQUENCIES = 256


def rms(x: Tensor) -> Tensor:
    """Normalise the last axis: x / sqrt(mean(x²) + eps), without weights; float32 inside for bf16 input."""
    return F.rms_norm(x, (x.shape[-1],), eps=RMS_EPS)


def ada_rmsnorm(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Modulate the normed tokens: rms(x) * (1 + scale) + bias.

    x [B, n*m, D], scale and bias [B, n, D], one row a group of m tokens.
    """
    grouped = rearrange(rms(x), "b (n m) d -> b n m d", n=scale.shape[1])
    return (grouped * (1 + scale.unsqueeze(2)) + bias.unsqueeze(2)).flatten(1, 2)


def ada_gate(x: Tensor, gate: Tensor) -> Tensor:
    """Scale the tokens of each group: x * gate; x [B, n*m, D], gate [B, n, D]."""
    return (rearrange(x, "b (n m) d -> b n m d", n=gate.shape[1]) * gate.unsqueeze(2)).flatten(1, 2)


class MLP(nn.Module):
    """Compute fc2(silu(fc1(x))), no biases."""

    def __init__(self, dim_in: int, dim_hidden: int, dim_out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim_in, dim_hidden, bias=False)
        self.fc2 = nn.Linear(dim_hidden, dim_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.silu(self.fc1(x)))


class AdaLN(nn.Module):
    """Modulate by a condition: rms(x) * (1 + a) + b with (a, b) = fc(silu(cond)), scale first."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, 2 * dim, bias=False)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        scale, shift = self.fc(F.silu(cond)).chunk(2, dim=-1)
        return ada_rmsnorm(x, scale, shift)


class CondHead(nn.Module):
    """Map cond [B, N, D] to a block's (s0, b0, g0, s1, b1, g1), each [B, N, D]; only "wan" has `bias_in`."""

    def __init__(self, dim: int, noise_conditioning: str | None) -> None:
        super().__init__()
        self.bias_in = nn.Parameter(torch.zeros(dim)) if noise_conditioning == "wan" else None
        self.cond_proj = nn.ModuleList(nn.Linear(dim, dim, bias=False) for _ in range(6))

    def forward(self, cond: Tensor) -> tuple[Tensor, ...]:
        if self.bias_in is not None:
            cond = cond + self.bias_in
        h = F.silu(cond)
        return tuple(proj(h) for proj in self.cond_proj)


class NoiseConditioner(NoCast):
    """Embed the noise level: MLP(sqrt(2) * [sin(p), cos(p)]) with p = 1000 * sigma * freq.

    `freq` falls from 1 to 1e-4 over 256 points, BOTH ends included. Computed in float32 with autocast off.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        freq = torch.logspace(0, -1, steps=FOURIER_FREQUENCIES, base=10000.0, dtype=torch.float32)
        self.register_buffer("freq", freq, persistent=False)
        self.mlp = MLP(2 * FOURIER_FREQUENCIES, 4 * dim, dim)

    def features(self, sigma: Tensor) -> Tensor:
        """Return the 512 Fourier features of sigma [B, N], sine first; in the table's dtype."""
        phase = (sigma.to(self.freq.dtype) * 1000).unsqueeze(-1) * self.freq
        return math.sqrt(2) * torch.cat([phase.sin(), phase.cos()], dim=-1)

    def forward(self, sigma: Tensor) -> Tensor:
        """Embed sigma [B, N]; returns [B, N, D] in sigma's dtype."""
        with torch.autocast(sigma.device.type, enabled=False):
            return self.mlp(self.features(sigma)).to(sigma.dtype)


class ControllerInputEmbedding(nn.Module):
    """Embed the controls of a frame: MLP([mouse(2), button(n_buttons), scroll(1)]), in this order."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.mlp = MLP(config.n_buttons + 3, config.d_model * config.mlp_ratio, config.d_model)

    def forward(self, mouse: Tensor, button: Tensor, scroll: Tensor) -> Tensor:
        return self.mlp(torch.cat([mouse, button, scroll], dim=-1))


class MLPFusion(nn.Module):
    """Fuse x [B, N*m, D] with cond [B, N, D]: MLP([x, cond]) without building the concatenation.

    fc1's columns are split into Wx (first D) and Wc (last D): fc2(silu(x Wxᵀ + cond Wcᵀ)).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = MLP(2 * dim, dim, dim)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        w_x, w_c = self.mlp.fc1.weight.chunk(2, dim=1)
        return self.mlp.fc2(F.silu(broadcast_add(F.linear(x, w_x), F.linear(cond, w_c))))


def broadcast_add(x: Tensor, cond: Tensor) -> Tensor:
    """Add cond [B, N, D] to every token of its frame in x [B, N*m, D]."""
    return x + repeat(cond, "b n d -> b (n m) d", m=x.shape[1] // cond.shape[1])


class CFG(nn.Module):
    """Replace an embedding by a learnt null embedding; the model builds two (`*_cfg`) and never calls them.

    flag True, or None without dropout: x. False: the null embedding. None with dropout: replaced at RANDOM per sample,
    in eval mode too.
    """

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.null_emb = nn.Parameter(torch.zeros(1, 1, dim))

    def forward(self, x: Tensor, flag: bool | None = None, generator: torch.Generator | None = None) -> Tensor:
        if flag or (flag is None and self.dropout == 0.0):
            return x
        null = self.null_emb.expand_as(x)
        if flag is False:
            return null
        dropped = torch.rand(x.shape[0], 1, 1, device=x.device, generator=generator) < self.dropout
        return torch.where(dropped, null, x)
