"""Changes that a right port may make: they must not be reported as faults (spec C16)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..attention import AttentionOp
from ..layers import MLPFusion, SplitFusion
from ..pipeline import WaypointPipeline
from .registry import PortVariation, rebind, self_attentions, variation

DOCUMENTED_SIGMAS = (1.0, 0.8611363, 0.729332447052002, 0.3207127, 0.0)


def attention_ops(port: WaypointPipeline) -> list[AttentionOp]:
    return [module for module in port.modules() if isinstance(module, AttentionOp)]


def rope_reinterleaved(port: WaypointPipeline) -> None:
    """Rotary puts its pairs side by side again: q, k and cached keys are permuted, attention is not changed."""
    port.model.transformer.rotary.interleaved_output = True


def rope_linspace(port: WaypointPipeline) -> None:
    """Rotary positions come from linspace instead of the closed formula."""
    port.model.transformer.rotary.linspace = True


def rope_rounded(port: WaypointPipeline) -> None:
    """Rotary cosines and sines are rounded to bf16, as the reference's engine rounds them."""
    port.model.transformer.rotary.round_tables(port.denoising.device)


def cache_never_frozen(port: WaypointPipeline) -> None:
    """The ring is written in denoise passes too: a frame overwrites only its own, hidden entry."""
    port.kv_cache.freezes = False


def cache_floor_bucket(port: WaypointPipeline) -> None:
    """The ring's place is found by floor instead of ceil: it matters for frames that a layer does not keep."""
    for layer in port.kv_cache.layers:
        layer.floor_bucket = True


def merged_qkv(port: WaypointPipeline) -> None:
    """One projection makes q, k and v."""
    for attn in self_attentions(port):
        attn.merge_projections()


def split_fusion(port: WaypointPipeline) -> None:
    """The control fusion's first layer is two linears."""
    for block in port.model.transformer.blocks:
        if isinstance(block.ctrl_mlpfusion, MLPFusion):
            block.ctrl_mlpfusion = SplitFusion(block.ctrl_mlpfusion)


def concatenated_fusion(port: WaypointPipeline) -> None:
    """The control fusion is one MLP over tokens and controls concatenated."""

    def forward(self, x, cond):
        return self.mlp(torch.cat((x, cond.expand_as(x)), dim=-1))

    for block in port.model.transformer.blocks:
        if isinstance(block.ctrl_mlpfusion, MLPFusion):
            rebind(block.ctrl_mlpfusion, "forward", forward)


def attention_math(port: WaypointPipeline) -> None:
    """Attention is an explicit softmax."""
    for op in attention_ops(port):
        op.backend = "math"


def attention_sdpa(port: WaypointPipeline) -> None:
    """Attention is scaled_dot_product_attention."""
    for op in attention_ops(port):
        op.backend = "sdpa"


def attention_flex(port: WaypointPipeline) -> None:
    """Attention is flex attention with a fresh token mask."""
    for op in attention_ops(port):
        op.backend = "flex"


def attention_query_chunks(port: WaypointPipeline) -> None:
    """Attention takes seven queries at a time."""
    for op in attention_ops(port):
        op.query_chunk = 7


def attention_visible_keys_only(port: WaypointPipeline) -> None:
    """Masked keys are gathered away before attention instead of being masked."""

    def forward(self, q, k, v, keep=None):
        return AttentionOp.forward(self, q, k[:, :, keep.flatten()], v[:, :, keep.flatten()])

    for attn in self_attentions(port):
        rebind(attn.attention, "forward", forward)


def conditioning_stacked(port: WaypointPipeline) -> None:
    """The six conditioning matrices are one stacked matrix."""

    def forward(self, cond):
        stacked = torch.cat([proj.weight for proj in self.cond_proj])
        return F.linear(self.hidden(cond), stacked).chunk(6, dim=-1)

    for block in port.model.transformer.blocks:
        rebind(block.cond_head, "forward", forward)


def schedule_documented(port: WaypointPipeline) -> None:
    """The schedule is typed as the documentation has it, which rounds to the same bf16 values."""
    port.denoising.sigmas = port.denoising.sigmas.new_tensor(DOCUMENTED_SIGMAS)


VARIATIONS: list[PortVariation] = [
    variation(rope_reinterleaved, "16"),
    variation(rope_linspace, "16"),
    variation(rope_rounded, "16", dtype="bf16"),
    variation(cache_never_frozen, "16"),
    variation(cache_floor_bucket, "16"),
    variation(merged_qkv, "16"),
    variation(split_fusion, "16"),
    variation(concatenated_fusion, "16"),
    variation(attention_math, "B10"),
    variation(attention_sdpa, "B10"),
    variation(attention_flex, "B10"),
    variation(attention_query_chunks, "B10"),
    variation(attention_visible_keys_only, "B10"),
    variation(conditioning_stacked, "16"),
    variation(schedule_documented, "16", dtype="bf16", sigmas="Waypoint-1-Small"),
]
