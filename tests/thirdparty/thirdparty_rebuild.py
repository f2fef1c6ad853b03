"""Another shape for the same model: a copy under other names, inside other containers, with fused projections, or with other arithmetic."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from diffusers.models.attention_processor import Attention, FusedAttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional

# Names as another author would choose them, for what diffusers and transformers call their parts.
OTHER_NAMES = {
    "blocks": "layers",
    "attn1": "self_attention",
    "attn2": "cross_attention",
    "to_q": "query",
    "to_k": "key",
    "to_v": "value",
    "to_out": "out",
    "norm_q": "q_norm",
    "norm_k": "k_norm",
    "norm1": "ln_a",
    "norm2": "ln_b",
    "norm3": "ln_c",
    "ffn": "mlp",
    "ff": "mlp",
    "net": "steps",
    "proj": "dense",
    "proj_out": "head",
    "patch_embedding": "patchify",
    "condition_embedder": "conditioning",
    "time_embedder": "t_mlp",
    "timesteps_proj": "sinusoid",
    "text_embedder": "txt_in",
    "rope": "positions",
    "down_blocks": "encoder_stages",
    "up_blocks": "decoder_stages",
    "mid_block": "bottleneck",
    "resnets": "residuals",
    "attentions": "mixers",
    "downsamplers": "shrink",
    "upsamplers": "grow",
    "time_embedding": "t_mlp",
    "time_proj": "t_sinusoid",
    "time_emb_proj": "t_shift",
    "conv_in": "stem",
    "conv_out": "last",
    "conv_norm_out": "last_norm",
    "conv1": "first",
    "conv2": "second",
    "conv_shortcut": "skip",
    "transformer_blocks": "stack",
    "encoder": "analysis",
    "decoder": "synthesis",
    "quant_conv": "moments",
    "post_quant_conv": "unmoments",
    "group_norm": "gn",
}


def renamed(model: nn.Module, names: Mapping[str, str] = OTHER_NAMES) -> nn.Module:
    """Return a copy whose children carry other names, in other classes; its code still finds them under the old ones."""
    port = copy.deepcopy(model)
    for module in list(port.modules()):
        if isinstance(module, (nn.ModuleList, nn.Sequential)):
            continue
        aliases = {old: new for old, new in names.items() if old in module._modules}
        if aliases:
            module._modules = type(module._modules)(
                (aliases.get(name, name), child) for name, child in module._modules.items()
            )
            module.__class__ = _aliased(type(module), aliases)
    return port


def _aliased(cls: type[nn.Module], aliases: Mapping[str, str]) -> type[nn.Module]:
    def __getattr__(self: nn.Module, name: str) -> object:
        return cls.__getattr__(self, aliases.get(name, name))

    return type(f"Other{cls.__name__}", (cls,), {"__getattr__": __getattr__})


class Shell(nn.Module):
    """A module around another one that adds nothing."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: object, **kwargs: object) -> object:
        return self.inner(*args, **kwargs)


def wrapped(model: nn.Module) -> nn.Module:
    return Shell(copy.deepcopy(model))


def replace_linears(model: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """Return a copy in which every Linear is another module with the same weights."""
    port = copy.deepcopy(model)
    for module in list(port.modules()):
        for name, child in list(module._modules.items()):
            if type(child) is nn.Linear:
                module._modules[name] = make(child)
    return port


class SplitK(nn.Linear):
    """A Linear that adds up two halves of its inputs, each rounded to the deployed precision."""

    def forward(self, x: Tensor) -> Tensor:
        half = self.in_features // 2
        y = functional.linear(x[..., :half], self.weight[:, :half]) + functional.linear(
            x[..., half:], self.weight[:, half:]
        )
        return y if self.bias is None else y + self.bias


class WideSum(nn.Linear):
    """A Linear that accumulates in float64."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.double()
        return functional.linear(x.double(), self.weight.double(), bias).to(x.dtype)


class StoredTransposed(nn.Module):
    """A Linear whose weight is stored [in, out], as in JAX."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.kernel = nn.Parameter(linear.weight.detach().T.contiguous())
        self.offset = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.kernel
        return y if self.offset is None else y + self.offset


def with_class(cls: type[nn.Linear]) -> Callable[[nn.Linear], nn.Module]:
    def make(linear: nn.Linear) -> nn.Module:
        linear.__class__ = cls
        return linear

    return make


def fused(model: nn.Module, drop: bool = True) -> nn.Module:
    """Return a copy with the library's own fused q/k/v projections. drop: throw the separate ones away; else they stay, unused."""
    port = copy.deepcopy(model)
    for module in port.modules():
        if hasattr(module, "fuse_projections"):
            module.fuse_projections()
            if isinstance(module, Attention):
                module.set_processor(FusedAttnProcessor2_0())
            if not drop:
                continue
            gone = ("to_q", "to_k", "to_v") if hasattr(module, "to_qkv") else ("to_k", "to_v")
            for name in gone:
                delattr(module, name)
    return port


def strided(model: nn.Module) -> nn.Module:
    """Return a copy whose matrices are views of transposed memory."""
    port = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in port.parameters():
            if parameter.dim() == 2:
                parameter.data = parameter.data.T.contiguous().T
    return port
