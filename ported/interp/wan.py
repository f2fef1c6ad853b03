"""diffusers' Wan transformer as a refiner: absolute time, sparse-linear attention, frame tokens (spec 8.4).

Precision as the library loads a model: time embedder, modulation tables, norms and rotary tables stay float32.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttention
from torch import Tensor, nn

from ported.interp.lora import inject_lora
from ported.interp.rope import AbsoluteTimeRope, rotate
from ported.interp.sla import SparseLinearAttention


class SparseProcessor(nn.Module):
    """Attention processor whose self attention is sparse-linear; cross attention stays dense, its `sla` unused."""

    def __init__(self, dense: Any, sla: SparseLinearAttention) -> None:
        super().__init__()
        self.dense, self.sla = dense, sla

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if encoder_hidden_states is not None:
            return self.dense(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb, **kwargs)
        q, k = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(hidden_states))
        q, k, v = (x.unflatten(-1, (attn.heads, -1)) for x in (q, k, attn.to_v(hidden_states)))
        if rotary_emb is not None:
            q, k = rotate(q, *rotary_emb), rotate(k, *rotary_emb)
        out = self.run_sla(q, k, v).flatten(2).type_as(hidden_states)
        return attn.to_out[1](attn.to_out[0](out))

    def run_sla(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`(b, l, h, d)`, the layout that the attention expects."""
        return self.sla(q, k, v)


class WanTransformer(WanTransformer3DModel):
    """The library's model with positional arguments, a plain tensor as result, and absolute time."""

    def forward(self, latents: Tensor, level: Tensor, text: Tensor) -> Tensor:  # type: ignore[override]
        """Change of latents `(b, c, t, h, w)` at level `(b,)` with text `(b, l, text_dim)`."""
        return super().forward(latents, level, text, return_dict=False)[0]

    def use_sla(self, topk: float, feature_map: str = "softmax", **options: Any) -> int:
        """Give every attention module a processor with its own sparse-linear attention; returns their number."""
        found = [m for m in self.modules() if isinstance(m, WanAttention)]
        for attn in found:
            sla = SparseLinearAttention(
                self.config.attention_head_dim, topk, feature_map, **{"BLKQ": 128, "BLKK": 64, **options}
            )
            attn.set_processor(SparseProcessor(attn.processor, sla))
        return len(found)

    def cast(self, dtype: torch.dtype) -> WanTransformer:
        """Cast as loading in half precision does: what is on the library's keep list, and the rotary tables, stay float32."""
        keep = set(self._keep_in_fp32_modules or ())
        for name, parameter in self.named_parameters():
            if not keep & set(name.split(".")):
                parameter.data = parameter.data.to(dtype)
        return self


def build(**config: Any) -> WanTransformer:
    """A transformer with the given configuration and absolute-time tables."""
    model = WanTransformer(**{**config, "patch_size": tuple(config.get("patch_size", (1, 2, 2)))})
    model.rope = AbsoluteTimeRope(
        model.config.attention_head_dim, model.config.patch_size, model.config.rope_max_seq_len
    )
    return model.eval()


def adapt(model: WanTransformer, sla_options: dict[str, Any], lora_options: dict[str, Any]) -> list[str]:
    """Sparse attention first, adapters second, as checkpoints are trained: the adapters wrap every `proj_l` too."""
    model.use_sla(**sla_options)
    return inject_lora(model, **lora_options)
