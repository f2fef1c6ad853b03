"""Faults and right rewrites of a backward pass and of a training step, on the synthetic video transformer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fixtures.synthetic.models import dit

Change = Callable[[nn.Module], Any]


def build() -> dit.VideoDiT:
    return dit.build(0).requires_grad_(True)


def inputs() -> tuple[Tensor, ...]:
    given = dit.make_inputs(0)
    pixels = dit.assemble(given["mask"], given["known"], given["noisy"])
    return pixels, given["timesteps"], given["text"], given["lengths"]


def changed(change: Change) -> nn.Module:
    """Return the model with its forward (of one module) or one of its settings changed; the weights stay."""
    model = build()
    change(model)
    return model


def method(path: str, function: Callable[..., Any]) -> Change:
    """Replace the forward of one module by `function(module, *args)`."""

    def change(model: nn.Module) -> None:
        module = model.get_submodule(path)
        module.forward = MethodType(function, module)  # type: ignore[method-assign]

    return change


# -- one backward pass -----------------------------------------------------------------------------------------------------


def detached_ff(ff: Any, x: Tensor) -> Tensor:
    return ff.outer(F.gelu(ff.inner(x.detach()), approximate="tanh"))


def half_detached_ff(ff: Any, x: Tensor) -> Tensor:
    h = F.gelu(ff.inner(x), approximate="tanh")
    return ff.outer(0.5 * h + 0.5 * h.detach())


def quiet_inner_ff(ff: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        h = ff.inner(x)
    return ff.outer(F.gelu(h, approximate="tanh"))


class WrongGelu(torch.autograd.Function):
    """A custom kernel: tanh GELU forward, the derivative of the erf GELU backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.gelu(x, approximate="tanh")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            return torch.autograd.grad(F.gelu(leaf), leaf, grad)[0]


class RightGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.gelu(x, approximate="tanh")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        c = (2 / torch.pi) ** 0.5
        t = torch.tanh(c * (x + 0.044715 * x**3))
        return grad * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x))


