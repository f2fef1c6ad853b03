"""Faults of the DiT's self attention and of its q and k norms (spec D4, D5, D8 and the list below the table)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_wan import WanAttention
from torch import Tensor, nn

from ported.wan.faults.open_parts import OpenProcessor, processors
from ported.wan.faults.record import Port, PortFault, recast

RANKS = 2


class _NeverExchanged(OpenProcessor):
    def attend_self(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        shards = zip(query.chunk(RANKS, dim=1), key.chunk(RANKS, dim=1), value.chunk(RANKS, dim=1), strict=True)
        return torch.cat([self.attend(*shard) for shard in shards], dim=1)


@contextmanager
def ulysses_not_exchanged(port: Port) -> Iterator[None]:
    """Sequence parallel without the all-to-all: each rank attends within its own tokens."""
    with processors(port.dit, "attn1", _NeverExchanged):
        yield


class _RemainderDropped(OpenProcessor):
    def attend_self(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        kept = key.shape[1] // RANKS * RANKS
        return self.attend(query, key[:, :kept], value[:, :kept])


@contextmanager
def remainder_tokens_dropped(port: Port) -> Iterator[None]:
    """Floor division by the world size: the last n mod ranks tokens are never attended to."""
    with processors(port.dit, "attn1", _RemainderDropped):
        yield


class _PaddingAttended(OpenProcessor):
    MULTIPLE = 16

    def attend_self(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        missing = -key.shape[1] % self.MULTIPLE
        key, value = (F.pad(x, (0, 0, 0, 0, 0, missing)) for x in (key, value))
        return self.attend(query, key, value)


@contextmanager
def padding_attended(port: Port) -> Iterator[None]:
    """Tokens padded to a multiple for sharding; the mask that hides the padding is accepted and ignored."""
    with processors(port.dit, "attn1", _PaddingAttended):
        yield


class _GroupedRMSNorm(nn.RMSNorm):
    groups: int

    def forward(self, x: Tensor) -> Tensor:
        grouped = x.unflatten(-1, (self.groups, -1))
        return F.rms_norm(grouped, grouped.shape[-1:], eps=self.eps).flatten(-2) * self.weight


def qk_norms(port: Port) -> list[nn.RMSNorm]:
    """Every q and k norm of the DiT, those of image keys included."""
    names = ("norm_q", "norm_k", "norm_added_k")
    return [
        getattr(attn, name)
        for block in port.dit.blocks
        for attn in (block.attn1, block.attn2)
        for name in names
        if hasattr(attn, name)
    ]


@contextmanager
def qk_norm_per_shard(port: Port) -> Iterator[None]:
    """The RMS runs over a tensor-parallel shard instead of the full width."""
    with recast(qk_norms(port), _GroupedRMSNorm, groups=RANKS):
        yield


@contextmanager
def qk_norm_per_head(port: Port) -> Iterator[None]:
    """The RMS runs per head instead of across all heads."""
    with recast(qk_norms(port), _GroupedRMSNorm, groups=port.dit.config.num_attention_heads):
        yield


class _HalfExp(OpenProcessor):
    def attend_self(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        weights = (q @ k.transpose(-1, -2)).half().exp()  # neither scaled nor reduced by the maximum: inf above 11.09
        weights = weights ** (q.shape[-1] ** -0.5)
        return ((weights / weights.sum(-1, keepdim=True)).to(v.dtype) @ v).transpose(1, 2)


@contextmanager
def attention_exp_overflow(port: Port) -> Iterator[None]:
    """A low-precision attention kernel whose exponential overflows in float16: NaN, black frames."""
    with processors(port.dit, "attn1", _HalfExp):
        yield


class _FusedPerHead(OpenProcessor):
    def project(self, attn: WanAttention, hidden_states: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
        fused = torch.cat([layer(hidden_states) for layer in (attn.to_q, attn.to_k, attn.to_v)], dim=-1)
        per_head = fused.unflatten(-1, (attn.heads, 3, -1))  # written [q | k | v], read [q0 k0 v0 q1 k1 v1 ...]
        return tuple(part.flatten(-2) for part in per_head.unbind(-2))


@contextmanager
def fused_qkv_read_per_head(port: Port) -> Iterator[None]:
    """The fused projection is stored q|k|v and split as if stored head by head."""
    with processors(port.dit, "attn1", _FusedPerHead):
        yield


class _Unscaled(OpenProcessor):
    def attend_self(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        heads_times_d = query.shape[-2] * query.shape[-1]
        return self.attend(query * (query.shape[-1] / heads_times_d) ** 0.5, key, value)


@contextmanager
def attention_scale_full_width(port: Port) -> Iterator[None]:
    """Scores scaled by the model width instead of the head dimension."""
    with processors(port.dit, "attn1", _Unscaled):
        yield


FAULTS: tuple[PortFault, ...] = (
    PortFault(
        "ulysses_not_exchanged",
        "D4",
        "D3",
        "self attention only within each rank's tokens",
        ulysses_not_exchanged,
        "dit",
    ),
    PortFault(
        "remainder_tokens_dropped",
        "D4",
        "D3",
        "the last n mod ranks tokens are not attended to",
        remainder_tokens_dropped,
        "dit",
        {"odd_tokens": True},
    ),
    PortFault(
        "padding_attended", "D4", "A2", "sequence padding is attended to, its mask ignored", padding_attended, "dit"
    ),
    PortFault("qk_norm_per_shard", "D5", "A7", "q/k RMS norm over each half of the width", qk_norm_per_shard, "dit"),
    PortFault("qk_norm_per_head", "D+", "A7", "q/k RMS norm per head", qk_norm_per_head, "dit"),
    PortFault(
        "attention_exp_overflow",
        "D8",
        "A9",
        "exponential of unscaled scores overflows in float16",
        attention_exp_overflow,
        "dit",
    ),
    PortFault(
        "fused_qkv_read_per_head",
        "B",
        "W3",
        "fused q|k|v read as if stored head by head",
        fused_qkv_read_per_head,
        "dit",
    ),
    PortFault(
        "attention_scale_full_width",
        "B",
        "A5",
        "attention scaled by the model width instead of the head dimension",
        attention_scale_full_width,
        "dit",
    ),
)
