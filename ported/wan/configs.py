"""Official Wan configurations (spec A1, A10-A12), and the diffusers / transformers arguments they become."""

from collections.abc import Mapping
from typing import Any

Config = Mapping[str, Any]

_COMMON = {"freq_dim": 256, "text_dim": 4096, "text_len": 512, "out_dim": 16, "eps": 1e-6}
_14B = {**_COMMON, "dim": 5120, "num_heads": 40, "ffn_dim": 13824, "num_layers": 40}
REAL_DIT: dict[str, dict[str, Any]] = {
    "T2V-1.3B": {
        **_COMMON,
        "model_type": "t2v",
        "dim": 1536,
        "num_heads": 12,
        "ffn_dim": 8960,
        "num_layers": 30,
        "in_dim": 16,
    },
    "T2V-14B": {**_14B, "model_type": "t2v", "in_dim": 16},
    "I2V-14B": {**_14B, "model_type": "i2v", "in_dim": 36},
    "FLF2V-14B-720P": {**_14B, "model_type": "flf2v", "in_dim": 36},
}
REAL_VAE: dict[str, Any] = {"dim": 96, "z_dim": 16}
REAL_TEXT: dict[str, Any] = {
    "vocab": 256384,
    "dim": 4096,
    "dim_attn": 4096,
    "dim_ffn": 10240,
    "num_heads": 64,
    "num_layers": 24,
    "num_buckets": 32,
}
REAL_IMAGE: dict[str, Any] = {"image_size": 224, "patch_size": 14, "dim": 1280, "num_heads": 16, "num_layers": 32}


def dit_arguments(config: Config) -> dict[str, Any]:
    """Arguments of `WanTransformer3DModel` for an official DiT config (spec B1).

    `clip_dim` and `clip_tokens` (1280 and 257 in the official code) may be given to make tiny image-conditioned models.
    """
    kind = config["model_type"]
    if kind not in ("t2v", "i2v", "flf2v"):
        raise ValueError(f"model_type {kind!r} is not covered: choose t2v, i2v or flf2v")
    if config["dim"] % config["num_heads"]:
        raise ValueError(f"dim {config['dim']} is not a multiple of num_heads {config['num_heads']}")
    with_image = kind != "t2v"
    return {
        "patch_size": tuple(config.get("patch_size", (1, 2, 2))),
        "num_attention_heads": config["num_heads"],
        "attention_head_dim": config["dim"] // config["num_heads"],
        "in_channels": config["in_dim"],
        "out_channels": config.get("out_dim", 16),
        "text_dim": config.get("text_dim", 4096),
        "freq_dim": config.get("freq_dim", 256),
        "ffn_dim": config["ffn_dim"],
        "num_layers": config["num_layers"],
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": config.get("eps", 1e-6),
        "image_dim": config.get("clip_dim", 1280) if with_image else None,
        "added_kv_proj_dim": config["dim"] if with_image else None,
        "rope_max_seq_len": 1024,
        "pos_embed_seq_len": 2 * config.get("clip_tokens", 257) if kind == "flf2v" else None,
    }


def vae_arguments(config: Config) -> dict[str, Any]:
    """Arguments of `AutoencoderKLWan` for an official VAE config; mean and std default to those of spec A10."""
    out = {"base_dim": config["dim"], "z_dim": config.get("z_dim", 16)}
    names = ("dim_mult", "num_res_blocks", "attn_scales", "temperal_downsample", "latents_mean", "latents_std")
    return out | {name: config[name] for name in names if name in config}


def text_arguments(config: Config) -> dict[str, Any]:
    """Arguments of `UMT5Config` for an official text-encoder config (spec A11): gated tanh GELU, no dropout."""
    if config.get("shared_pos", False):
        raise ValueError("UMT5 has one position table a block; shared_pos=True is the T5 layout")
    return {
        "vocab_size": config["vocab"],
        "d_model": config["dim"],
        "d_kv": config["dim_attn"] // config["num_heads"],
        "d_ff": config["dim_ffn"],
        "num_layers": config["num_layers"],
        "num_heads": config["num_heads"],
        "relative_attention_num_buckets": config.get("num_buckets", 32),
        "relative_attention_max_distance": config.get("max_dist", 128),
        "dropout_rate": 0.0,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": False,
    }


def image_arguments(config: Config) -> dict[str, Any]:
    """Arguments of `CLIPVisionConfig` for an official CLIP config (spec A12): exact GELU, eps 1e-5.

    Accepts the long names (`num_heads`, `num_layers`, `patch_size`) and the short ones (`heads`, `layers`, `patch`).
    """
    dim = config["dim"]
    return {
        "hidden_size": dim,
        "intermediate_size": dim * config.get("mlp_ratio", 4),
        "num_hidden_layers": config.get("num_layers", config.get("layers")),
        "num_attention_heads": config.get("num_heads", config.get("heads")),
        "image_size": config["image_size"],
        "patch_size": config.get("patch_size", config.get("patch", 14)),
        "hidden_act": "gelu",
        "layer_norm_eps": config.get("norm_eps", 1e-5),
        "projection_dim": dim,
    }
