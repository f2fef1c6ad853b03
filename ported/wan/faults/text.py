"""Faults of the text encoder and of the prompt features (spec D13, D14, D16 and the list below)."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers import WanPipeline
from torch import Tensor
from transformers import UMT5EncoderModel
from transformers.models.umt5.modeling_umt5 import UMT5Attention

from ported.wan.faults.record import Port, PortFault, patched, recast


def attentions(port: Port) -> list[UMT5Attention]:
    """Self attention of every block."""
    return [block.layer[0].SelfAttention for block in port.text.encoder.block]


@contextmanager
def token_table_zero(port: Port) -> Iterator[None]:
    """`encoder.embed_tokens` is no longer tied to `shared` and keeps zeros."""
    kept, untied = (
        port.text.encoder.embed_tokens,
        torch.nn.Embedding.from_pretrained(torch.zeros_like(port.text.shared.weight)),
    )
    port.text.encoder.embed_tokens = untied
    try:
        yield
    finally:
        port.text.encoder.embed_tokens = kept


@contextmanager
def padded_rows_kept(port: Port) -> Iterator[None]:
    """Encoder outputs at padded positions are passed on instead of zeros."""

    def prompt_embeds(
        self: WanPipeline, prompt: list[str], num_videos_per_prompt: int = 1, max_sequence_length: int = 226, **_: Any
    ) -> Tensor:
        inputs = self.tokenizer(prompt, max_length=max_sequence_length)
        return self.text_encoder(inputs.input_ids, inputs.attention_mask).last_hidden_state

    with patched(WanPipeline, "_get_t5_prompt_embeds", prompt_embeds):
        yield


@contextmanager
def position_table_shared(port: Port) -> Iterator[None]:
    """Block 0's relative-position table serves all blocks (the T5 layout)."""
    first, *others = attentions(port)
    kept = [attention.relative_attention_bias for attention in others]
    for attention in others:
        attention.relative_attention_bias = first.relative_attention_bias
    try:
        yield
    finally:
        for attention, table in zip(others, kept, strict=True):
            attention.relative_attention_bias = table


@contextmanager
def scores_scaled(port: Port) -> Iterator[None]:
    """Scores divided by sqrt(head dim), which this family leaves out."""
    with ExitStack() as stack:
        for attention in attentions(port):
            stack.enter_context(patched(attention, "scaling", attention.key_value_proj_dim**-0.5))
        yield


class _MaskIgnored(UMT5EncoderModel):
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        return super().forward(input_ids, None, **kwargs)


@contextmanager
def mask_missing(port: Port) -> Iterator[None]:
    """The attention mask does not reach the text encoder."""
    with recast([port.text], _MaskIgnored):
        yield


class _OneSided(UMT5Attention):
    def _relative_position_bucket(self, relative_position: Tensor) -> Tensor:
        return super()._relative_position_bucket(-relative_position)


@contextmanager
def bucket_direction_reversed(port: Port) -> Iterator[None]:
    """Relative position taken as query minus key."""
    with recast(attentions(port), _OneSided):
        yield


_SHORT = {"prompt_tokens": True}
FAULTS: tuple[PortFault, ...] = (
    PortFault("token_table_zero", "D13", "W2", "token embedding untied and zero", token_table_zero, "text"),
    PortFault(
        "padded_rows_kept", "D14", "C3", "encoder output kept at padded positions", padded_rows_kept, "text", _SHORT
    ),
    PortFault(
        "position_table_shared",
        "D16",
        "W2",
        "one relative-position table for all blocks",
        position_table_shared,
        "text",
    ),
    PortFault("scores_scaled", "D+", "A5", "text attention scaled by 1/sqrt(d)", scores_scaled, "text"),
    PortFault("mask_missing", "D+", "A2", "no attention mask in the text encoder", mask_missing, "text", _SHORT),
    PortFault(
        "bucket_direction_reversed", "B", "P2", "relative position of the wrong sign", bucket_direction_reversed, "text"
    ),
)
