"""Models of libraries in another style: every leaf written anew, with other names and layouts of weights, below another root; nothing but form changes."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

OTHER = {"eager": "sdpa", "sdpa": "eager"}


class Dense(nn.Module):
    """A linear layer that keeps its weight as [in, out] and multiplies from the left."""

    def __init__(self, old: nn.Linear) -> None:
        super().__init__()
        self.kernel = nn.Parameter(old.weight.detach().T.contiguous())
        self.offset = None if old.bias is None else nn.Parameter(old.bias.detach().clone())
        self.in_features, self.out_features = old.in_features, old.out_features

    @property
    def weight(self) -> Tensor:
        return self.kernel.T

    @property
    def bias(self) -> Tensor | None:
        return self.offset

    def forward(self, x: Tensor) -> Tensor:
        y = torch.matmul(x, self.kernel)
        return y if self.offset is None else y + self.offset


class Norm(nn.Module):
    """Layer norm, written out in float32."""

    def __init__(self, old: nn.LayerNorm) -> None:
        super().__init__()
        self.gain = None if old.weight is None else nn.Parameter(old.weight.detach().clone())
        self.shift = None if old.bias is None else nn.Parameter(old.bias.detach().clone())
        self.axes, self.small = tuple(range(-len(old.normalized_shape), 0)), old.eps
        self.normalized_shape = old.normalized_shape

    @property
    def weight(self) -> Tensor | None:
        return self.gain

    @property
    def bias(self) -> Tensor | None:
        return self.shift

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        centred = wide - wide.mean(self.axes, keepdim=True)
        y = centred / torch.sqrt(centred.square().mean(self.axes, keepdim=True) + self.small)
        y = y if self.gain is None else y * self.gain.to(y.dtype)
        y = y if self.shift is None else y + self.shift.to(y.dtype)
        return y.to(x.dtype)


class Groups(nn.Module):
    """Group norm as a view and two moments."""

    def __init__(self, old: nn.GroupNorm) -> None:
        super().__init__()
        self.gain, self.shift = nn.Parameter(old.weight.detach().clone()), nn.Parameter(old.bias.detach().clone())
        self.count, self.small = old.num_groups, old.eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        parts = wide.reshape(x.shape[0], self.count, -1)
        spread = parts.var(-1, unbiased=False, keepdim=True)
        y = ((parts - parts.mean(-1, keepdim=True)) * torch.rsqrt(spread + self.small)).reshape(x.shape)
        each = (1, -1, *(1,) * (x.dim() - 2))
        return (y * self.gain.view(each).to(y.dtype) + self.shift.view(each).to(y.dtype)).to(x.dtype)


class Lookup(nn.Module):
    """An embedding as rows of a table."""

    def __init__(self, old: nn.Embedding) -> None:
        super().__init__()
        self.table = nn.Parameter(old.weight.detach().clone())
        self.embedding_dim, self.num_embeddings, self.padding_idx = (
            old.embedding_dim,
            old.num_embeddings,
            old.padding_idx,
        )

    @property
    def weight(self) -> Tensor:
        return self.table

    def forward(self, ids: Tensor) -> Tensor:
        return self.table.index_select(0, ids.reshape(-1)).reshape(*ids.shape, -1)


class Patches(nn.Module):
    """A two-dimensional convolution as columns times a matrix."""

    def __init__(self, old: nn.Conv2d) -> None:
        super().__init__()
        self.matrix = nn.Parameter(old.weight.detach().flatten(1).clone())
        self.offset = None if old.bias is None else nn.Parameter(old.bias.detach().clone())
        self.setting = {"kernel_size": old.kernel_size, "dilation": old.dilation, "stride": old.stride}
        self.around = old.padding
        self.shape = old.weight.shape

    @property
    def weight(self) -> Tensor:
        return self.matrix.view(self.shape)

    def forward(self, x: Tensor) -> Tensor:
        columns = functional.unfold(x, padding=self.around, **self.setting)
        y = self.matrix @ columns
        y = y if self.offset is None else y + self.offset.view(1, -1, 1)
        sizes = [
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(
                x.shape[-2:],
                self.around,
                self.setting["dilation"],
                self.setting["kernel_size"],
                self.setting["stride"],
                strict=True,
            )
        ]
        return y.unflatten(-1, sizes)


class Gate(nn.Module):
    """An activation as its formula."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "silu":
            return x * torch.sigmoid(x)
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def rewritten(model: nn.Module) -> nn.Module:
    """Return a right port of a library's model: other leaves, other attention kernel where the library offers one, another root."""
    twin = copy.deepcopy(model)
    for part in twin.modules():
        config = getattr(part, "config", None)
        if getattr(config, "_attn_implementation", None) in OTHER and not getattr(
            config, "attn_logit_softcapping", None
        ):
            config._attn_implementation = OTHER[config._attn_implementation]
    _replace(twin, {})
    return Root(twin)


class Root(nn.Module):
    """Another name for everything."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.body(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("body"), name)


def _replace(module: nn.Module, made: dict[int, nn.Module]) -> None:
    for name, child in list(module.named_children()):
        if id(child) not in made:
            made[id(child)] = _anew(child)
        if made[id(child)] is not child:
            setattr(module, name, made[id(child)])
        else:
            _replace(child, made)


def _anew(child: nn.Module) -> nn.Module:
    kind = type(child)
    if child._forward_hooks or child._forward_pre_hooks or hasattr(child, "parametrizations"):
        return child
    if kind is nn.Linear:
        return Dense(child)
    if kind is nn.LayerNorm:
        return Norm(child)
    if kind is nn.GroupNorm and child.affine:
        return Groups(child)
    if kind is nn.Embedding and child.max_norm is None:
        return Lookup(child)
    if kind is nn.Conv2d and child.groups == 1 and child.padding_mode == "zeros" and isinstance(child.padding, tuple):
        return Patches(child)
    if kind is nn.SiLU:
        return Gate("silu")
    if kind is nn.GELU and child.approximate == "none":
        return Gate("gelu")
    return child
