"""Small models with the things that make capturing hard: containers as results, in-place changes, loops, random numbers, failures."""

from __future__ import annotations

import functools
from collections import namedtuple
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Pair = namedtuple("Pair", ["left", "right"])


@dataclass
class Parts:
    """A result with fields; one of them is no tensor."""

    first: Tensor
    second: Tensor
    note: str = "kept"


class Block(nn.Module):
    """Norm, projection, activation, dropout that draws random numbers, and a residual that is added in place."""

    def __init__(self, width: int, eps: float = 1e-6, drop: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=eps)
        self.fc = nn.Linear(width, width)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        y = self.drop(torch.nn.functional.gelu(self.fc(self.norm(x))))
        y *= scale  # in place, on what the dropout has just returned
        return x + y


class Net(nn.Module):
    """Blocks that are called by keyword; results of the kind that is asked for."""

    def __init__(self, width: int = 6, depth: int = 2, drop: float = 0.0, result: str = "tensor") -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, drop=drop) for _ in range(depth))
        self.head = nn.Linear(width, 2 * width)
        self.result = result
        self.fail = False

    def forward(self, x: Tensor, *, gain: Tensor | None = None):
        for block in self.blocks:
            x = block(x, scale=0.5)
        if self.fail:
            raise RuntimeError("a failure inside forward")
        left, right = self.head(x if gain is None else x * gain).chunk(2, dim=-1)
        return build_result(self.result, left, right)


def build_result(kind: str, left: Tensor, right: Tensor):
    """Return the two tensors in a container of one kind."""
    if kind == "model output":
        return _model_output_class()(last=left, hidden=(right,))
    made = {
        "tensor": left + right,
        "tuple": (left, right),
        "list": [left, right],
        "dict": {"a": left, "b": [right]},
        "dataclass": Parts(left, right),
        "namedtuple": Pair(left, right),
        "nested": {"deep": (left, {"er": Pair(right, None)})},
    }
    return made[kind]


@functools.cache
def _model_output_class() -> type:
    from transformers.utils import ModelOutput

    @dataclass
    class Output(ModelOutput):
        last: Tensor | None = None
        hidden: tuple[Tensor, ...] | None = None

    return Output


def seeded(cls: type[nn.Module], seed: int = 0, **options) -> nn.Module:
    """Build a model with random weights and non-zero biases and norms (plain ones hide bugs)."""
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = cls(**options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    torch.random.set_rng_state(state)
    return model.eval()


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Return normal numbers without touching the global generator."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
