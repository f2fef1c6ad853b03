"""Tiny models of transformers from config, with random weights, and their inputs."""

from __future__ import annotations

import copy

import torch
import transformers as hf
from torch import Tensor, nn

Inputs = dict[str, Tensor]


def _finish(model: nn.Module) -> nn.Module:
    """Move what starts at one or zero, so that gains, biases and small weights matter."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.1 * noise if parameter.dim() == 1 else 0.05 * noise)
    return model.eval()


def build_llama(attention: str = "eager") -> nn.Module:
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=64, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2,
        max_position_embeddings=64, attn_implementation=attention, rms_norm_eps=1e-6,
    )  # fmt: skip
    return _finish(hf.LlamaForCausalLM(config))


def build_t5(attention: str = "eager") -> nn.Module:
    torch.manual_seed(0)
    config = hf.T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0, attn_implementation=attention,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return _finish(hf.T5Model(config))


def build_clip(attention: str = "eager") -> nn.Module:
    torch.manual_seed(0)
    text = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 16, "eos_token_id": 63}  # fmt: skip
    vision = {
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 24,
        "patch_size": 8,
    }
    config = hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24, attn_implementation=attention)
    return _finish(hf.CLIPModel(config))


def build_whisper(attention: str = "eager") -> nn.Module:
    torch.manual_seed(0)
    config = hf.WhisperConfig(
        vocab_size=64, num_mel_bins=8, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=64, decoder_ffn_dim=64, max_source_positions=12, max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1, attn_implementation=attention,
    )  # fmt: skip
    return _finish(hf.WhisperModel(config))


def tokens(length: int, batch: int = 2, seed: int = 5) -> Tensor:
    return torch.randint(3, 62, (batch, length), generator=torch.Generator().manual_seed(seed))


def llama_inputs() -> Inputs:
    return {"input_ids": tokens(9), "use_cache": False}  # type: ignore[dict-item]


def t5_inputs() -> Inputs:
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 6:] = 0  # unequal prompts
    return {"input_ids": tokens(9), "attention_mask": mask, "decoder_input_ids": tokens(5, seed=6), "use_cache": False}  # type: ignore[dict-item]


def clip_inputs() -> Inputs:
    ids = tokens(7)
    ids[:, -1] = 63
    return {"input_ids": ids, "pixel_values": torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(7))}


def whisper_inputs() -> Inputs:
    features = torch.randn(2, 8, 24, generator=torch.Generator().manual_seed(8))
    return {"input_features": features, "decoder_input_ids": tokens(6), "use_cache": False}  # type: ignore[dict-item]


MODELS = {
    "llama": (build_llama, llama_inputs),
    "t5": (build_t5, t5_inputs),
    "clip": (build_clip, clip_inputs),
    "whisper": (build_whisper, whisper_inputs),
}


def load(name: str, dtype: torch.dtype = torch.float32, attention: str = "eager") -> tuple[nn.Module, Inputs]:
    """Return the model (the same weights for every kind of attention) and its inputs in `dtype`."""
    build, make = MODELS[name]
    inputs = {k: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in make().items()}
    return build(attention).to(dtype), inputs


def port_of(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)
