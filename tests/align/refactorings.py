"""Random small models, written twice: once plainly, once under random rewrites that every right port makes. A rewrite changes form and no result.

A model is a list of blocks over [b, l, d]; each has weights (a dictionary) and is built from them in a style, the set of rewrites it uses. A mutation is one wrong
number or operation in one block of the rewritten model.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

D, HEADS, HIDDEN, EXPERTS = 12, 3, 20, 3

REWRITES = {
    "mlp": ("residual", "norm", "act", "wrap", "transpose", "inline", "hidden"),
    "attention": ("residual", "norm", "fuse", "kernel", "wrap", "heads"),
    "gated": ("residual", "norm", "fuse", "halves", "hidden", "act"),
    "conv": ("residual", "fold", "last", "act", "wrap"),
    "experts": ("residual", "stack", "order"),
}
MUTATIONS = {
    "mlp": ("eps", "act", "no_bias", "no_residual", "gain"),
    "attention": ("eps", "scale", "no_residual", "heads_mixed"),
    "gated": ("eps", "swapped", "no_residual", "act"),
    "conv": ("no_bias", "no_residual", "act", "flipped"),
    "experts": ("first_only", "no_residual"),
}


@dataclass(frozen=True)
class Plan:
    kind: str
    weights: dict[str, Tensor]
    style: frozenset[str] = frozenset()
    mutation: str = ""


def draw_plan(rng: random.Random, kind: str) -> Plan:
    """Draw the weights of one block; nothing is neutral."""
    g = torch.Generator().manual_seed(rng.randrange(2**31))
    t = lambda *shape, mean=0.0, scale=0.3: mean + scale * torch.randn(*shape, generator=g)  # noqa: E731
    weights = {"norm.w": t(D, mean=1.0, scale=0.2), "norm.b": t(D)}
    if kind == "mlp":
        weights |= {"up.w": t(HIDDEN, D), "up.b": t(HIDDEN), "down.w": t(D, HIDDEN), "down.b": t(D)}
    elif kind == "attention":
        weights |= {f"{n}.{p}": t(D, D) if p == "w" else t(D) for n in "qkvo" for p in "wb"}
    elif kind == "gated":
        weights |= {"gate.w": t(HIDDEN, D), "up.w": t(HIDDEN, D), "down.w": t(D, HIDDEN)}
    elif kind == "conv":
        weights |= {
            "conv.w": t(D, D, 3, scale=0.2),
            "conv.b": t(D),
            "mean": t(D),
            "var": 0.5 + torch.rand(D, generator=g),
        }
    else:
        weights |= {"router.w": t(EXPERTS, D, scale=1.0), "experts": t(EXPERTS, D, D)}
    return Plan(kind, weights)


def linear(w: Tensor, b: Tensor | None = None) -> nn.Linear:
    made = nn.Linear(w.shape[1], w.shape[0], bias=b is not None)
    made.weight.data.copy_(w)
    if b is not None:
        made.bias.data.copy_(b)
    return made


class Transposed(nn.Module):
    """[in, out] weight, used by hand."""

    def __init__(self, w: Tensor, b: Tensor) -> None:
        super().__init__()
        self.kernel, self.offset = nn.Parameter(w.T.clone()), nn.Parameter(b.clone())

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.kernel + self.offset


class Wrapped(nn.Module):
    """A module that only calls another."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Inside(nn.Module):
    """A sub-block that adds its own input: the residual is inside."""

    def __init__(self, body: nn.Module, residual: bool) -> None:
        super().__init__()
        self.body, self.residual = body, residual

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class Norm(nn.Module):
    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.gain, self.shift = (
            nn.Parameter(plan.weights["norm.w"].clone()),
            nn.Parameter(plan.weights["norm.b"].clone()),
        )
        self.eps = 1e-2 if plan.mutation == "eps" else 1e-5

    def forward(self, x: Tensor) -> Tensor:
        y = x - x.mean(-1, keepdim=True)
        return y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps) * self.gain + self.shift


def norm(plan: Plan) -> nn.Module:
    if "norm" in plan.style:
        return Norm(plan)
    made = nn.LayerNorm(D, eps=1e-2 if plan.mutation == "eps" else 1e-5)
    made.weight.data.copy_(plan.weights["norm.w"])
    made.bias.data.copy_(plan.weights["norm.b"])
    return made