class DoubledNorm(torch.autograd.Function):
    """RMS norm whose backward forgets that the denominator depends on x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        r = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(r)
        return x * r

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (r,) = ctx.saved_tensors
        return grad * r, None


def ff_with(kernel: Any) -> Callable[..., Tensor]:
    return lambda ff, x: ff.outer(kernel.apply(ff.inner(x)))


def norm_without_denominator(norm: Any, x: Tensor) -> Tensor:
    return DoubledNorm.apply(x.float(), norm.eps).to(x.dtype) * norm.gain


def stopped_values(att: Any, x: Tensor, source: Tensor, theta: Tensor | None, keep: Tensor | None) -> Tensor:
    q, k, v = att.norm_q(att.to_q(x)), att.norm_k(att.to_k(source)), att.to_v(source)
    q, k, v = (rearrange(y, "b n (h d) -> b n h d", h=dit.HEADS) for y in (q, k, v))
    if theta is not None:
        q, k = dit.spin(q, theta), dit.spin(k, theta)
    return att.to_out(rearrange(dit.core(q, k.detach(), v, keep), "b n h d -> b n (h d)"))


def unscaled_gradient(block: Any, x: Tensor, text: Tensor, mod: Tensor, theta: Tensor, keep: Tensor) -> Tensor:
    shift1, scale1, gate1, shift2, scale2, gate2 = (block.table.float() + mod.float()).chunk(6, 1)
    h = dit.modulate(block.pre_sa(x.float()), shift1, scale1)
    x = x + block.sa(h, h, theta, None).float() * gate1.detach()
    x = x + block.xa(block.pre_xa(x), text, None, keep).float()
    h = dit.modulate(block.pre_ff(x.float()), shift2, scale2)
    return x + block.ff(h).float() * gate2


def frozen(*names: str) -> Change:
    def change(model: nn.Module) -> None:
        for name in names:
            model.get_parameter(name).requires_grad_(False)

    return change


def scaled_leaf(path: str, factor: float) -> Change:
    """A hook left behind by gradient clipping: the gradient of one parameter is multiplied."""

    def forward(linear: Any, x: Tensor) -> Tensor:
        weight = linear.weight * factor + (linear.weight * (1 - factor)).detach()
        return F.linear(x, weight, linear.bias)

    return method(path.rpartition(".")[0], forward)


# name -> (change, the module whose code has the fault)
FAULTS: dict[str, tuple[Change, str]] = {
    "ff_input_detached": (method("stack.1.ff", detached_ff), "stack.1.ff"),
    "ff_half_detached": (method("stack.0.ff", half_detached_ff), "stack.0.ff"),
    "inner_under_no_grad": (method("stack.0.ff", quiet_inner_ff), "stack.0.ff"),
    "gelu_wrong_backward": (method("stack.1.ff", ff_with(WrongGelu)), "stack.1.ff"),
    "norm_wrong_backward": (method("stack.0.sa.norm_q", norm_without_denominator), "stack.0.sa.norm_q"),
    "keys_detached": (method("stack.0.sa", stopped_values), "stack.0.sa"),
    "gate_detached": (method("stack.1", unscaled_gradient), "stack.1"),
    "weight_frozen": (frozen("stack.0.xa.to_k.weight"), "stack.0.xa.to_k"),
    "table_frozen": (frozen("stack.1.table"), "stack.1"),
    "bias_frozen": (frozen("final.proj.bias"), "final.proj"),
    "weight_gradient_halved": (scaled_leaf("stack.0.ff.inner.weight", 0.5), "stack.0.ff.inner"),
    "weight_gradient_turned": (scaled_leaf("x_embed.weight", -1.0), "x_embed"),
}


# -- right rewrites ----------------------------------------------------------------------------------------------------------


def checkpointed(path: str, reentrant: bool) -> Change:
    def change(model: nn.Module) -> None:
        module = model.get_submodule(path)
        inner = type(module).forward
        again = MethodType(lambda own, *args: checkpoint(inner, own, *args, use_reentrant=reentrant), module)
        module.forward = again  # type: ignore[method-assign]

    return change


def manual_attention(att: Any, x: Tensor, source: Tensor, theta: Tensor | None, keep: Tensor | None) -> Tensor:
    q, k, v = att.norm_q(att.to_q(x)), att.norm_k(att.to_k(source)), att.to_v(source)
    q, k, v = (rearrange(y, "b n (h d) -> b h n d", h=dit.HEADS) for y in (q, k, v))
    if theta is not None:
        q, k = (dit.spin(y.transpose(1, 2), theta).transpose(1, 2) for y in (q, k))
    scores = q @ k.mT / dit.HEAD**0.5
    if keep is not None:
        scores = scores.masked_fill(~keep, float("-inf"))
    return att.to_out(rearrange(scores.softmax(-1) @ v, "b h n d -> b n (h d)"))


def functional_ff(ff: Any, x: Tensor) -> Tensor:
    h = F.gelu(F.linear(x, ff.inner.weight, ff.inner.bias), approximate="tanh")
    return F.linear(h, ff.outer.weight, ff.outer.bias)


def chunked_ff(ff: Any, x: Tensor) -> Tensor:
    return torch.cat([ff.outer(F.gelu(ff.inner(part), approximate="tanh")) for part in x.chunk(2, 0)])


def in_place_ff(ff: Any, x: Tensor) -> Tensor:
    return ff.outer(F.gelu(ff.inner(x), approximate="tanh")).add_(0)


def renamed() -> Change:
    def change(model: nn.Module) -> None:
        for block in model.stack:  # type: ignore[union-attr]
            block.mlp = block.ff
            del block.ff
            block.__class__ = _Renamed

    return change


class _Renamed(dit.Block):
    @property
    def ff(self) -> nn.Module:
        return self.mlp  # type: ignore[return-value]


class FusedQKV(nn.Module):
    """Self-attention with one projection for q, k and v."""

    def __init__(self, att: Any) -> None:
        super().__init__()
        parts = (att.to_q, att.to_k, att.to_v)
        self.qkv = nn.Linear(dit.WIDTH, 3 * dit.WIDTH)
        with torch.no_grad():
            self.qkv.weight.copy_(torch.cat([p.weight for p in parts]))
            self.qkv.bias.copy_(torch.cat([p.bias for p in parts]))
        self.to_out, self.norm_q, self.norm_k = att.to_out, att.norm_q, att.norm_k

    def forward(self, x: Tensor, source: Tensor, theta: Tensor, keep: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k = self.norm_q(q), self.norm_k(k)
        q, k, v = (rearrange(y, "b n (h d) -> b n h d", h=dit.HEADS) for y in (q, k, v))
        context = dit.core(dit.spin(q, theta), dit.spin(k, theta), v, keep)
        return self.to_out(rearrange(context, "b n h d -> b n (h d)"))


def fused_qkv(model: nn.Module) -> None:
    for block in model.stack:  # type: ignore[union-attr]
        block.sa = FusedQKV(block.sa)


class Transposed(nn.Module):
    """A linear layer that keeps its weight the other way round."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.kernel = nn.Parameter(linear.weight.detach().t().contiguous())
        self.bias = linear.bias

    def forward(self, input: Tensor) -> Tensor:
        return input @ self.kernel + self.bias


