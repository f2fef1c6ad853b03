"""Faults of rotary embedding, self-attention and cross-attention (spec C13, C17, K8, K16)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import nn

from ..attention import AttentionOp
from ..pipeline import WaypointPipeline
from ..rotary import Rotary
from .registry import PortFault, cross_attentions, fault, rebind, self_attentions


def rebind_formula(rotary: Rotary, name: str, function: Callable[..., Any]) -> None:
    """Replace a formula, and fill the rounded tables from it again where the port uses them."""
    rebind(rotary, name, function)
    if rotary.table_t is not None:
        rotary.round_tables(rotary.table_t.device)


def rope_identity(port: WaypointPipeline) -> None:
    """Rotary is a placeholder that returns its input."""

    def rotate(self, x, angles):
        return x

    rebind(port.model.transformer.rotary, "rotate", rotate)


def rope_halves(port: WaypointPipeline) -> None:
    """Rotary pairs the first half of the features with the second instead of adjacent ones."""

    def split_pairs(self, x):
        return x.chunk(2, dim=-1)

    rebind(port.model.transformer.rotary, "split_pairs", split_pairs)


def rope_axes_swapped(port: WaypointPipeline) -> None:
    """Columns turn by the row's angles and rows by the column's."""

    def join_bands(self, x, y, t):
        return torch.cat((y, x, t), dim=-1).unbind()

    rebind(port.model.transformer.rotary, "join_bands", join_bands)


def rope_time_first(port: WaypointPipeline) -> None:
    """The rotary bands are ordered [T | Y | X] instead of [X | Y | T]."""

    def join_bands(self, x, y, t):
        return torch.cat((t, y, x), dim=-1).unbind()

    rebind(port.model.transformer.rotary, "join_bands", join_bands)


def rope_positions_times_patch(port: WaypointPipeline) -> None:
    """Rotary positions count latent pixels: the token's index is multiplied by the patch size."""
    patch = port.model.config.patch[-1]

    def grid_position(self, index, size):
        return (-1 + 1 / size) + (2 - 2 / size) * (patch * index.float()) / max(size - 1, 1)

    rebind_formula(port.model.transformer.rotary, "grid_position", grid_position)


def rope_grid_times_patch(port: WaypointPipeline) -> None:
    """The rotary grid has the latent's size instead of the token grid's."""
    patch = port.model.config.patch[-1]

    def grid_position(self, index, size):
        size = size * patch
        return (-1 + 1 / size) + (2 - 2 / size) * index.float() / max(size - 1, 1)

    rebind_formula(port.model.transformer.rotary, "grid_position", grid_position)


def rope_memo_stale(port: WaypointPipeline) -> None:
    """Rotary angles are computed once and kept, whatever the positions."""

    def angles(self, pos):
        if self.memo is None:
            self.memo = (pos, self.cos_sin(pos))
        return self.memo[1]

    rebind(port.model.transformer.rotary, "angles", angles)


def rope_time_ignored(port: WaypointPipeline) -> None:
    """Rotary is given frame 0 for every frame."""

    def cos_sin(self, pos):
        still = {**pos, "t": torch.zeros_like(pos["t"])}
        return self.join_bands(*self.band_values(still))

    rebind(port.model.transformer.rotary, "cos_sin", cos_sin)


