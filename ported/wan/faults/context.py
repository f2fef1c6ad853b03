"""Faults of what cross attention attends to, text and image tokens (spec D6, D7, D15, D19 and the list below)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.models.transformers.transformer_wan import WanAttention, WanTimeTextImageEmbedding
from torch import Tensor, nn

from ported.wan.faults.open_parts import OpenProcessor, processors
from ported.wan.faults.record import Port, PortFault, recast

RANKS = 2
_IMAGE = {"model_type": "i2v"}


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


FAULTS: tuple[PortFault, ...] = (
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
        "cross_keys_cached_over_branches",
        "B",
        "K5",
        "cross-attention keys of the first prompt reused for the second",
        cross_keys_cached_over_branches,
        "pipeline",
        {"guidance": 5.0},
    ),
)
