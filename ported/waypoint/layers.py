"""Small layers of the Waypoint port (spec A3, B10).

Precision: everything runs in the dtype of its input; RMS norms reduce in fp32 inside torch and return the input's
dtype.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class ReplicatedLinear(nn.Module):
    """A linear layer held whole by every rank; returns (output, None), the second place being a skipped bias."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return F.linear(x, self.weight, self.bias), None


class MLP(nn.Module):
    """fc_out(silu(fc_in(x))), without biases."""

    def __init__(self, d_in: int, d_hidden: int, d_out: int) -> None:
        super().__init__()
        self.fc_in = ReplicatedLinear(d_in, d_hidden)
        self.act = nn.SiLU()
        self.fc_out = ReplicatedLinear(d_hidden, d_out)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.fc_in(x)
        x, _ = self.fc_out(self.act(x))
        return x


class RMSNorm(nn.Module):
    """x / rms(x) over the last axis, without weights; eps None is torch's default (spec A3)."""

    def __init__(self, eps: float | None = None) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), eps=self.eps)


class AdaLayerNorm(nn.Module):
    """Output norm: rms(x) * (1 + a) + b with (a, b) = halves of fc(silu(cond)) (spec A3, AdaLN)."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.norm = RMSNorm()
        self.fc = ReplicatedLinear(d_model, 2 * d_model)

    def scale_shift(self, cond: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift [B, 1, D] each from cond [B, 1, D]."""
        modulation, _ = self.fc(F.silu(cond))
        scale, shift = modulation.chunk(2, dim=-1)
        return scale, shift

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        scale, shift = self.scale_shift(cond)
        return self.norm(x) * (1 + scale) + shift


class CondHead(nn.Module):
    """Six modulation vectors of a block from the noise embedding (spec A3).

    `shared` is another block's cond_proj; its parameters are taken over, so that all blocks hold the same matrices.
    """

    def __init__(self, d_model: int, bias: bool, shared: nn.ModuleList | None = None) -> None:
        super().__init__()
        self.bias_in = nn.Parameter(torch.zeros(d_model)) if bias else None
        self.cond_proj = nn.ModuleList(ReplicatedLinear(d_model, d_model) for _ in range(6))
        if shared is not None:
            self.share(shared)

    def share(self, other: nn.ModuleList) -> None:
        for mine, theirs in zip(self.cond_proj, other, strict=True):
            mine.weight = theirs.weight

    def hidden(self, cond: Tensor) -> Tensor:
        return F.silu(cond if self.bias_in is None else cond + self.bias_in)

    def forward(self, cond: Tensor) -> tuple[Tensor, ...]:
        """(scale, shift, gate) of attention, then of the MLP: six tensors [B, 1, D]."""
        hidden = self.hidden(cond)
        return tuple(proj(hidden)[0] for proj in self.cond_proj)


class ControllerInputEmbedding(nn.Module):
    """MLP over (mouse [2], buttons [n_buttons], scroll [1]) of one frame (spec A3)."""

    def __init__(self, n_buttons: int, d_model: int, mlp_ratio: int) -> None:
        super().__init__()
        self.mlp = MLP(n_buttons + 3, d_model * mlp_ratio, d_model)

    def concatenate(self, mouse: Tensor, button: Tensor, scroll: Tensor) -> Tensor:
        return torch.cat((mouse, button, scroll), dim=-1)

    def forward(self, mouse: Tensor, button: Tensor, scroll: Tensor) -> Tensor:
        return self.mlp(self.concatenate(mouse, button, scroll))


class MLPFusion(nn.Module):
    """MLP(concat(x, cond)) without the concatenation: the halves of fc_in.weight are read directly (spec A3, B10)."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.mlp = MLP(2 * d_model, d_model, d_model)

    def halves(self) -> tuple[Tensor, Tensor]:
        """(columns that read the tokens, columns that read the controls), each [D, D]."""
        weight_x, weight_cond = self.mlp.fc_in.weight.chunk(2, dim=1)
        return weight_x, weight_cond

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """x [B, T, D], cond [B, 1, D] of the frame -> [B, T, D]."""
        weight_x, weight_cond = self.halves()
        hidden = F.linear(x, weight_x) + F.linear(cond, weight_cond)
        out, _ = self.mlp.fc_out(F.silu(hidden))
        return out


class SplitFusion(nn.Module):
    """MLPFusion with its first layer split into two linears (option split_fusion)."""

    def __init__(self, fusion: MLPFusion) -> None:
        super().__init__()
        d_model = fusion.mlp.fc_out.weight.shape[0]
        self.fc_x = ReplicatedLinear(d_model, d_model)
        self.fc_cond = ReplicatedLinear(d_model, d_model)
        self.fc_out = fusion.mlp.fc_out
        weight_x, weight_cond = fusion.halves()
        self.fc_x.weight = nn.Parameter(weight_x.detach().clone())
        self.fc_cond.weight = nn.Parameter(weight_cond.detach().clone())

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        out, _ = self.fc_out(F.silu(self.fc_x(x)[0] + self.fc_cond(cond)[0]))
        return out


class CFG(nn.Module):
    """Optional replacement of an embedding by a learned null embedding (spec A3).

    `flag` True keeps x, False replaces it; None replaces at random with probability `dropout`, in eval mode too.
    """

    def __init__(self, d_model: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.null_emb = nn.Parameter(torch.zeros(1, 1, d_model))

    def forward(self, x: Tensor, flag: bool | None) -> Tensor:
        if flag is True or (flag is None and self.dropout == 0.0):
            return x
        null = self.null_emb.to(x.dtype).expand_as(x)
        if flag is False:
            return null
        dropped = torch.rand(x.shape[0], 1, 1, device=x.device) < self.dropout
        return torch.where(dropped, null, x)


def fold_patches(tokens: Tensor, height: int, width: int, patch: tuple[int, int]) -> Tensor:
    """Lay out the output vectors of the tokens as a latent: [B, T, (C ph pw)] -> [B, C, height ph, width pw]."""
    return rearrange(tokens, "b (h w) (c ph pw) -> b c (h ph) (w pw)", h=height, w=width, ph=patch[0], pw=patch[1])
