"""Norms that both sides called: the same kernel on another shape, on other channels, or with another eps or number of groups (N1, N7)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.capture.operations import Op

from .evidence import Evidence, Explanation, Hypothesis
from .matching import as_rows, match_rows
from .operations import same

NORMS = {"native_group_norm", "group_norm", "native_layer_norm", "layer_norm", "native_batch_norm"}
ARGUMENTS = {"eps": "N1", "group": "N7", "num_groups": "N7", "normalized_shape": "N7"}


def _calls(ev: Evidence) -> list[tuple[Op, Op]]:
    """Pair the norm calls of both sides in order; none when they made another number of them."""
    ours, theirs = ([op for op in ops if op.name in NORMS and op.inputs] for ops in (ev.ref_ops, ev.port_ops))
    if len(ours) != len(theirs):
        return []
    return [(a, b) for a, b in zip(ours, theirs, strict=True) if a.name == b.name]


def normed_shape(ev: Evidence) -> Iterator[Explanation]:
    """The same norm runs on the same numbers in another shape: its statistics are taken over other axes (N7)."""
    for ref, port in _calls(ev):
        a, b = ref.inputs[0], port.inputs[0]
        if a.shape == b.shape or a.numel() != b.numel():
            continue
        if abs(float(a.double().square().sum() / b.double().square().sum().clamp_min(1e-300)) - 1) > 1e-6:
            continue
        text = f"`{port.name}` runs over {list(b.shape)} where the reference runs it over {list(a.shape)}{_at(port)}"
        yield Explanation(text, 0.0, 0.95, {"reference": list(a.shape), "port": list(b.shape)})
        return


def normed_channels(ev: Evidence) -> Iterator[Explanation]:
    """A group norm runs on the same channels in another order: its groups hold other channels (N7)."""
    for ref, port in _calls(ev):
        a, b = ref.inputs[0].detach().double().cpu(), port.inputs[0].detach().double().cpu()
        if "group" not in ref.name or a.shape != b.shape or a.dim() < 3 or same(a, b):
            continue
        match = match_rows(as_rows(b, (1,)), as_rows(a, (1,)), 1e-6)
        if match is None or not match.complete or len(np.unique(match.index)) != a.shape[1]:
            continue
        order = match.index.tolist()
        text = f"`{port.name}` groups other channels together: it takes them in the order {order[:8]}…{_at(port)}"
        yield Explanation(text, 0.0, 0.95, {"order": order})
        return


def norm_arguments(ev: Evidence) -> Iterator[Explanation]:
    """The same norm runs on the same operands with another eps, or another number of groups (N1, N7)."""
    for ref, port in _calls(ev):
        alike = len(ref.inputs) == len(port.inputs) and all(
            same(a, b) for a, b in zip(ref.inputs, port.inputs, strict=True)
        )
        if not alike:
            continue
        for name, class_id in ARGUMENTS.items():
            ours, theirs = ref.scalars.get(name), port.scalars.get(name)
            if ours != theirs:
                text = f"`{port.name}` runs with {name} {theirs} instead of {ours} on the same operands{_at(port)}"
                yield Explanation(text, 0.0, 0.96, {"argument": name, "reference": ours, "port": theirs}, class_id)
                return


def _at(op: Op) -> str:
    return f" ({op.source})" if op.source else ""


HYPOTHESES: tuple[Hypothesis, ...] = (
    Hypothesis("normed_shape", "N7", normed_shape, 0.8),
    Hypothesis("normed_channels", "N7", normed_channels, 0.7),
    Hypothesis("norm arguments", "N7", norm_arguments, 0.7),
)
