"""A tiny Wan transformer of diffusers, and ways to break a copy of it: each with the module that is to blame and the classes that name it."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers import transformer_wan
from torch import Tensor, nn

FRAMES, HEIGHT, WIDTH = 3, 2, 4  # of tokens: no two axes alike
DIM, HEADS = 48, 2


def build_wan(dtype: torch.dtype = torch.float32, layers: int = 3) -> WanTransformer3DModel:
    """Return the model with random weights; norm gains and biases are moved away from one and zero."""
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=HEADS, attention_head_dim=DIM // HEADS, in_channels=4, out_channels=4, text_dim=16, freq_dim=32,
        ffn_dim=96, num_layers=layers, rope_max_seq_len=16,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval().to(dtype)


def wan_inputs(dtype: torch.dtype = torch.float32, batch: int = 2) -> dict[str, Tensor]:
    """Return latents [b c f h w], one timestep a sample and text states [b l d]."""
    generator = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(batch, 4, FRAMES, 2 * HEIGHT, 2 * WIDTH, generator=generator).to(dtype),
        "timestep": torch.tensor([937, 250][:batch]),
        "encoder_hidden_states": torch.randn(batch, 5, 16, generator=generator).to(dtype),
    }


@dataclass(frozen=True)
class Break:
    """A fault of the port. `change` acts on the model; `module` is the true culprit (a regular expression); `classes` are right names of the cause, the best first."""

    name: str
    change: Callable[[nn.Module], None]
    module: str
    classes: tuple[str, ...]


def patch_forward(module: nn.Module, forward: Callable[..., object]) -> None:
    """Give one module another forward; `forward(self, original, *args, **kwargs)`."""
    plain = type(module).forward

    def changed(self: nn.Module, *args: object, **kwargs: object) -> object:
        return forward(self, lambda *a, **k: plain(self, *a, **k), *args, **kwargs)

    module.forward = types.MethodType(changed, module)  # type: ignore[method-assign]


def change_output(module: nn.Module, change: Callable[[Tensor], object]) -> None:
    patch_forward(module, lambda self, original, *args, **kwargs: change(original(*args, **kwargs)))


# -- faults -----------------------------------------------------------------------------------------------------------


def rope_offset(model: nn.Module) -> None:
    """Positions of frames start at one."""
    rope = model.rope
    for table in (rope.freqs_cos, rope.freqs_sin):
        table[:, : rope.t_dim] = table[:, : rope.t_dim].roll(-1, 0)


def rope_sin_sign(model: nn.Module) -> None:
    change_output(model.rope, lambda pair: (pair[0], -pair[1]))


def rms_eps(model: nn.Module) -> None:
    model.blocks[1].attn1.norm_q.eps = 1e-5


def ln_eps(model: nn.Module) -> None:
    model.blocks[1].norm3.eps = 1e-5


def gelu_erf(model: nn.Module) -> None:
    model.blocks[2].ffn.net[0].approximate = "none"


class BrokenProcessor(transformer_wan.WanAttnProcessor):
    """The attention of one module with its query scaled, or its value heads in another order."""

    def __init__(self, scale: float = 1.0, roll_heads: int = 0) -> None:
        super().__init__()
        self.scale, self.roll_heads = scale, roll_heads

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):  # type: ignore[no-untyped-def]
        query, key, value = transformer_wan._get_qkv_projections(attn, hidden_states, encoder_hidden_states)
        query, key = attn.norm_q(query), attn.norm_k(key)
        query, key, value = (t.unflatten(2, (attn.heads, -1)) for t in (query, key, value))
        if rotary_emb is not None:
            query, key = _rotate(query, *rotary_emb), _rotate(key, *rotary_emb)
        value = value.roll(self.roll_heads, dims=2) if self.roll_heads else value
        scale = self.scale / query.shape[-1] ** 0.5
        mixed = nn.functional.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), scale=scale
        )
        mixed = mixed.transpose(1, 2).flatten(2, 3)
        return attn.to_out[1](attn.to_out[0](mixed))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2).type_as(x)


def attn_scale(model: nn.Module) -> None:
    model.blocks[1].attn1.set_processor(BrokenProcessor(scale=0.9))


def head_permute(model: nn.Module) -> None:
    model.blocks[1].attn1.set_processor(BrokenProcessor(roll_heads=1))


def token_permute(model: nn.Module) -> None:
    order = torch.randperm(FRAMES * HEIGHT * WIDTH, generator=torch.Generator().manual_seed(2))
    change_output(model.blocks[1].ffn, lambda x: x[:, order])


def bf16_ffn(model: nn.Module) -> None:
    """One feed-forward computes in bf16: weights and activations."""
    ffn = model.blocks[1].ffn
    own = next(ffn.parameters()).dtype
    ffn.bfloat16()
    patch_forward(ffn, lambda self, original, x: original(x.to(next(self.parameters()).dtype)).to(own))


def int8_weight(model: nn.Module) -> None:
    weight = model.blocks[2].attn1.to_k.weight
    scale = weight.abs().amax() / 127
    weight.data = ((weight / scale).round() * scale).to(weight.dtype)


def swapped_modulation(model: nn.Module) -> None:
    """The block's self-attention takes its shift for its scale."""

    def forward(self, original, hidden_states, encoder_hidden_states, temb, rotary_emb):  # type: ignore[no-untyped-def]
        scale, shift, gate, c_shift, c_scale, c_gate = (self.scale_shift_table + temb.float()).chunk(6, dim=1)
        x = hidden_states
        seen = (self.norm1(x.float()) * (1 + scale) + shift).type_as(x)
        x = (x.float() + self.attn1(seen, None, None, rotary_emb) * gate).type_as(x)
        x = x + self.attn2(self.norm2(x.float()).type_as(x), encoder_hidden_states, None, None)
        seen = (self.norm3(x.float()) * (1 + c_scale) + c_shift).type_as(x)
        return (x.float() + self.ffn(seen).float() * c_gate).type_as(x)

    patch_forward(model.blocks[1], forward)