class Mlp(nn.Module):
    def __init__(self, plan: Plan, act: nn.Module) -> None:
        super().__init__()
        w, self.style, self.mutation = dict(plan.weights), plan.style, plan.mutation
        if "hidden" in plan.style:  # any order of the hidden units
            order = torch.randperm(HIDDEN, generator=torch.Generator().manual_seed(5))
            w |= {"up.w": w["up.w"][order], "up.b": w["up.b"][order], "down.w": w["down.w"][:, order]}
        self.norm, self.act = norm(plan), act
        self.up = Transposed(w["up.w"], w["up.b"]) if "transpose" in plan.style else linear(w["up.w"], w["up.b"])
        self.down = linear(w["down.w"], 0 * w["down.b"] if plan.mutation == "no_bias" else w["down.b"])
        if "wrap" in plan.style:
            self.up = Wrapped(self.up)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.norm(x))
        own = "act" in self.style or self.mutation == "act"
        y = F.gelu(y, approximate="tanh" if self.mutation == "act" else "none") if own else self.act(y)
        y = F.linear(y, self.down.weight, self.down.bias) if "inline" in self.style else self.down(y)
        return 1.1 * y if self.mutation == "gain" else y


class Attention(nn.Module):
    def __init__(self, plan: Plan, act: nn.Module) -> None:
        super().__init__()
        w, self.style, self.mutation = dict(plan.weights), plan.style, plan.mutation
        if "heads" in plan.style:
            order = torch.arange(D).view(HEADS, -1)[[2, 0, 1]].flatten()
            w |= {f"{n}.{p}": w[f"{n}.{p}"][order] for n in "qkv" for p in "wb"} | {"o.w": w["o.w"][:, order]}
        self.norm = norm(plan)
        if "fuse" in plan.style:
            self.qkv = linear(torch.cat([w[f"{n}.w"] for n in "qkv"]), torch.cat([w[f"{n}.b"] for n in "qkv"]))
        else:
            self.q, self.k, self.v = (linear(w[f"{n}.w"], w[f"{n}.b"]) for n in "qkv")
        self.o = linear(w["o.w"], w["o.b"])
        if "wrap" in plan.style:
            self.o = Wrapped(self.o)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        parts = self.qkv(y).chunk(3, -1) if "fuse" in self.style else (self.q(y), self.k(y), self.v(y))
        q, k, v = (z.unflatten(-1, (HEADS, -1)).transpose(1, 2) for z in parts)
        scale = (D // HEADS) ** -0.5 * (1.2 if self.mutation == "scale" else 1.0)
        if self.mutation == "heads_mixed":
            v = v.roll(1, 1)
        if "kernel" in self.style:
            y = F.scaled_dot_product_attention(q, k, v, scale=scale)
        else:
            y = (q @ k.mT * scale).softmax(-1) @ v
        return self.o(y.transpose(1, 2).flatten(2))


class Gated(nn.Module):
    def __init__(self, plan: Plan, act: nn.Module) -> None:
        super().__init__()
        w, self.style, self.mutation = dict(plan.weights), plan.style, plan.mutation
        if "hidden" in plan.style:
            order = torch.arange(HIDDEN).flip(0)
            w |= {n: w[n][order] for n in ("gate.w", "up.w")} | {"down.w": w["down.w"][:, order]}
        self.norm, self.act, self.down = norm(plan), act, linear(w["down.w"])
        if "fuse" in plan.style:
            names = ("up.w", "gate.w") if "halves" in plan.style else ("gate.w", "up.w")
            self.both = linear(torch.cat([w[n] for n in names]))
        else:
            self.gate, self.up = linear(w["gate.w"]), linear(w["up.w"])

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        gate, up = self.both(y).chunk(2, -1) if "fuse" in self.style else (self.gate(y), self.up(y))
        if ("halves" in self.style and "fuse" in self.style) != (self.mutation == "swapped"):
            gate, up = up, gate
        if self.mutation == "act":
            return self.down(F.silu(gate) * up)
        return self.down((F.gelu(gate) if "act" in self.style else self.act(gate)) * up)


class Conv(nn.Module):
    """Normalised by running statistics, which the port may fold into the weights."""

    def __init__(self, plan: Plan, act: nn.Module) -> None:
        super().__init__()
        w, self.style, self.mutation, self.act = plan.weights, plan.style, plan.mutation, act
        kernel, bias = w["conv.w"], w["conv.b"]
        if plan.mutation == "flipped":
            kernel = kernel.flip(-1)
        if "fold" in plan.style:
            gain = w["norm.w"] / (w["var"] + 1e-5).sqrt()
            kernel, bias = kernel * gain[:, None, None], (bias - w["mean"]) * gain + w["norm.b"]
        else:
            self.bn = nn.BatchNorm1d(D)
            for mine, name in (
                ("weight", "norm.w"),
                ("bias", "norm.b"),
                ("running_mean", "mean"),
                ("running_var", "var"),
            ):
                getattr(self.bn, mine).data.copy_(w[name])
        self.conv = nn.Conv1d(D, D, 3, padding=0 if "last" in plan.style else 1)
        self.conv.weight.data.copy_(kernel)
        self.conv.bias.data.copy_(0 * bias if plan.mutation == "no_bias" else bias)
        if "wrap" in plan.style:
            self.conv = Wrapped(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        y = x.transpose(1, 2)
        y = self.conv(F.pad(y, (1, 1)) if "last" in self.style else y)  # padded outside the module
        y = y if "fold" in self.style else self.bn(y)
        if self.mutation == "act":
            return F.relu(y).transpose(1, 2)
        return (F.gelu(y) if "act" in self.style else self.act(y)).transpose(1, 2)


class Experts(nn.Module):
    def __init__(self, plan: Plan, act: nn.Module) -> None:
        super().__init__()
        w, self.style, self.mutation = plan.weights, plan.style, plan.mutation
        order = [2, 0, 1] if "order" in plan.style else [0, 1, 2]  # rows of the router go with the experts
        self.router = linear(w["router.w"][order])
        if "stack" in plan.style:
            self.stacked = nn.Parameter(w["experts"][order].clone())
        else:
            self.experts = nn.ModuleList(linear(e) for e in w["experts"][order])

    def forward(self, x: Tensor) -> Tensor:
        share = self.router(x).softmax(-1)
        if "stack" in self.style:
            y = torch.einsum("bld,eod->bleo", x, self.stacked)
        else:
            y = torch.stack([e(x) for e in self.experts], 2)
        return y[:, :, 0] if self.mutation == "first_only" else (share[..., None] * y).sum(2)


CLASSES = {"mlp": Mlp, "attention": Attention, "gated": Gated, "conv": Conv, "experts": Experts}


class Reference(nn.Module):
    def __init__(self, plans: list[Plan]) -> None:
        super().__init__()
        self.act = nn.GELU()  # one module, shared by all blocks
        self.blocks = nn.ModuleList(CLASSES[p.kind](p, self.act) for p in plans)
        self.final = nn.Linear(D, 7)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.final(x)


class Port(nn.Module):
    def __init__(self, plans: list[Plan], final: nn.Linear) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.adds = [p.mutation != "no_residual" for p in plans]
        self.inside = ["residual" in p.style for p in plans]
        for plan, inside, adds in zip(plans, self.inside, self.adds, strict=True):
            body = CLASSES[plan.kind](plan, nn.GELU())
            self.layers.append(Inside(body, adds) if inside else body)
        self.head = linear(final.weight.data, final.bias.data)

    def forward(self, hidden_states: Tensor) -> Tensor:
        h = hidden_states
        for layer, inside, adds in zip(self.layers, self.inside, self.adds, strict=True):
            h = layer(h) if inside or not adds else h + layer(h)
        return self.head(h)


@dataclass(frozen=True)
class Example:
    reference: nn.Module
    port: nn.Module
    inputs: tuple[Tensor, ...]
    rewrites: int
    mutated: int | None = None
    text: str = ""


def draw(seed: int, mutate: bool = False) -> Example:
    """Draw one model and its rewritten twin; with `mutate`, one block of the twin is wrong."""
    rng = random.Random(seed)
    plans = [draw_plan(rng, rng.choice(list(CLASSES))) for _ in range(rng.randint(2, 3))]
    torch.manual_seed(seed)
    reference = Reference(plans).eval()
    styled = [Plan(p.kind, p.weights, frozenset(r for r in REWRITES[p.kind] if rng.random() < 0.6)) for p in plans]
    wrong = rng.randrange(len(plans)) if mutate else None
    if wrong is not None:
        p = styled[wrong]
        styled[wrong] = Plan(p.kind, p.weights, p.style, rng.choice(MUTATIONS[p.kind]))
    text = "; ".join(
        f"{p.kind} [{' '.join(sorted(p.style))}]{f' BUG {p.mutation}' if p.mutation else ''}" for p in styled
    )
    x = torch.randn(2, 5, D, generator=torch.Generator().manual_seed(seed))
    return Example(
        reference, Port(styled, reference.final).eval(), (x,), sum(len(p.style) for p in styled), wrong, text
    )