def transposed_weights(model: nn.Module) -> None:
    for block in model.stack:  # type: ignore[union-attr]
        block.ff.inner, block.ff.outer = Transposed(block.ff.inner), Transposed(block.ff.outer)


RIGHT: dict[str, Change] = {
    "copy": lambda model: None,
    "checkpoint": checkpointed("stack.0", False),
    "checkpoint_reentrant": checkpointed("stack.1", True),
    "checkpointed_attention": checkpointed("stack.0.sa", False),
    "fused_kernel_with_backward": method("stack.1.ff", ff_with(RightGelu)),
    "attention_by_hand": method("stack.0.sa", manual_attention),
    "functional_feed_forward": method("stack.0.ff", functional_ff),
    "rows_in_chunks": method("stack.1.ff", chunked_ff),
    "in_place": method("stack.0.ff", in_place_ff),
    "renamed": renamed(),
    "fused_qkv": fused_qkv,
    "transposed_weights": transposed_weights,
}


# -- training steps --------------------------------------------------------------------------------------------------------


def trainer(
    *,
    steps: int = 2,
    zero: bool = True,
    sum_loss: bool = False,
    halves: int = 1,
    forget_mean: bool = False,
    clip: float | None = 0.5,
    loss_scale: float = 1.0,
    unscale: bool = True,
    lr: float = 1e-2,
    betas: tuple[float, float] = (0.9, 0.95),
    decay: float = 0.01,
    ema: float = 0.9,
    ema_first: bool = False,
) -> Callable[..., Tensor]:
    """Return a function that takes training steps on (module with `.net` and `.ema`) and gives the last loss."""

    def train(pair: Any, pixels: Tensor, t: Tensor, text: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        parameters = [p for p in pair.net.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=decay)
        loss = pixels.new_zeros(())
        for _ in range(steps):
            if zero:
                optimiser.zero_grad()
            for part in range(halves):
                rows = slice(part * len(pixels) // halves, (part + 1) * len(pixels) // halves)
                error = (pair.net(pixels[rows], t[rows], text[rows], lengths[rows]) - target[rows]).pow(2)
                loss = error.sum() if sum_loss else error.mean()
                weight = 1.0 if forget_mean else 1.0 / halves
                (loss * weight * loss_scale).backward()
            if unscale and loss_scale != 1.0:
                for p in parameters:
                    if p.grad is not None:
                        p.grad.div_(loss_scale)
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(parameters, clip)
            if ema_first:
                pair.average(ema)
            optimiser.step()
            if not ema_first:
                pair.average(ema)
        return loss.detach()

    return train


class Pair(nn.Module):
    """A network and its moving average."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        net.stack = net.stack[:1]  # one block will do, with every kind of parameter
        self.net, self.ema = net, copy.deepcopy(net).requires_grad_(False)

    @torch.no_grad()
    def average(self, decay: float) -> None:
        for slow, fast in zip(self.ema.parameters(), self.net.parameters(), strict=True):
            slow.mul_(decay).add_(fast, alpha=1 - decay)


def target() -> Tensor:
    return torch.randn(2, dit.LATENT, *dit.GRID, generator=torch.Generator().manual_seed(5))


# name -> (options of the port's trainer, pattern of the first site)
STEP_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "gradients_not_zeroed": ({"zero": False}, r".*\.grad"),
    "sum_for_mean": ({"sum_loss": True, "clip": None}, r".*\.grad"),
    "accumulation_without_mean": ({"halves": 2, "forget_mean": True, "clip": None}, r".*\.grad"),
    "not_unscaled": ({"loss_scale": 128.0, "unscale": False, "clip": None}, r".*\.grad"),
    "no_clipping": ({"clip": None}, r"net\..*\.grad"),
    "other_learning_rate": ({"lr": 2e-2}, r"net\..*\.after"),
    "other_betas": ({"betas": (0.9, 0.999)}, r"net\..*\.after"),
    "no_weight_decay": ({"decay": 0.0}, r"net\..*\.after"),
    "other_ema": ({"ema": 0.99}, r"ema\..*\.after"),
    "ema_before_the_step": ({"ema_first": True}, r"ema\..*\.after"),
}
STEP_RIGHT: dict[str, dict[str, Any]] = {
    "same": {},
    "halves": {"halves": 2},
    "loss_scaled_and_unscaled": {"loss_scale": 1024.0},
}