def rope_time_base10(port: WaypointPipeline) -> None:
    """Time frequencies are hard-coded as 10^(-i/2), which is right for head size 64 only."""

    def time_frequencies(self, device):
        steps = torch.arange(self.head_dim // 8, dtype=torch.float32, device=device)
        return 10.0 ** (-steps / 2)

    rebind_formula(port.model.transformer.rotary, "time_frequencies", time_frequencies)


def no_qk_norm(port: WaypointPipeline) -> None:
    """Queries and keys of self-attention are not RMS-normed."""
    for attn in self_attentions(port):
        attn.q_norm, attn.k_norm = nn.Identity(), nn.Identity()


def no_cross_qk_norm(port: WaypointPipeline) -> None:
    """Queries and keys of cross-attention are not RMS-normed."""
    for cross in cross_attentions(port):
        cross.q_norm, cross.k_norm = nn.Identity(), nn.Identity()


def gate_mixes_heads(port: WaypointPipeline) -> None:
    """The gate is sigmoid(weight matrix), mixes the heads after the output projection and never reads the input."""

    def gate(self, y, x):
        return y

    def merge(self, y):
        out = rearrange(self.out_proj(rearrange(y, "b h t d -> b t (h d)"))[0], "b t (h d) -> b t h d", h=self.n_heads)
        mixed = torch.einsum("gh,bthd->btgd", self.gate_proj.weight.sigmoid(), out)
        return rearrange(mixed, "b t h d -> b t (h d)")

    for attn in self_attentions(port):
        rebind(attn, "gate", gate)
        rebind(attn, "merge", merge)


def gate_missing(port: WaypointPipeline) -> None:
    """The heads are not gated."""

    def gate(self, y, x):
        return y

    for attn in self_attentions(port):
        rebind(attn, "gate", gate)


def gate_after_out_proj(port: WaypointPipeline) -> None:
    """The gate multiplies the output of the output projection."""

    def gate(self, y, x):
        self.late_gate = self.gate_proj(self.gate_input(x))[0].sigmoid()
        return y

    def merge(self, y):
        out, _ = self.out_proj(rearrange(y, "b h t d -> b t (h d)"))
        return out * repeat(self.late_gate, "b t h -> b t (h d)", d=self.head_dim)

    for attn in self_attentions(port):
        rebind(attn, "gate", gate)
        rebind(attn, "merge", merge)


def gate_reads_last_features(port: WaypointPipeline) -> None:
    """The gate reads the last features of the layer's input instead of the first."""

    def gate_input(self, x):
        return x[..., -self.n_heads :]

    for attn in self_attentions(port):
        rebind(attn, "gate_input", gate_input)


def attention_token_causal(port: WaypointPipeline) -> None:
    """Within a frame a token does not see the tokens after it."""

    def forward(self, q, k, v, keep=None):
        n, total = q.shape[2], k.shape[2]
        causal = torch.ones(n, total, dtype=torch.bool, device=q.device).tril(total - n)
        return AttentionOp.forward(self, q, k, v, keep & causal)

    for attn in self_attentions(port):
        rebind(attn.attention, "forward", forward)


def attention_zero_padding(port: WaypointPipeline) -> None:
    """Keys and values are padded with zeros to a multiple of 128 tokens, and the padding is attended."""

    def forward(self, q, k, v, keep=None):
        k, v = k[:, :, keep.flatten()], v[:, :, keep.flatten()]
        padding = (0, 0, 0, -k.shape[2] % 128)
        return AttentionOp.forward(self, q, F.pad(k, padding), F.pad(v, padding))

    for attn in self_attentions(port):
        rebind(attn.attention, "forward", forward)


def attention_scale_missing(port: WaypointPipeline) -> None:
    """Attention scores are not divided by sqrt(head size)."""
    for attn in self_attentions(port):
        attn.attention.scale = 1.0


def attention_scale_twice(port: WaypointPipeline) -> None:
    """Attention scores are divided by sqrt(head size) twice."""
    for attn in self_attentions(port):
        attn.attention.scale = attn.attention.scale**2


def kv_heads_tiled(port: WaypointPipeline) -> None:
    """Key/value heads are tiled (query head h reads h % Hk) instead of repeated one by one."""

    def expand_kv(self, kv):
        return kv.repeat(1, self.n_heads // self.n_kv_heads, 1, 1)

    for attn in self_attentions(port):
        rebind(attn, "expand_kv", expand_kv)


def cross_mask_inverted(port: WaypointPipeline) -> None:
    """The padding mask, True on padding, is taken as True = valid: the prompt's own tokens are hidden."""

    def attend(self, q, k, v, pad_mask):
        return self.attention(q, k, v, pad_mask[:, None, None, :])

    for cross in cross_attentions(port):
        rebind(cross, "attend", attend)


def cross_mask_padding(port: WaypointPipeline) -> None:
    """Padded prompt rows are masked out of cross-attention, where the reference attends to them."""

    def attend(self, q, k, v, pad_mask):
        return self.attention(q, k, v, ~pad_mask[:, None, None, :])

    for cross in cross_attentions(port):
        rebind(cross, "attend", attend)


def cross_heads_of_64(port: WaypointPipeline) -> None:
    """Cross-attention is cut into heads of 64 features whatever the model's head size."""
    for cross in cross_attentions(port):
        cross.head_dim = 64
        cross.attention.scale = 64**-0.5


def keys_cached_unrotated(port: WaypointPipeline) -> None:
    """Keys go to the cache before rotary; only the current frame's are rotated when they are read."""

    def forward(self, x, pos_emb, kv_cache):
        q, k, v = self.project(x)
        q, k = self.normalise(q, k)
        q_turned, k_turned = self.rotate(q, k, pos_emb)
        q, k, v, current = (rearrange(t, "b t h d -> b h t d") for t in (q_turned, k, v, k_turned))
        key, value, keep = kv_cache.upsert(k, v, pos_emb["frame_t"], self.layer)
        key = torch.cat((key[:, :, : -current.shape[2]], current), dim=2)
        return self.merge(self.gate(self.attend(q, key, value, keep), x))

    for attn in self_attentions(port):
        rebind(attn, "forward", forward)


FAULTS: list[PortFault] = [
    fault(rope_identity, "M2", "N5"),
    fault(rope_halves, "17", "P1"),
    fault(rope_axes_swapped, "17", "P3"),
    fault(rope_time_first, "17", "P3"),
    fault(rope_positions_times_patch, "M16", "P5", patch_not=(1, 1)),
    fault(rope_grid_times_patch, "M16", "P5", patch_not=(1, 1)),
    fault(rope_memo_stale, "M18", "P2", frames=2),
    fault(rope_time_ignored, "K8", "P2", frames=2),
    fault(rope_time_base10, "M15", "P5", frames=2, head_dim_not=64),
    fault(no_qk_norm, "M3", "N5"),
    fault(no_cross_qk_norm, "M4", "N5"),
    fault(gate_mixes_heads, "M5", "A10", gated=True),
    fault(gate_missing, "17", "N5", gated=True),
    fault(gate_after_out_proj, "17", "N5", gated=True),
    fault(gate_reads_last_features, "17", None, gated=True),
    fault(attention_token_causal, "M6", "A11"),
    fault(attention_zero_padding, "M17", "A2", tokens_not_multiple_of=128),
    fault(attention_scale_missing, "17", "A5"),
    fault(attention_scale_twice, "17", "A5"),
    fault(kv_heads_tiled, "17", "A6", kv_heads_min=2, group_min=2),
    fault(cross_mask_inverted, "M8", "A2", prompt_padding=True),
    fault(cross_mask_padding, "M9", "A2", prompt_padding=True),
    fault(cross_heads_of_64, "B10", "A10", head_dim_not=64),
    fault(keys_cached_unrotated, "K16", "K7", frames=2),
]
