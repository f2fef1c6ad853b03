"""`parity bench --device cuda`: is the kernel of the fingerprints right on this card, and what does capturing a model of real size cost?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from parity.capture import Modules, Recorder
from parity.capture.late import card_pass
from parity.trace.fingerprint import Fingerprint, fingerprint

DTYPES = (
    torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2, torch.bool, torch.uint8,
    torch.int8, torch.int16, torch.int32, torch.int64, torch.complex64,
)  # fmt: skip
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(0, 1),
    "every third": lambda x: x[1:, ::3],
    "expanded": lambda x: x[:, None, :300, None].expand(-1, 2, -1, 3),
    "empty": lambda x: x[:0],
}
_STRIDED = (
    torch.float32,
    torch.bfloat16,
    torch.uint8,
    torch.complex64,
)  # a kernel is compiled for each kind and layout
_HUGE = (1 << 31) + 77
_LEAVES = r".*(norm\w*|\.[qkvo]|ffn\.\d)|head"


@dataclass(frozen=True)
class Size:
    """A video transformer's shape. The default is Wan's 1.3 B at 81 frames of 480 x 832: 21 x 30 x 52 tokens."""

    width: int = 1536
    hidden: int = 8960
    heads: int = 12
    layers: int = 30
    tokens: int = 32_760
    words: int = 512


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.norm_q, self.norm_k = nn.RMSNorm(width), nn.RMSNorm(width)
        self.heads = heads

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Attend from x [b, n, d] to the context [b, m, d]."""
        q, k, v = self.norm_q(self.q(x)), self.norm_k(self.k(context)), self.v(context)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        y: Tensor = self.o(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return y


class _Block(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(size.width) for _ in range(3))
        self.self_attn, self.cross_attn = _Attention(size.width, size.heads), _Attention(size.width, size.heads)
        self.ffn = nn.Sequential(
            nn.Linear(size.width, size.hidden), nn.GELU("tanh"), nn.Linear(size.hidden, size.width)
        )

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        """Transform the tokens x [b, n, d] under the words [b, m, d]."""
        y = self.norm1(x)
        x = x + self.self_attn(y, y)
        x = x + self.cross_attn(self.norm3(x), words)
        out: Tensor = x + self.ffn(self.norm2(x))
        return out


class Transformer(nn.Module):
    """A model of the shape of Wan: enough leaf modules and bytes to be like the real thing."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block(size) for _ in range(size.layers))
        self.head = nn.Linear(size.width, 64)

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        """Return the head's output [b, n, 64]."""
        for block in self.blocks:
            x = block(x, words)
        out: Tensor = self.head(x)
        return out


@dataclass
class Work:
    """The ways of running one model, what its leaves put out in one run, and the traces of the last captures."""

    ways: dict[str, Callable[[], object]]
    bytes_out: int
    kept: Callable[[], int]


def work_of(size: Size, device: str, dtype: torch.dtype) -> Work:
    """Build the model with seeded weights and return the ways to run it, each over all outputs of its leaf modules."""
    torch.manual_seed(0)
    with torch.device(device):
        model = Transformer(size).to(dtype).eval()
        inputs = (
            torch.randn(1, size.tokens, size.width, dtype=dtype),
            torch.randn(1, size.words, size.width, dtype=dtype),
        )
    modules = [module for module in model.modules() if not list(module.children())]
    last: list[Any] = []

    def plain() -> object:
        with torch.no_grad():
            return model(*inputs)

    def captured() -> object:
        probe = Modules(model, pattern=_LEAVES, inputs=False)
        with torch.no_grad(), Recorder([probe], keep=False) as recorder:
            model(*inputs)
        last[:] = [recorder.trace]
        return None

    def hooked(take: Callable[[Tensor], object]) -> object:
        found: list[object] = []
        hooks = [m.register_forward_hook(lambda m, a, out: found.append(take(out.detach()))) for m in modules]
        try:
            plain()
        finally:
            for hook in hooks:
                hook.remove()
        return found

    counted = sum(hooked(lambda out: out.numel() * out.element_size()))  # type: ignore[call-overload]
    ways = {
        "plain": plain,
        "capture, fingerprints": captured,
        "statistics hooks": lambda: hooked(_statistics),
        "clones": lambda: hooked(torch.Tensor.clone),
    }
    return Work(ways, counted, lambda: sum(_bytes(r.sketch) for r in last[0]))


def _statistics(out: Tensor) -> dict[str, float]:
    """Take what hooks usually take, and wait for each number."""
    wide = out.float()
    return {name: getattr(wide, name)().item() for name in ("min", "max", "mean", "std", "norm")}


def _bytes(sketch: Tensor | None) -> int:
    return 256 + (0 if sketch is None else sketch.numel() * sketch.element_size())  # and the numbers of a record


# -- is it right ------------------------------------------------------------------------------------------------------


def wrong_on_card(device: str) -> tuple[int, list[str]]:
    """Compare fingerprints on the card with those of the same values on the processor. Returns how many there were, and what is wrong."""
    card = card_pass()
    if card is None:
        return 0, ["Triton does not work here: fingerprints on this card take the plain path"]
    found: list[str] = []
    batches: dict[Any, Any] = {}
    count = 0
    for name, value in _samples():
        there = value.to(device)
        batch = card.batch_of(there, batches)
        if batch is None:
            found.append(f"{name}: not covered")
            continue
        batch.add(_laid_out(name, there))
        found += [f"{name}: {text}" for text in _unlike(batch.fetch()[0], fingerprint(_laid_out(name, value)))]
        count += 1
    return count, found


def _samples() -> Iterator[tuple[str, Tensor]]:
    torch.manual_seed(1)
    base = torch.randn(37, 2045) * 3
    for dtype in DTYPES:
        value = (torch.complex(base, base.flip(0)) if dtype.is_complex else base).to(dtype)
        for layout in LAYOUTS if dtype in _STRIDED else ("contiguous",):
            yield f"{dtype}, {layout}", value
        if dtype.is_floating_point:
            spoiled = value.clone()
            flat = spoiled.view(-1)
            flat[5] = flat[9000] = flat[-1] = float("nan")
            if dtype != torch.float8_e4m3fn:  # which has no infinity
                flat[77], flat[70000] = float("inf"), -float("inf")
            yield f"{dtype}, not finite", spoiled
    yield f"torch.bfloat16, {_HUGE} elements", torch.randn(1 << 20).to(torch.bfloat16).repeat(2049)[:_HUGE]


def _laid_out(name: str, value: Tensor) -> Tensor:
    return LAYOUTS.get(name.partition(", ")[2], LAYOUTS["contiguous"])(value)


def _unlike(card: Fingerprint, host: Fingerprint) -> list[str]:
    """Say what differs: hash, counts and extremes must be equal, sums up to the order of summation."""
    found = [] if card.digest == host.digest else [f"hash {card.digest} on the card, {host.digest} on the host"]
    scale = host.stats.sumsq + host.stats.norm * host.stats.count**0.5 + 1e-300
    for name, value in vars(host.stats).items():
        other = getattr(card.stats, name)
        if abs(other - value) > 1e-9 * scale if "sum" in name else other != value:
            found.append(f"{name} {other} on the card, {value} on the host")
    if not torch.allclose(card.sketch, host.sketch, rtol=1e-9, atol=1e-9 * max(host.stats.norm, 1e-300)):
        found.append("sketch")
    return found
