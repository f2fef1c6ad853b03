"""Faults of the DiT's attention (spec D4-D8, D15, D19 and the list below the table)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_wan import WanAttention, WanTimeTextImageEmbedding
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


class _ContextRepeated(OpenProcessor):
    def project(self, attn: WanAttention, hidden_states: Tensor, context: Tensor) -> tuple[Tensor, ...]:
        return super().project(attn, hidden_states, context.repeat(1, RANKS, 1))


@contextmanager
def cross_keys_repeated(port: Port) -> Iterator[None]:
    """All-to-all also on cross-attention keys, whose sequence is not sharded: each key is there once a rank.

    Softmax over repeated keys gives the same output, so only the shape of k and v (and the time spent) shows it.
    """
    with processors(port.dit, "attn2", _ContextRepeated):
        yield


class _ContextSplit(OpenProcessor):
    def cut(self, context: Tensor) -> tuple[Tensor, Tensor]:
        return super().cut(context.chunk(RANKS, dim=1)[0])


@contextmanager
def context_split_over_ranks(port: Port) -> Iterator[None]:
    """Context tokens are split over ranks before the cut at 512, which then falls in the wrong place."""
    with processors(port.dit, "attn2", _ContextSplit):
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


class _MaskedText(OpenProcessor):
    def __call__(self, attn: WanAttention, hidden_states: Tensor, *args: Tensor, **kwargs: Tensor) -> Tensor:
        self.keep = attn.text_keep[0]
        return super().__call__(attn, hidden_states, *args, **kwargs)

    def attend_text(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.attend(query, key, value, self.keep[:, None, None, :])


class _RemembersText(WanTimeTextImageEmbedding):
    text_keep: list[Tensor]

    def forward(self, timestep: Tensor, encoder_hidden_states: Tensor, *args: Tensor, **kwargs: Tensor) -> tuple:
        self.text_keep[:] = [encoder_hidden_states.abs().amax(-1) > 0]  # (b, 512)
        return super().forward(timestep, encoder_hidden_states, *args, **kwargs)


@contextmanager
def text_padding_masked(port: Port) -> Iterator[None]:
    """Padded text rows are masked in cross attention, though the model was trained with them."""
    keep: list[Tensor] = []  # one list shared by the embedder, which fills it, and every cross attention
    crosses = [block.attn2 for block in port.dit.blocks]
    with (
        recast([port.dit.condition_embedder], _RemembersText, text_keep=keep),
        recast(crosses, WanAttention, text_keep=keep),
        processors(port.dit, "attn2", _MaskedText),
    ):
        yield


class _Text226(WanTimeTextImageEmbedding):
    def forward(self, timestep: Tensor, encoder_hidden_states: Tensor, *args: Tensor, **kwargs: Tensor) -> tuple:
        return super().forward(timestep, encoder_hidden_states[:, :226], *args, **kwargs)


@contextmanager
def text_226_tokens(port: Port) -> Iterator[None]:
    """Prompt features padded to 226 tokens, the default of `encode_prompt`, instead of 512."""
    with recast([port.dit.condition_embedder], _Text226):
        yield


class _NoImageTokens(WanTimeTextImageEmbedding):
    def forward(
        self, timestep: Tensor, encoder_hidden_states: Tensor, encoder_hidden_states_image: Tensor, **kwargs: int | None
    ) -> tuple:
        if not isinstance(encoder_hidden_states_image, list):  # a list is expected; a tensor is taken for "none"
            encoder_hidden_states_image = None
        return super().forward(timestep, encoder_hidden_states, encoder_hidden_states_image, **kwargs)


@contextmanager
def image_tokens_dropped(port: Port) -> Iterator[None]:
    """Image features given as a tensor are replaced by None: the model runs without its image branch."""
    with recast([port.dit.condition_embedder], _NoImageTokens):
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


class _KeysOfFirstCall(OpenProcessor):
    def __init__(self) -> None:
        super().__init__()
        self.cached: tuple[Tensor, ...] | None = None

    def project(self, attn: WanAttention, hidden_states: Tensor, context: Tensor) -> tuple[Tensor, ...]:
        query, *keys = super().project(attn, hidden_states, context)
        self.cached = self.cached or tuple(keys)
        return (query, *self.cached)


@contextmanager
def cross_keys_cached_over_branches(port: Port) -> Iterator[None]:
    """Cross-attention keys are cached at the first call and reused for the other guidance branch."""
    with processors(port.dit, "attn2", _KeysOfFirstCall):
        yield


@contextmanager
def frame_positions_missing(port: Port) -> Iterator[None]:
    """flf2v without the positions of the two image features (`emb_pos` left at its initial zero)."""
    embedder = port.dit.condition_embedder.image_embedder
    zeros = nn.Parameter(torch.zeros_like(embedder.pos_embed), requires_grad=False)
    kept, embedder.pos_embed = embedder.pos_embed, zeros
    try:
        yield
    finally:
        embedder.pos_embed = kept


class _Unscaled(OpenProcessor):
    def attend_self(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        heads_times_d = query.shape[-2] * query.shape[-1]
        return self.attend(query * (query.shape[-1] / heads_times_d) ** 0.5, key, value)


@contextmanager
def attention_scale_full_width(port: Port) -> Iterator[None]:
    """Scores scaled by the model width instead of the head dimension."""
    with processors(port.dit, "attn1", _Unscaled):
        yield


_IMAGE = {"model_type": "i2v"}
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
        "cross_keys_repeated",
        "D6",
        "D3",
        "cross-attention keys and values repeated once a rank",
        cross_keys_repeated,
        "dit",
        outcome="shape",
    ),
    PortFault(
        "context_split_over_ranks",
        "D7",
        "D3",
        "context split over ranks before the cut between image and text",
        context_split_over_ranks,
        "dit",
        _IMAGE,
    ),
    PortFault(
        "attention_exp_overflow",
        "D8",
        "A9",
        "exponential of unscaled scores overflows in float16",
        attention_exp_overflow,
        "dit",
    ),
    PortFault(
        "text_padding_masked",
        "D15",
        "A2",
        "padded text rows masked in cross attention",
        text_padding_masked,
        "dit",
        {"prompt_tokens": True},
    ),
    PortFault(
        "text_226_tokens",
        "D15",
        "C3",
        "226 text tokens instead of 512",
        text_226_tokens,
        "dit",
        {"model_type": "t2v"},
    ),
    PortFault(
        "image_tokens_dropped", "D19", "N5", "image features replaced by None", image_tokens_dropped, "dit", _IMAGE
    ),
    PortFault(
        "frame_positions_missing",
        "D+",
        "N5",
        "positions of first and last image features missing",
        frame_positions_missing,
        "dit",
        {"model_type": "flf2v"},
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
    PortFault(
        "cross_keys_cached_over_branches",
        "B",
        "K5",
        "cross-attention keys of the first prompt reused for the second",
        cross_keys_cached_over_branches,
        "pipeline",
        {"guidance": 5.0},
    ),
)
