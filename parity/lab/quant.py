"""`parity quant`: what weight quantisation costs, layer by layer, and which layers to leave out.

Each Linear is quantised alone, on the inputs of the unquantised run: its own error (SQNR), and the error that it makes in the output of the whole
model. The smallest set of layers to leave out is found by running the model, not by adding estimates up.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from parity.boundary.callables import load_callable
from parity.boundary.failing import failing
from parity.capture import split_inputs
from parity.capture.nested import tensors
from parity.errors import CaseError
from parity.files import write_text

SMALLEST_SCALE = torch.finfo(torch.float32).eps
ORDERS = ("fp32", "after")


@dataclass(frozen=True)
class Scheme:
    """Symmetric integers with one scale for each output row. `order`: the product in float32, or in the activation's dtype before the scale."""

    bits: int = 8
    order: str = "fp32"

    @property
    def top(self) -> int:
        return int(2 ** (self.bits - 1) - 1)


@dataclass(frozen=True)
class Quantised:
    """A weight's levels (out, in), scales (out,), and how many weights lie at the ends or became zero."""

    levels: Tensor
    scale: Tensor
    saturated: int
    underflowed: int


@dataclass(frozen=True)
class LayerCost:
    """One layer quantised alone. `relative`, `sqnr`: of its own output; `damage`: relative L2 error of the model's output (inf: not finite).

    product: the largest value before the scale, as a share of what the activation's dtype can hold.
    """

    path: str
    shape: tuple[int, ...]
    sqnr: float
    relative: float
    damage: float
    saturated: int
    underflowed: int
    product: float


@dataclass(frozen=True)
class QuantReport:
    """All layers, the worst first; the error with all of them, and without those of `exclude` (below `limit` if `reached`)."""

    layers: tuple[LayerCost, ...]
    everything: float
    limit: float
    exclude: tuple[str, ...]
    remaining: float
    scheme: Scheme
    dtype: str

    @property
    def reached(self) -> bool:
        return self.remaining <= self.limit


def quantise(weight: Tensor, scheme: Scheme) -> Quantised:
    """Quantise a weight (out, in) through a float32 copy."""
    w = weight.detach().float()
    scale = (w.abs().amax(dim=1) / (scheme.top + 0.5)).clamp(min=SMALLEST_SCALE)
    raw = torch.round(w * (1.0 / scale)[:, None])
    levels = raw.clamp(-scheme.top - 1, scheme.top)
    ends = int(((levels == scheme.top) | (levels == -scheme.top - 1)).sum())
    return Quantised(levels, scale, ends, int(((levels == 0) & (w != 0)).sum()))


def apply(layer: nn.Linear, q: Quantised, x: Tensor, scheme: Scheme) -> Tensor:
    """Run a layer with quantised weights."""
    if scheme.order == "after":
        y = F.linear(x, q.levels.to(x.dtype)) * q.scale.to(x.dtype)
    else:
        y = (F.linear(x.float(), q.levels) * q.scale).to(x.dtype)
    return y if layer.bias is None else y + layer.bias


@contextmanager
def quantising(layers: Mapping[str, nn.Linear], made: Mapping[str, Quantised], scheme: Scheme) -> Iterator[None]:
    """Let the named layers compute with quantised weights while the block runs; nothing of the model is changed for good."""
    with ExitStack() as stack:
        for path, layer in layers.items():
            forward = lambda input, layer=layer, q=made[path]: apply(layer, q, input, scheme)  # noqa: E731
            layer.forward = forward  # type: ignore[method-assign]
            stack.callback(layer.__dict__.pop, "forward")
        yield


