"""Mistakes that people make when they write these models again: which module is to blame, and the classes that name each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from thirdparty_transformers import load
from thirdparty_unet import MODELS
from thirdparty_wan import patch_forward
from torch import Tensor, nn


@dataclass(frozen=True)
class Mistake:
    name: str
    model: str
    module: str
    classes: tuple[str, ...]
    change: Callable[[Any], None]


MISTAKES: list[Mistake] = []


def mistake(model: str, module: str, *classes: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    def add(change: Callable[[Any], None]) -> Callable[[Any], None]:
        MISTAKES.append(Mistake(change.__name__, model, module, classes, change))
        return change

    return add


def sides(found: Mistake) -> tuple[nn.Module, nn.Module, dict[str, Tensor]]:
    """Return the reference, the port with the mistake, and inputs."""
    if found.model in MODELS:
        build, make = MODELS[found.model]
        reference, inputs = build(), make()
        port = copy.deepcopy(reference)
    else:
        (reference, inputs), (port, _) = load(found.model), load(found.model, attention="sdpa")
    with torch.no_grad():
        found.change(port)
    return reference, port, inputs


@mistake("llama", r"model\.rotary_emb", "P2")
def position_plus_one(m: Any) -> None:
    patch_forward(m.model.rotary_emb, lambda s, o, x, position_ids: o(x, position_ids + 1))


@mistake("llama", r"model\.layers\.1", "N5")
def residual_missing(m: Any) -> None:
    def forward(s: Any, o: Any, h: Tensor, **k: Any) -> Tensor:
        h = h + s.self_attn(hidden_states=s.input_layernorm(h), **k)[0]
        return s.mlp(s.post_attention_layernorm(h))

    patch_forward(m.model.layers[1], forward)


@mistake("llama", r"model\.norm", "W6")
def gain_plus_one(m: Any) -> None:
    m.model.norm.weight += 1


@mistake("llama", r"lm_head", "W2", "W13")
def head_tied(m: Any) -> None:
    m.lm_head.weight = m.model.embed_tokens.weight


@mistake("llama", r"model\.layers\.1\.mlp", "W3")
def gate_and_up_exchanged(m: Any) -> None:
    patch_forward(m.model.layers[1].mlp, lambda s, o, x: s.down_proj(s.act_fn(s.up_proj(x)) * s.gate_proj(x)))


@mistake("llama", r"model\.layers\.0\.self_attn\.o_proj", "W9")
def projection_transposed(m: Any) -> None:
    projection = m.model.layers[0].self_attn.o_proj
    projection.weight.data = projection.weight.T.contiguous()


@mistake("t5", r"encoder\.block\.\d\.layer\.0\.SelfAttention", "A2")
def mask_inverted(m: Any) -> None:
    patch_forward(m.encoder, lambda s, o, *a, attention_mask, **k: o(*a, attention_mask=1 - attention_mask, **k))


@mistake("t5", r"encoder\.block\.0\.layer\.0\.SelfAttention", "P7")
def relative_positions_negated(m: Any) -> None:
    attention = m.encoder.block[0].layer[0].SelfAttention
    original = attention.compute_bias
    attention.compute_bias = lambda *a, **k: original(*a, **k).transpose(-1, -2)


@mistake("t5", r"encoder\.block\.0\.layer\.0\.SelfAttention", "N5")
def relative_positions_missing(m: Any) -> None:
    attention = m.encoder.block[0].layer[0].SelfAttention
    original = attention.compute_bias
    attention.compute_bias = lambda *a, **k: 0 * original(*a, **k)


@mistake("clip", r"text_model\.encoder\.layers\.\d\.self_attn", "A1")
def not_causal(m: Any) -> None:
    for layer in m.text_model.encoder.layers:
        patch_forward(
            layer.self_attn, lambda s, o, *a, **k: o(*a, **(k | {"attention_mask": None, "is_causal": False}))
        )


@mistake("clip", r"text_model", "C2")
def first_token_pooled(m: Any) -> None:
    def forward(s: Any, o: Any, *a: Any, **k: Any) -> Any:
        out = o(*a, **k)
        out.pooler_output = out.last_hidden_state[:, 0]
        return out

    patch_forward(m.text_model, forward)


@mistake("whisper", r"encoder\.layers\.0\.activation_fn", "N2")
def relu_for_gelu(m: Any) -> None:
    m.encoder.layers[0].activation_fn = nn.ReLU()


@mistake("whisper", r"decoder\.layers\.0\.fc1", "N5", "W2")
def bias_dropped(m: Any) -> None:
    m.decoder.layers[0].fc1.bias = None


@mistake("unet", r"conv_in", "W9")
def kernel_transposed(m: Any) -> None:
    m.conv_in.weight.data = m.conv_in.weight.transpose(2, 3).contiguous()


@mistake("unet", r"mid_block\.attentions\.0\.transformer_blocks\.0\.attn2", "W3", "W2")
def keys_and_values_exchanged(m: Any) -> None:
    attention = m.mid_block.attentions[0].transformer_blocks[0].attn2
    attention.to_k.weight.data, attention.to_v.weight.data = attention.to_v.weight.data, attention.to_k.weight.data


@mistake("unet", r"up_blocks\.0\.upsamplers\.0", "C6")
def bilinear_for_nearest(m: Any) -> None:
    up = m.up_blocks[0].upsamplers[0]
    patch_forward(up, lambda s, o, x, *a, **k: s.conv(F.interpolate(x, scale_factor=2.0, mode="bilinear")))


@mistake("unet", r"up_blocks\.0", "C5")
def skip_joined_first(m: Any) -> None:
    def forward(
        s: Any, o: Any, hidden_states: Tensor, res_hidden_states_tuple: Any, temb: Any, *a: Any, **k: Any
    ) -> Any:
        skips = list(res_hidden_states_tuple)
        for block in s.resnets:
            hidden_states = block(torch.cat([skips.pop(), hidden_states], 1), temb)
        return s.upsamplers[0](hidden_states)

    patch_forward(m.up_blocks[0], forward)


@mistake("unet", r"down_blocks\.0\.resnets\.0", "N5")
def time_not_activated(m: Any) -> None:
    def forward(s: Any, o: Any, x: Tensor, temb: Tensor, *a: Any, **k: Any) -> Tensor:
        h = s.conv1(s.nonlinearity(s.norm1(x))) + s.time_emb_proj(temb)[:, :, None, None]
        return x + s.conv2(s.nonlinearity(s.norm2(h)))

    patch_forward(m.down_blocks[0].resnets[0], forward)


@mistake("vae", r"encoder\.down_blocks\.0\.downsamplers\.0(\.conv)?", "V3")
def padded_on_the_other_side(m: Any) -> None:
    down = m.encoder.down_blocks[0].downsamplers[0]
    patch_forward(down, lambda s, o, x, *a, **k: s.conv(F.pad(x, (1, 0, 1, 0))))


@mistake("vae", r"decoder", "C10")
def latents_scaled_twice(m: Any) -> None:
    patch_forward(m.decoder, lambda s, o, z, *a, **k: o(z / 0.18215, *a, **k))
