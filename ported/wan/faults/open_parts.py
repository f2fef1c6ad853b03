"""The library's attention processor and transformer block, taken apart into methods so that a fault replaces one piece.

Both compute exactly what diffusers 0.42.1 computes (a test compares them bit by bit); they exist only because the
library writes rotation, modulation and attention in one function. They call the library's `dispatch_attention_fn`
through its module, so that it can be observed as in the untouched port.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from diffusers.models.transformers import transformer_wan
from diffusers.models.transformers.transformer_wan import (
    WanAttention,
    WanAttnProcessor,
    WanTransformer3DModel,
    WanTransformerBlock,
)
from torch import Tensor

from ported.wan.faults.record import patched


class OpenProcessor(WanAttnProcessor):
    """`WanAttnProcessor` in pieces: cut, project, rotate, attend; `(b, l, heads, d)` after the projection."""

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        text, image = encoder_hidden_states, None
        if attn.add_k_proj is not None:
            image, text = self.cut(encoder_hidden_states)
        query, key, value = self.project(attn, hidden_states, text)
        query = attn.norm_q(query).unflatten(2, (attn.heads, -1))
        key = attn.norm_k(key).unflatten(2, (attn.heads, -1))
        value = value.unflatten(2, (attn.heads, -1))
        if rotary_emb is not None:
            query, key = self.rotate(query, *rotary_emb), self.rotate(key, *rotary_emb)
        from_image = None
        if image is not None:
            key_img, value_img = transformer_wan._get_added_kv_projections(attn, image)
            key_img = attn.norm_added_k(key_img).unflatten(2, (attn.heads, -1))
            from_image = self.attend(query, key_img, value_img.unflatten(2, (attn.heads, -1)))
            from_image = from_image.flatten(2, 3).type_as(query)
        attend = self.attend_text if rotary_emb is None else self.attend_self
        out = attend(query, key, value).flatten(2, 3).type_as(query)
        if from_image is not None:
            out = out + from_image
        return attn.to_out[1](attn.to_out[0](out))

    def cut(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Split `(b, n_img + 512, d)` into image and text tokens."""
        image_length = context.shape[1] - 512
        return context[:, :image_length], context[:, image_length:]

    def project(self, attn: WanAttention, hidden_states: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
        return transformer_wan._get_qkv_projections(attn, hidden_states, context)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x1, x2 = x.unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = cos[..., 0::2], sin[..., 1::2]
        out = torch.empty_like(x)
        out[..., 0::2] = x1 * cos - x2 * sin
        out[..., 1::2] = x1 * sin + x2 * cos
        return out.type_as(x)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        return transformer_wan.dispatch_attention_fn(
            query, key, value, attn_mask=mask, backend=self._attention_backend, parallel_config=None
        )

    def attend_self(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.attend(query, key, value)

    def attend_text(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.attend(query, key, value)


@contextmanager
def processors(dit: WanTransformer3DModel, which: str, cls: type[OpenProcessor]) -> Iterator[None]:
    """Give every `attn1` (self) or `attn2` (cross) of the DiT a processor of its own, and put the old ones back."""
    with ExitStack() as stack:
        for block in dit.blocks:
            stack.enter_context(patched(getattr(block, which), "processor", cls()))
        yield


class OpenBlock(WanTransformerBlock):
    """`WanTransformerBlock` (Wan2.1 path) with the modulation as a method."""

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, rotary_emb: Tensor) -> Tensor:
        x = hidden_states
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = self.modulation(temb)
        y = (self.norm1(x.float()) * (1 + scale) + shift).type_as(x)
        x = (x.float() + self.attn1(y, None, None, rotary_emb) * gate).type_as(x)
        y = self.norm2(x.float()).type_as(x)
        x = x + self.attn2(y, encoder_hidden_states, None, None)
        y = (self.norm3(x.float()) * (1 + ffn_scale) + ffn_shift).type_as(x)
        return (x.float() + self.ffn(y).float() * ffn_gate).type_as(x)

    def modulation(self, temb: Tensor) -> tuple[Tensor, ...]:
        """`temb` `(b, 6, d)` to shift, scale, gate of attention and of the feed-forward, `(b, 1, d)` float32 each."""
        return (self.scale_shift_table + temb.float()).chunk(6, dim=1)