def relative_error(reference: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """‖other − reference‖ / ‖reference‖ over all tensors; inf where a value is not finite."""
    if any(not bool(torch.isfinite(t).all()) for t in other):
        return math.inf
    above = sum(float((o.double() - r.double()).square().sum()) for r, o in zip(reference, other, strict=True))
    below = sum(float(r.double().square().sum()) for r in reference)
    return math.sqrt(above / below) if below > 0 else math.sqrt(above)


def decibel(relative: float) -> float:
    """SQNR of a relative error."""
    return math.inf if relative == 0 else -20 * math.log10(relative) if math.isfinite(relative) else -math.inf


def measure(
    model: nn.Module,
    inputs: Any,
    scheme: Scheme | None = None,
    limit: float = 0.01,
    told: Callable[[str], None] = lambda text: None,
) -> QuantReport:
    """Quantise every Linear of a model alone and together.

    Raises CaseError for a model without Linear layers, one whose output holds no floating tensor, or one that is not finite as it is.

    >>> measure(model, (x,), Scheme(bits=8), limit=0.01).exclude
    """  # fmt: skip
    scheme = scheme or Scheme()
    args, kwargs = split_inputs(inputs)
    layers = {path: m for path, m in model.named_modules() if isinstance(m, nn.Linear)}
    if not layers:
        raise CaseError(f"{type(model).__name__} has no Linear layer to quantise")

    def run(chosen: Sequence[str] = ()) -> list[Tensor]:
        with torch.no_grad(), quantising({p: layers[p] for p in chosen}, made, scheme):
            return [t.detach().clone() for _, t in tensors(model(*args, **kwargs)) if t.is_floating_point()]

    made = {path: quantise(layer.weight, scheme) for path, layer in layers.items()}
    seen = _inputs_of(layers, run)
    plain = run()
    if not plain:
        raise CaseError(f"{type(model).__name__} returns no floating tensor to compare")
    if relative_error(plain, plain) != 0:
        raise CaseError("the unquantised run is not finite: see `parity nonfinite`")
    costs = []
    for path, given in seen.items():
        told(path)
        costs.append(_cost(path, layers[path], made[path], given, scheme, relative_error(plain, run([path]))))
    ranked = sorted(costs, key=lambda c: -c.damage)
    names = [c.path for c in ranked]
    everything = relative_error(plain, run(names))
    exclude, remaining = _leave_out(names, everything, limit, lambda kept: relative_error(plain, run(kept)))
    dtype = str(next(iter(layers.values())).weight.dtype).removeprefix("torch.")
    return QuantReport(tuple(ranked), everything, limit, tuple(exclude), remaining, scheme, dtype)


def _inputs_of(layers: Mapping[str, nn.Linear], run: Callable[[], Any]) -> dict[str, Tensor]:
    """Return the input of each layer's first call in the unquantised run; a layer that never runs has none."""
    seen: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for path, layer in layers.items():

            def hook(module: nn.Module, given: Any, path: str = path) -> None:
                seen.setdefault(path, given[0].detach().clone())

            stack.callback(layer.register_forward_pre_hook(hook).remove)
        run()
    return seen


def _cost(path: str, layer: nn.Linear, q: Quantised, x: Tensor, scheme: Scheme, damage: float) -> LayerCost:
    with torch.no_grad():
        right, got = layer(x), apply(layer, q, x, scheme)
        product = float(F.linear(x.float(), q.levels).abs().max()) / torch.finfo(x.dtype).max
    relative = relative_error([right], [got])
    shape = tuple(layer.weight.shape)
    return LayerCost(path, shape, decibel(relative), relative, damage, q.saturated, q.underflowed, product)


def _leave_out(
    ranked: Sequence[str], everything: float, limit: float, error: Callable[[Sequence[str]], float]
) -> tuple[list[str], float]:
    """Find layers to leave out: the shortest head of the ranking that is enough, less what can be put back.

    Every step is a run of the model. The result is minimal: putting any one of them back goes over the limit.
    """
    if everything <= limit:
        return [], everything
    low, high = 0, len(ranked)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if error(ranked[middle:]) <= limit else (middle, high)
    out = list(ranked[:high])
    for path in reversed(ranked[: high - 1]):
        fewer = [p for p in out if p != path]
        if error([p for p in ranked if p not in fewer]) <= limit:
            out = fewer
    return out, error([p for p in ranked if p not in out])


def load_target(target: str) -> tuple[nn.Module, Any]:
    """Import `package.module:callable` and call it: it returns (model, inputs)."""
    make = load_callable(target if ":" in target else f"{target}:quant")
    with failing(f"{target}: making the model"):
        made = make()
    if not isinstance(made, tuple) or len(made) != 2 or not isinstance(made[0], nn.Module):
        raise CaseError(f"{target} must return (model, inputs), got {type(made).__name__}")
    return made[0], made[1]


def quant_command(
    target: str, limit: float, bits: int, order: str, top: int, as_json: Path | None, plot: Path | None, out: Console
) -> int:
    """Serve `parity quant`: status 0 when everything may be quantised, 1 when layers must be left out."""
    if not 2 <= bits <= 8:
        raise CaseError(f"--bits {bits} is not between 2 and 8")
    if order not in ORDERS:
        raise CaseError(f"--order {order} is not one of {', '.join(ORDERS)}")
    if not 0 < limit < math.inf:
        raise CaseError(f"--limit {limit} is not above 0")
    with out.status("quantising", spinner="dots") as status:
        model, inputs = load_target(target)
        with failing(f"{target}: running the model"):
            report = measure(model, inputs, Scheme(bits, order), limit, lambda path: status.update(path))
    out.print(_table(report, top))
    for line in summary(report):
        out.print(line, markup=False, soft_wrap=True)
    if as_json is not None:
        write_text(as_json, json.dumps(to_json(report), indent=1) + "\n")
    if plot is not None:
        write_text(plot, draw_report(report))
    return 0 if not report.exclude else 1


def to_json(report: QuantReport) -> dict[str, Any]:
    """The report as plain values; what is infinite becomes a word, because JSON has none."""
    plain = asdict(report) | {"reached": report.reached}
    return json.loads(json.dumps(plain), parse_constant=str)  # type: ignore[no-any-return]


def summary(report: QuantReport) -> list[str]:
    """What to do, in words."""
    count = len(report.layers)
    lines = [
        f"{count} layers in int{report.scheme.bits}, activations {report.dtype}: error of the output {_number(report.everything)}"
    ]
    burst = [c for c in report.layers if c.product > 1]
    if burst:
        worst = max(burst, key=lambda c: c.product)
        lines.append(
            f"{len(burst)} layers have a product before the scale that {report.dtype} cannot hold, "
            f"{worst.path} by {worst.product:.3g} times: multiply in float32, or scale first"
        )
    if report.exclude:
        end = "" if report.reached else f", which is not below {report.limit:g}"
        lines.append(f"leave out {len(report.exclude)} of {count} for {_number(report.remaining)}{end}:")
        lines += [f"  {path}" for path in report.exclude]
    else:
        lines.append(f"nothing has to be left out to stay below {report.limit:g}")
    return lines


def _table(report: QuantReport, top: int) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("layer", "weight", "SQNR dB", "own error", "damage", "saturated", "underflow", "product / max"):
        table.add_column(name, justify="left" if name == "layer" else "right", overflow="fold")
    for c in report.layers[:top]:
        shape = "x".join(map(str, c.shape))
        figures = (f"{c.sqnr:.1f}", _number(c.relative), _number(c.damage), str(c.saturated), str(c.underflowed))
        table.add_row(c.path, shape, *figures, f"{c.product:.2g}")
    return table


def _number(value: float) -> str:
    return "not finite" if math.isinf(value) else f"{value:.2e}"


STYLE = (
    "<style>.grid{stroke:#ddd}.rule{stroke:#b30;stroke-dasharray:4}.tick,.label{font:11px sans-serif;fill:#555}"
    ".end{text-anchor:end}.mid{text-anchor:middle}path,polyline{fill:none;stroke-width:1.5}"
    ".error{stroke:#b30}.soft{stroke:#369}.over{fill:#b30}</style>"
)


def draw_report(report: QuantReport) -> str:
    """Damage and own error over the ranking, as one SVG file; the layers to leave out stand left of the rule."""
    from parity.report.svg import Chart, Point, Series, draw

    places = [float(i) for i in range(len(report.layers))]
    chart = Chart(
        title="damage of each layer",
        series=(
            Series("own error", places, [c.relative for c in report.layers], "soft"),
            Series("damage", places, [c.damage for c in report.layers], "error"),
        ),
        points=tuple(
            Point(float(i), c.damage, f"{c.path}: {_number(c.damage)}")
            for i, c in enumerate(report.layers)
            if c.path in report.exclude
        ),
        rules=((len(report.exclude) - 0.5, "left out"),) if report.exclude else (),
        x_label="layers, the most damaging first",
        y_label="relative L2: damage to the output (red), own output (blue)",
    )
    text = str(draw(chart))
    return text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(">", f">{STYLE}", 1) + "\n"
