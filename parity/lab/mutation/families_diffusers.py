"""Families from diffusers: video and picture transformers, UNets and autoencoders, each a few modules wide."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from parity.lab.mutation.families import Family, finish, noise, padding


def _make(name: str, **config: Any) -> nn.Module:
    import diffusers

    torch.manual_seed(0)
    return finish(getattr(diffusers, name)(**config))


def _latents(*shape: int, text: int, dim: int, steps: tuple[int, ...] = (937, 250), **more: Any) -> dict[str, Any]:
    """Return latents, text states [2, text, dim] and a timestep a sample."""
    return {
        "hidden_states": noise(*shape),
        "encoder_hidden_states": noise(2, text, dim, seed=2),
        "timestep": torch.tensor(steps),
        "return_dict": False,
        **more,
    }


TRANSFORMERS = (
    Family(
        "wan",
        lambda: _make("WanTransformer3DModel", num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=16, ffn_dim=40, num_layers=1, rope_max_seq_len=16),
        lambda: _latents(2, 4, 3, 4, 8, text=5, dim=16),
    ),
    Family(
        "ltx",
        lambda: _make("LTXVideoTransformer3DModel", in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=12, cross_attention_dim=24, num_layers=1, caption_channels=16),
        lambda: _latents(2, 24, 8, text=7, dim=16, encoder_attention_mask=padding(2, 7), num_frames=2, height=3, width=4),
    ),
    Family(
        "cogvideox",
        lambda: _make("CogVideoXTransformer3DModel", num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=6, text_embed_dim=12, num_layers=1, sample_width=8, sample_height=6, sample_frames=9, patch_size=2, max_text_seq_length=5, use_rotary_positional_embeddings=True),
        lambda: _latents(2, 3, 4, 6, 8, text=5, dim=12, image_rotary_emb=(noise(36, 8, seed=8).cos(), noise(36, 8, seed=8).sin())),
    ),
    Family(
        "hunyuan_video",
        lambda: _make("HunyuanVideoTransformer3DModel", in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=1, num_single_layers=1, num_refiner_layers=1, patch_size=2, patch_size_t=1, guidance_embeds=True, text_embed_dim=12, pooled_projection_dim=8, rope_axes_dim=(4, 4, 4)),
        lambda: _latents(2, 4, 3, 4, 8, text=6, dim=12, encoder_attention_mask=padding(2, 6), pooled_projections=noise(2, 8, seed=4), guidance=torch.tensor([6.0, 4.0])),
    ),
    Family(
        "latte",
        lambda: _make("LatteTransformer3DModel", sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=2, caption_channels=12, in_channels=4, cross_attention_dim=16, out_channels=8, attention_bias=True, activation_fn="gelu-approximate", num_embeds_ada_norm=1000, norm_type="ada_norm_single", norm_elementwise_affine=False, video_length=3),
        lambda: _latents(2, 4, 3, 8, 8, text=5, dim=12),
    ),
    Family(
        "sana",
        lambda: _make("SanaTransformer2DModel", patch_size=1, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=4, num_attention_heads=2, num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=8, sample_size=8),
        lambda: _latents(2, 4, 6, 8, text=6, dim=8, encoder_attention_mask=padding(2, 6)),
    ),
    Family(
        "sd3",
        lambda: _make("SD3Transformer2DModel", sample_size=12, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2, caption_projection_dim=16, joint_attention_dim=12, pooled_projection_dim=10, out_channels=4, qk_norm="rms_norm"),
        lambda: _latents(2, 4, 4, 6, text=5, dim=12, pooled_projections=noise(2, 10, seed=4)),
    ),
    Family(
        "flux",
        lambda: _make("FluxTransformer2DModel", patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=12, pooled_projection_dim=10, axes_dims_rope=[4, 4, 8]),
        lambda: _latents(2, 12, 4, text=5, dim=12, steps=(1, 0), pooled_projections=noise(2, 10, seed=4), img_ids=torch.stack(torch.meshgrid(torch.zeros(1), torch.arange(3.0), torch.arange(4.0), indexing="ij"), -1).reshape(12, 3), txt_ids=torch.zeros(5, 3)) | {"timestep": torch.tensor([0.9, 0.25])},
    ),
    Family(
        "pixart",
        lambda: _make("PixArtTransformer2DModel", sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=2, in_channels=4, cross_attention_dim=16, out_channels=8, caption_channels=12, use_additional_conditions=False),
        lambda: _latents(2, 4, 8, 8, text=6, dim=12, encoder_attention_mask=padding(2, 6), added_cond_kwargs={"resolution": None, "aspect_ratio": None}),
    ),
    Family(
        "qwen_image",
        lambda: _make("QwenImageTransformer2DModel", patch_size=2, in_channels=8, out_channels=2, num_layers=1, attention_head_dim=12, num_attention_heads=2, joint_attention_dim=12, axes_dims_rope=(4, 4, 4)),
        lambda: _latents(2, 12, 8, text=5, dim=12, encoder_hidden_states_mask=padding(2, 5), img_shapes=[[(1, 3, 4)]] * 2) | {"timestep": torch.tensor([0.9, 0.25])},
    ),
    Family(
        "lumina2",
        lambda: _make("Lumina2Transformer2DModel", sample_size=8, patch_size=2, in_channels=4, hidden_size=24, num_layers=1, num_refiner_layers=1, num_attention_heads=3, num_kv_heads=1, multiple_of=2, axes_dim_rope=(4, 2, 2), axes_lens=(64, 16, 16), cap_feat_dim=12),
        lambda: _latents(2, 4, 4, 8, text=6, dim=12, encoder_attention_mask=padding(2, 6).bool()) | {"timestep": torch.tensor([0.9, 0.25])},
    ),
    Family(
        "aura_flow",
        lambda: _make("AuraFlowTransformer2DModel", sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=12, caption_projection_dim=16, out_channels=4, pos_embed_max_size=64),
        lambda: _latents(2, 4, 8, 8, text=5, dim=12) | {"timestep": torch.tensor([0.9, 0.25])},
    ),
    Family(
        "dit",
        lambda: _make("DiTTransformer2DModel", sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=2, in_channels=4, out_channels=8, num_embeds_ada_norm=8, attention_bias=True),
        lambda: {"hidden_states": noise(2, 4, 8, 8), "timestep": torch.tensor([937, 250]), "class_labels": torch.tensor([3, 5]), "return_dict": False},
    ),
)  # fmt: skip

CONVOLUTIONS = (
    Family(
        "unet",
        lambda: _make("UNet2DConditionModel", sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=12, attention_head_dim=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D")),
        lambda: {"sample": noise(2, 4, 4, 6), "timestep": torch.tensor([937, 250]), "encoder_hidden_states": noise(2, 5, 12, seed=2), "return_dict": False},
    ),
    Family(
        "autoencoder_kl",
        lambda: _make("AutoencoderKL", in_channels=3, out_channels=3, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, latent_channels=4, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2),
        lambda: {"sample": noise(2, 3, 8, 12), "return_dict": False},
    ),
    Family(
        "autoencoder_wan",
        lambda: _make("AutoencoderKLWan", base_dim=4, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[True], latents_mean=[0.0] * 4, latents_std=[1.0] * 4),
        lambda: {"sample": noise(1, 3, 5, 8, 12), "return_dict": False},
    ),
    Family(
        "autoencoder_cogvideox",
        lambda: _make("AutoencoderKLCogVideoX", in_channels=3, out_channels=3, down_block_types=("CogVideoXDownBlock3D",) * 2, up_block_types=("CogVideoXUpBlock3D",) * 2, block_out_channels=(8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2, temporal_compression_ratio=2),
        lambda: {"sample": noise(1, 3, 5, 8, 12), "return_dict": False},
    ),
    Family(
        "autoencoder_dc",
        lambda: _make("AutoencoderDC", in_channels=3, latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "EfficientViTBlock"), decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)), encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), downsample_block_type="conv", upsample_block_type="interpolate", decoder_norm_types="rms_norm", decoder_act_fns="silu"),
        lambda: {"sample": noise(2, 3, 8, 12), "return_dict": False},
    ),
)  # fmt: skip

FAMILIES = (*TRANSFORMERS, *CONVOLUTIONS)
