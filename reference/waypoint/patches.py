"""The engine's three inference patches, applied after the cast (spec waypoint, section 8).

All are neutral up to rounding: embeddings of the schedule's sigmas become tables, q/k/v one projection, the fusion's
fc1 two projections. Tables are looked up by value: the engine's key is the bit pattern of a number, which is the same
for distinct non-negative sigmas and for the table's own rows, and this form survives an upcast of the whole model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from reference.waypoint.layers import MLPFusion, broadcast_add
from reference.waypoint.model import WorldModel

KEY_SEARCH_DIMS = 8


def find_rows(keys: Tensor, query: Tensor) -> Tensor:
    """Return the index of each query value [...] in keys [S]; S, deliberately out of range, where it is unknown."""
    hits = query.unsqueeze(-1) == keys
    return torch.where(hits.any(-1), hits.int().argmax(-1), keys.numel())


class NoiseLUT(nn.Module):
    """Look the noise embedding up: `table` [S, D] for the schedule's `sigmas` [S].

    An unknown sigma is an index error.
    """

    def __init__(self, sigmas: Tensor, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("sigmas", sigmas.clone(), persistent=False)
        self.register_buffer("table", table, persistent=False)

    def forward(self, sigma: Tensor) -> Tensor:
        return self.table[find_rows(self.sigmas, sigma)]


class CondHeadLUT(nn.Module):
    """Look a block's modulation up.

    `cache` [6, S, D], keyed by embedding dimension `key_dim` with values `keys` [S].
    """

    def __init__(self, keys: Tensor, key_dim: int, cache: Tensor) -> None:
        super().__init__()
        self.key_dim = key_dim
        self.register_buffer("keys", keys.clone(), persistent=False)
        self.register_buffer("cache", cache, persistent=False)

    def forward(self, cond: Tensor) -> tuple[Tensor, ...]:
        return self.cache[:, find_rows(self.keys, cond[..., self.key_dim])].unbind(0)


class SplitMLPFusion(nn.Module):
    """Fuse with fc1's column halves as two linears: fc2(silu(fc1_x(x) + fc1_c(cond)))."""

    def __init__(self, fusion: MLPFusion) -> None:
        super().__init__()
        w_x, w_c = fusion.mlp.fc1.weight.chunk(2, dim=1)
        self.fc1_x, self.fc1_c, self.fc2 = linear(w_x), linear(w_c), fusion.mlp.fc2

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        return self.fc2(F.silu(broadcast_add(self.fc1_x(x), self.fc1_c(cond))))


def linear(weight: Tensor) -> nn.Linear:
    """Make a bias-free linear that owns a copy of `weight` [out, in]."""
    out = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    out.weight = nn.Parameter(weight.detach().clone().contiguous())
    return out


@torch.no_grad()
def cache_noise_embedding(model: WorldModel) -> None:
    """Replace `denoise_step_emb` by a table.

    The schedule's sigmas, 0 included, must be distinct in the engine dtype.
    """
    sigmas = model.scheduler_sigmas
    if sigmas.unique().numel() != sigmas.numel():
        raise ValueError(f"sigmas must be distinct in {sigmas.dtype} to key a table, got {sigmas.tolist()}")
    table = model.denoise_step_emb(rearrange(sigmas, "s -> s 1")).squeeze(1)
    model.denoise_step_emb = NoiseLUT(sigmas, table)


@torch.no_grad()
def cache_cond_heads(model: WorldModel) -> None:
    """Replace every block's `cond_head` by a table over the noise table; needs `cache_noise_embedding` first."""
    table = model.denoise_step_emb.table  # [S, D]
    candidates = range(min(KEY_SEARCH_DIMS, table.shape[1]))
    key_dim = next((d for d in candidates if table[:, d].unique().numel() == len(table)), None)
    if key_dim is None:
        raise ValueError(f"no dimension of the first {len(candidates)} tells the {len(table)} noise embeddings apart")
    for block in model.transformer.blocks:
        cache = torch.stack(block.cond_head(table.unsqueeze(1))).squeeze(2)  # [6, S, D]
        block.cond_head = CondHeadLUT(table[:, key_dim], key_dim, cache)


def merge_qkv(model: WorldModel) -> None:
    """Give every self-attention one projection `qkv_proj`, rows [q; k; v]."""
    for block in model.transformer.blocks:
        attn = block.attn
        attn.qkv_proj = linear(torch.cat([attn.q_proj.weight, attn.k_proj.weight, attn.v_proj.weight]))
        del attn.q_proj, attn.k_proj, attn.v_proj


def split_fusions(model: WorldModel) -> None:
    """Split every controller fusion's fc1."""
    for block in model.transformer.blocks:
        if block.ctrl_mlpfusion is not None:
            block.ctrl_mlpfusion = SplitMLPFusion(block.ctrl_mlpfusion)


def apply_inference_patches(model: WorldModel) -> WorldModel:
    """Apply all patches in place, after `to_engine_dtype`, and return the model."""
    cache_noise_embedding(model)
    cache_cond_heads(model)
    merge_qkv(model)
    split_fusions(model)
    return model
