"""Faults of the noise, prompt and control conditioning, and of the output (spec C13, C17)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ..layers import MLPFusion, RMSNorm
from ..noise import N_FREQUENCIES
from ..pipeline import WaypointPipeline
from .registry import PortFault, fault, rebind


def refill_frequencies(port: WaypointPipeline) -> None:
    """Fill the noise table again and give it the values that the engine's cast leaves."""
    embedding = port.model.denoise_step_emb
    embedding.reset_frequencies(embedding.frequency_table.device)
    embedding.frequency_table = embedding.frequency_table.to(port.model.dtype).float()


def noise_scale_missing(port: WaypointPipeline) -> None:
    """The noise level is not multiplied by 1000 before its sinusoids."""

    def phase(self, sigma):
        return sigma.float().unsqueeze(-1) * self.frequency_table

    rebind(port.model.denoise_step_emb, "phase", phase)


def noise_endpoint_excluded(port: WaypointPipeline) -> None:
    """The noise frequencies stop one step short of their last value."""

    def frequencies(self, device=None):
        steps = torch.arange(N_FREQUENCIES, dtype=torch.float32, device=device)
        return torch.exp(-math.log(10000.0) * steps / N_FREQUENCIES)

    rebind(port.model.denoise_step_emb, "frequencies", frequencies)
    refill_frequencies(port)


def noise_cosine_first(port: WaypointPipeline) -> None:
    """The noise features put cosines before sines."""

    def features(self, phase):
        return 2**0.5 * torch.cat((phase.cos(), phase.sin()), dim=-1)

    rebind(port.model.denoise_step_emb, "features", features)


def noise_sqrt2_missing(port: WaypointPipeline) -> None:
    """The noise features lack their factor sqrt(2)."""

    def features(self, phase):
        return torch.cat((phase.sin(), phase.cos()), dim=-1)

    rebind(port.model.denoise_step_emb, "features", features)


def noise_embedding_v1(port: WaypointPipeline) -> None:
    """The first port's noise embedding: no factor 1000, end point excluded, cosines first, no sqrt(2)."""

    def features(self, phase):
        return torch.cat((phase.cos(), phase.sin()), dim=-1)

    noise_scale_missing(port)
    noise_endpoint_excluded(port)
    rebind(port.model.denoise_step_emb, "features", features)


def noise_frequencies_exact(port: WaypointPipeline) -> None:
    """The noise frequencies are exact where the engine's cast rounds them to bf16."""
    embedding = port.model.denoise_step_emb
    embedding.frequency_table = embedding.frequencies(embedding.frequency_table.device)


def noise_mlp_bf16(port: WaypointPipeline) -> None:
    """The MLP of the noise embedding runs in bf16 instead of fp32."""

    def forward(self, sigma):
        features = self.features(self.phase(sigma)).to(sigma.dtype)
        return self.mlp(features)

    embedding = port.model.denoise_step_emb
    embedding.mlp.to(torch.bfloat16)
    rebind(embedding, "forward", forward)


def noise_frequencies_uninitialised(port: WaypointPipeline) -> None:
    """The noise frequency buffer is left as the meta device left it; here, zero."""
    port.model.denoise_step_emb.frequency_table = torch.zeros_like(port.model.denoise_step_emb.frequency_table)


def cond_bias_dropped(port: WaypointPipeline) -> None:
    """The per-layer bias of the conditioning head is not added."""

    def hidden(self, cond):
        return F.silu(cond)

    for block in port.model.transformer.blocks:
        rebind(block.cond_head, "hidden", hidden)


def cond_scale_shift_swapped(port: WaypointPipeline) -> None:
    """The conditioning head returns shift before scale."""

    def forward(self, cond):
        hidden = self.hidden(cond)
        shift0, scale0, gate0, shift1, scale1, gate1 = (proj(hidden)[0] for proj in self.cond_proj)
        return scale0, shift0, gate0, scale1, shift1, gate1

    for block in port.model.transformer.blocks:
        rebind(block.cond_head, "forward", forward)


def cond_triplet_repeated(port: WaypointPipeline) -> None:
    """The MLP's modulation repeats that of the attention."""

    def forward(self, cond):
        hidden = self.hidden(cond)
        triplet = tuple(proj(hidden)[0] for proj in self.cond_proj[:3])
        return triplet + triplet

    for block in port.model.transformer.blocks:
        rebind(block.cond_head, "forward", forward)


def out_norm_no_silu(port: WaypointPipeline) -> None:
    """The output norm's modulation is computed without SiLU on the condition."""

    def scale_shift(self, cond):
        return self.fc(cond)[0].chunk(2, dim=-1)

    rebind(port.model.out_norm, "scale_shift", scale_shift)


def out_norm_swapped(port: WaypointPipeline) -> None:
    """The output norm takes its first half as shift and its second as scale."""

    def scale_shift(self, cond):
        shift, scale = self.fc(F.silu(cond))[0].chunk(2, dim=-1)
        return scale, shift

    rebind(port.model.out_norm, "scale_shift", scale_shift)


def output_silu_missing(port: WaypointPipeline) -> None:
    """SiLU between the output norm and the unpatchify projection is left out."""

    def output(self, tokens, cond):
        return self.unpatchify(self.out_norm(tokens, cond))[0]

    rebind(port.model, "output", output)


def unpatchify_channels_last(port: WaypointPipeline) -> None:
    """The output vector of a token is read as (ph, pw, c) instead of (c, ph, pw)."""

    def fold(self, vectors):
        height, (ph, pw) = self.config.height, self.config.patch
        return rearrange(vectors, "b (h w) (ph pw c) -> b c (h ph) (w pw)", h=height, ph=ph, pw=pw)

    rebind(port.model, "fold", fold)