def timestep_flip(model: nn.Module) -> None:
    model.condition_embedder.timesteps_proj.flip_sin_to_cos = False


def masked_nan(model: nn.Module) -> None:
    """One value becomes NaN and is silently replaced before anyone sees it."""

    def spoil(x: Tensor) -> Tensor:
        x = x.clone()
        x[0, 3, 5] = float("nan")
        return x

    change_output(model.blocks[1].ffn.net[0].proj, spoil)
    change_output(model.blocks[1].ffn.net[0], torch.nan_to_num)


def stale_frame(model: nn.Module) -> None:
    """The last frame leaves the block as the frame before it does."""
    tokens = HEIGHT * WIDTH

    def change(x: Tensor) -> Tensor:
        return torch.cat([x[:, :-tokens], x[:, -2 * tokens : -tokens]], dim=1)

    change_output(model.blocks[1].attn1, change)


FAULTS = (
    Break("rope_offset", rope_offset, "rope", ("P2",)),
    Break("rope_sin_sign", rope_sin_sign, "rope", ("P7",)),
    Break("rms_eps", rms_eps, r"blocks\.1\.attn1\.norm_q", ("N1",)),
    Break("ln_eps", ln_eps, r"blocks\.1\.norm3", ("N1",)),
    Break("gelu_erf", gelu_erf, r"blocks\.2\.ffn\.net\.0", ("N2",)),
    Break("attn_scale", attn_scale, r"blocks\.1\.attn1", ("A5",)),
    Break("head_permute", head_permute, r"blocks\.1\.attn1", ("A10", "A6", "W3")),
    Break("token_permute", token_permute, r"blocks\.1\.ffn", ("V5", "A10")),
    # Its two projections round on their own: either is an innermost module that is at fault.
    Break("bf16_ffn", bf16_ffn, r"blocks\.1\.ffn(\..*)?", ("W11", "N4", "N3")),
    Break("int8_weight", int8_weight, r"blocks\.2\.attn1\.to_k", ("Q6", "Q2", "W1")),
    Break("swapped_modulation", swapped_modulation, r"blocks\.1", ("W5",)),
    Break("timestep_flip", timestep_flip, r"condition_embedder\.timesteps_proj", ("T2",)),
    Break("masked_nan", masked_nan, r"blocks\.1\.ffn\.net\.0\.proj", ("Q1", "A9")),
    Break("stale_frame", stale_frame, r"blocks\.1\.attn1", ("V8", "V7", "K5")),
)
BY_NAME = {fault.name: fault for fault in FAULTS}


def broken(fault: Break, model: nn.Module) -> nn.Module:
    port = copy.deepcopy(model)
    with torch.no_grad():
        fault.change(port)
    return port
