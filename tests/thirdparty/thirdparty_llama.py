"""Ways to break a port of a transformers model: by its settings, or by its functions while it runs (the reference never sees them)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from transformers.models.llama import modeling_llama


@dataclass(frozen=True)
class HfBreak:
    """A fault: on which model, how, which modules are to blame (a regular expression), and the classes that name it (the best first)."""

    name: str
    model: str
    module: str
    classes: tuple[str, ...]
    change: Callable[[nn.Module], None] = lambda model: None
    functions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)  # name in modeling_llama -> replacement
    attention: str = "sdpa"  # of the port; the functions of the eager attention are replaced in an eager port
    decoding: bool = False  # a prompt, then the rest on its cache


@contextmanager
def patched(functions: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    with ExitStack() as stack:
        if functions:
            stack.enter_context(mock.patch.multiple(modeling_llama, **functions))
        yield


def runner(fault: HfBreak) -> Callable[..., Any]:
    """Return what runs the port: its functions are replaced for that long only."""

    def run(module: nn.Module, **inputs: Any) -> Any:
        with patched(fault.functions):
            return prompt_then_rest(module, inputs["input_ids"]) if fault.decoding else module(**inputs)

    return run


def prompt_then_rest(module: nn.Module, input_ids: Tensor) -> Tensor:
    """Run six tokens, then the others on the cache of the first ones."""
    first = module(input_ids=input_ids[:, :6], use_cache=True)
    return module(input_ids=input_ids[:, 6:], past_key_values=first.past_key_values, use_cache=True).logits


# -- functions of the port --------------------------------------------------------------------------------------------


def interleaved_rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """Pairs (0, 1), (2, 3), … where the model has (0, d/2), (1, d/2 + 1), …"""
    half = cos.shape[-1] // 2
    c, s = (t[..., :half].repeat_interleave(2, -1).unsqueeze(unsqueeze_dim) for t in (cos, sin))

    def rotate(x: Tensor) -> Tensor:
        swapped = torch.stack((-x[..., 1::2], x[..., 0::2]), -1).flatten(-2)
        return x * c + swapped * s

    return rotate(q), rotate(k)


def tiled_kv(hidden_states: Tensor, n_rep: int) -> Tensor:
    return hidden_states.repeat(1, n_rep, 1, 1)


def top_left_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """A causal mask that is aligned to the first key, not to the last."""
    key, value = (modeling_llama.repeat_kv(t, module.num_key_value_groups) for t in (key, value))
    out = nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=query.shape[2] > 1, scale=kwargs["scaling"]
    )
    return out.transpose(1, 2).contiguous(), None


def _set(path: str, name: str, value: Any) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        owner = model.get_submodule(path)
        setattr(
            owner, name, value(getattr(owner, name)) if callable(value) and not isinstance(value, nn.Module) else value
        )

    return change


FAULTS = (
    HfBreak("rotary_pairing", "llama", r"model\.layers\.\d\.self_attn", ("P1",), functions={"apply_rotary_pos_emb": interleaved_rotary}),
    HfBreak("gqa_tiled", "llama", r"model\.layers\.\d\.self_attn", ("A6",), functions={"repeat_kv": tiled_kv}, attention="eager"),
    HfBreak("causal_corner", "llama", r"model\.layers\.\d\.self_attn", ("A1",), functions={"eager_attention_forward": top_left_attention}, attention="eager", decoding=True),
    HfBreak("rms_eps", "llama", r"model\.layers\.1\.post_attention_layernorm", ("N1",), _set("model.layers.1.post_attention_layernorm", "variance_epsilon", 1e-5)),
    HfBreak("softmax_scale", "llama", r"model\.layers\.1\.self_attn", ("A5",), _set("model.layers.1.self_attn", "scaling", lambda s: s * 8**0.5)),
    HfBreak("t5_norm_eps", "t5", r"encoder\.block\.1\.layer\.0\.layer_norm", ("N1",), _set("encoder.block.1.layer.0.layer_norm", "variance_epsilon", 1e-4)),
    HfBreak("t5_gelu", "t5", r"decoder\.block\.0\.layer\.2\.DenseReluDense(\.act)?", ("N2",), _set("decoder.block.0.layer.2.DenseReluDense", "act", nn.GELU())),
    HfBreak("clip_scale", "clip", r"vision_model\.encoder\.layers\.0\.self_attn", ("A5",), _set("vision_model.encoder.layers.0.self_attn", "scale", lambda s: s * s)),
    HfBreak("clip_gelu", "clip", r"text_model\.encoder\.layers\.1\.mlp(\.activation_fn)?", ("N2",), _set("text_model.encoder.layers.1.mlp", "activation_fn", nn.GELU())),
    HfBreak("clip_ln_eps", "clip", r"vision_model\.post_layernorm", ("N1",), _set("vision_model.post_layernorm", "eps", 1e-3)),
    HfBreak("whisper_scale", "whisper", r"decoder\.layers\.1\.encoder_attn", ("A5",), _set("decoder.layers.1.encoder_attn", "scaling", 1.0)),
    HfBreak("whisper_ln_eps", "whisper", r"encoder\.layer_norm", ("N1",), _set("encoder.layer_norm", "eps", 1e-3)),
)  # fmt: skip