def fusion_halves_swapped(port: WaypointPipeline) -> None:
    """The control fusion reads the halves of its first matrix in the wrong order."""

    def halves(self):
        weight_cond, weight_x = self.mlp.fc_in.weight.chunk(2, dim=1)
        return weight_x, weight_cond

    for block in port.model.transformer.blocks:
        if isinstance(block.ctrl_mlpfusion, MLPFusion):
            rebind(block.ctrl_mlpfusion, "halves", halves)


def controls_null_embedding(port: WaypointPipeline) -> None:
    """The learned null embedding stands in for the controls."""

    def embed_controls(self, mouse, button, scroll):
        return self.ctrl_cfg(self.ctrl_emb(mouse, button, scroll), False)

    rebind(port.model, "embed_controls", embed_controls)


def controls_buttons_first(port: WaypointPipeline) -> None:
    """The controls are concatenated as (button, mouse, scroll)."""

    def concatenate(self, mouse, button, scroll):
        return torch.cat((button, mouse, scroll), dim=-1)

    rebind(port.model.ctrl_emb, "concatenate", concatenate)


def cfg_dropout_at_inference(port: WaypointPipeline) -> None:
    """Conditioning dropout of 0.5 stays on, and the helper called without a flag replaces embeddings at random."""
    for helper in (port.model.ctrl_cfg, port.model.prompt_cfg):
        if helper is not None:
            helper.dropout = 0.5


def prompt_layers_shifted(port: WaypointPipeline) -> None:
    """Cross-attention sits one layer later than it should."""
    blocks = port.model.transformer.blocks
    layers = [None, *(block.prompt_cross_attn for block in blocks)]
    for block, cross in zip(blocks, layers, strict=False):
        block.prompt_cross_attn = cross


def control_layers_shifted(port: WaypointPipeline) -> None:
    """Control fusion sits one layer later than it should."""
    blocks = port.model.transformer.blocks
    layers = [None, *(block.ctrl_mlpfusion for block in blocks)]
    for block, fusion in zip(blocks, layers, strict=False):
        block.ctrl_mlpfusion = fusion


def prompt_not_normed(port: WaypointPipeline) -> None:
    """The prompt embedding enters cross-attention without its RMS norm."""
    for block in port.model.transformer.blocks:
        block.prompt_emb_norm = nn.Identity()


def rms_eps_1e6(port: WaypointPipeline) -> None:
    """Every RMS norm has eps 1e-6 instead of the default."""
    for module in port.modules():
        if isinstance(module, RMSNorm):
            module.eps = 1e-6


def mlp_keys_zero_filled(port: WaypointPipeline) -> None:
    """The block MLPs' keys were not renamed, and the loader filled what it missed with zeros."""
    for block in port.model.transformer.blocks:
        for linear in (block.mlp.fc_in, block.mlp.fc_out):
            linear.weight.zero_()


def layer1_weight_zeroed(port: WaypointPipeline) -> None:
    """One weight of layer 1 is zero."""
    port.model.transformer.blocks[1].mlp.fc_out.weight.zero_()


def prompt_padding_not_zeroed(port: WaypointPipeline) -> None:
    """The text stage does not zero the rows of padding."""

    def zero_padding(self, hidden, attention_mask):
        return hidden

    rebind(port.text_encoding, "zero_padding", zero_padding)


def text_bias_of_first_layer(port: WaypointPipeline) -> None:
    """The text encoder uses the first layer's relative position bias in every layer, as plain T5 does."""
    first, *rest = (block.layer[0].SelfAttention for block in port.text_encoding.encoder.encoder.block)
    for attention in rest:
        attention.relative_attention_bias = first.relative_attention_bias


FAULTS: list[PortFault] = [
    fault(noise_embedding_v1, "M1", "T2"),
    fault(noise_scale_missing, "M1", "T6"),
    fault(noise_endpoint_excluded, "M1", "T2"),
    fault(noise_cosine_first, "M1", "T2"),
    fault(noise_sqrt2_missing, "M1", "N5"),
    fault(noise_frequencies_exact, "M13", "W10", dtype="bf16"),
    fault(noise_mlp_bf16, "M13", "N4", dtype="bf16"),
    fault(noise_frequencies_uninitialised, "M14", "W10"),
    fault(cond_bias_dropped, "17", "N5", noise_conditioning="wan"),
    fault(cond_scale_shift_swapped, "17", "W5"),
    fault(cond_triplet_repeated, "17", "W5"),
    fault(out_norm_no_silu, "M7", "N5"),
    fault(out_norm_swapped, "17", "W5"),
    fault(output_silu_missing, "17", "N5"),
    fault(unpatchify_channels_last, "17", "V5", patch_not=(1, 1)),
    fault(fusion_halves_swapped, "17", "W3"),
    fault(controls_null_embedding, "17", "C1"),
    fault(controls_buttons_first, "17", "C5"),
    fault(cfg_dropout_at_inference, "M20", "N8"),
    fault(prompt_layers_shifted, "17", "N5"),
    fault(control_layers_shifted, "17", "N5"),
    fault(prompt_not_normed, "17", "N5"),
    fault(rms_eps_1e6, "M12", "N1"),
    fault(mlp_keys_zero_filled, "M19", "W2"),
    fault(layer1_weight_zeroed, "17", "W2"),
    fault(prompt_padding_not_zeroed, "M10", "C3", text_encoder=True, prompt_padding=True),
    fault(text_bias_of_first_layer, "T1", "W2", text_encoder=True),
]
