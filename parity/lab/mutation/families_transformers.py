"""Families from transformers: language models with and without a cache, encoders, pictures, sound, state spaces."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from parity.lab.mutation.families import Family, finish, noise, padding, tokens

_TEXT = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def _make(model: str, config: str, **settings: Any) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    made = getattr(transformers, config)(**settings, attn_implementation="eager")
    return finish(getattr(transformers, model)(made))


def prompt_then_rest(model: nn.Module, input_ids: Tensor, split: int = 5) -> Tensor:
    """Run a prompt, then the other tokens on the cache that it left."""
    first = model(input_ids=input_ids[:, :split], use_cache=True)
    rest = model(input_ids=input_ids[:, split:], past_key_values=first.past_key_values, use_cache=True)
    return torch.cat([first[0], rest[0]], 1)


def _cached() -> dict[str, Any]:
    return {"input_ids": tokens(2, 9)}


def _padded() -> dict[str, Any]:
    return {"input_ids": tokens(2, 9), "attention_mask": padding(2, 9)}


LANGUAGE = (
    Family("llama", lambda: _make("LlamaForCausalLM", "LlamaConfig", **_TEXT, num_key_value_heads=2, **_IDS), _cached, prompt_then_rest),
    Family("qwen3", lambda: _make("Qwen3ForCausalLM", "Qwen3Config", **_TEXT, num_key_value_heads=2, head_dim=8, **_IDS), _cached, prompt_then_rest),
    Family("mistral", lambda: _make("MistralForCausalLM", "MistralConfig", **_TEXT, num_key_value_heads=2, sliding_window=4, **_IDS), _cached, prompt_then_rest),
    Family("gemma2", lambda: _make("Gemma2ForCausalLM", "Gemma2Config", **_TEXT, num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8, sliding_window=4, **_IDS), lambda: {**_padded(), "use_cache": False}),
    Family("mixtral", lambda: _make("MixtralForCausalLM", "MixtralConfig", **_TEXT, num_key_value_heads=2, num_local_experts=4, **_IDS), lambda: {**_padded(), "use_cache": False}),
    Family("gpt2", lambda: _make("GPT2LMHeadModel", "GPT2Config", vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32, bos_token_id=1, eos_token_id=2), _cached, prompt_then_rest),
    Family("gpt_neox", lambda: _make("GPTNeoXForCausalLM", "GPTNeoXConfig", **_TEXT, rotary_pct=0.5, bos_token_id=1, eos_token_id=2), _cached, prompt_then_rest),
    Family("phi", lambda: _make("PhiForCausalLM", "PhiConfig", **_TEXT, num_key_value_heads=2, partial_rotary_factor=0.5, qk_layernorm=True, **_IDS), lambda: {**_padded(), "use_cache": False}),
    Family("bert", lambda: _make("BertModel", "BertConfig", **_TEXT, pad_token_id=0), _padded),
    Family("deberta_v2", lambda: _make("DebertaV2Model", "DebertaV2Config", **_TEXT, relative_attention=True, position_buckets=4, max_relative_positions=8, pos_att_type=["p2c", "c2p"], norm_rel_ebd="layer_norm", share_att_key=True, pad_token_id=0), _padded),
    Family("t5", lambda: _make("T5Model", "T5Config", vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, decoder_start_token_id=0, feed_forward_proj="gated-gelu"), lambda: {**_padded(), "decoder_input_ids": tokens(2, 5, seed=6), "use_cache": False}),
    Family("bart", lambda: _make("BartModel", "BartConfig", vocab_size=64, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=32, forced_eos_token_id=None, **_IDS), lambda: {**_padded(), "decoder_input_ids": tokens(2, 5, seed=6), "use_cache": False}),
    Family("mamba", lambda: _make("MambaForCausalLM", "MambaConfig", vocab_size=64, hidden_size=24, state_size=4, num_hidden_layers=2, conv_kernel=4, expand=2, time_step_rank=4, **_IDS), lambda: {"input_ids": tokens(2, 9), "use_cache": False}),
)  # fmt: skip

SENSES = (
    Family("vit", lambda: _make("ViTModel", "ViTConfig", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=24, patch_size=8), lambda: {"pixel_values": noise(2, 3, 24, 24)}),
    Family("dinov2", lambda: _make("Dinov2Model", "Dinov2Config", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2, image_size=24, patch_size=8), lambda: {"pixel_values": noise(2, 3, 16, 32)}),
    Family("swin", lambda: _make("SwinModel", "SwinConfig", image_size=16, patch_size=2, embed_dim=8, depths=[2, 1], num_heads=[2, 4], window_size=4), lambda: {"pixel_values": noise(2, 3, 16, 16)}),
    Family("convnext", lambda: _make("ConvNextModel", "ConvNextConfig", hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=2, layer_scale_init_value=0.5), lambda: {"pixel_values": noise(2, 3, 16, 24)}),
    Family("clip", lambda: _make("CLIPTextModel", "CLIPTextConfig", vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=16, eos_token_id=63), lambda: {**_padded()}),
    Family("siglip", lambda: _make("SiglipVisionModel", "SiglipVisionConfig", hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=24, patch_size=8), lambda: {"pixel_values": noise(2, 3, 24, 24)}),
    Family("whisper", lambda: _make("WhisperModel", "WhisperConfig", vocab_size=64, num_mel_bins=8, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_source_positions=12, max_target_positions=16, decoder_start_token_id=1, **_IDS), lambda: {"input_features": noise(2, 8, 24), "decoder_input_ids": tokens(2, 6), "use_cache": False}),
    Family("wav2vec2", lambda: _make("Wav2Vec2Model", "Wav2Vec2Config", **_TEXT, conv_dim=(8, 8), conv_kernel=(4, 4), conv_stride=(4, 2), num_feat_extract_layers=2, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, mask_time_prob=0.0, layerdrop=0.0), lambda: {"input_values": noise(2, 160)}),
)  # fmt: skip

FAMILIES = (*LANGUAGE, *SENSES)
