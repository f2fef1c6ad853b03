"""A term of a sum left out, counted twice, or ungated; a step applied twice or not at all (N5, N6).

Formulas: d = P − R = g·y with y an earlier tensor: g = −1 the term is missing, g = +1 it is counted twice;
d = (1 − gate)·y the gate is missing; P = f(R) a step was applied twice; R = f(P) it was left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from .axes import axis_name, kind_of
from .candidates import same_shape, vectors
from .evidence import Evidence, Explanation, Hypothesis
from .fits import accept, allowance, comparable, grouped_scale, hot_index, near, noise_level, number, scalar_fit, sure


def _sample(ev: Evidence, x: Tensor) -> Tensor:
    return x.expand(ev.r.shape).reshape(-1)[hot_index(ev)]


def _loose(ev: Evidence) -> float:
    return 3 * allowance(ev)


def term(ev: Evidence) -> Iterator[Explanation]:
    """d == g·y for a captured y: missing (N5), twice (N6), or with another strength."""
    if not comparable(ev, 8):
        return
    d = _sample(ev, ev.d)
    best: tuple[float, float, str] | None = None
    r = _sample(ev, ev.r)
    if float(torch.linalg.vector_norm(ev.p)) < 0.05 * float(torch.linalg.vector_norm(ev.r)):
        return  # next to nothing is left: every large part of R would fit
    for name, y in same_shape(ev).items():
        _, rough = scalar_fit(d, _sample(ev, y))
        if rough > _loose(ev) or scalar_fit(r, _sample(ev, y))[1] < 1e-3:
            continue  # not this term, or R itself under a factor
        g, residual = scalar_fit(ev.d, y)
        if residual <= allowance(ev) and (best is None or residual < best[0]):
            best = residual, g, name
    if best is None:
        return
    residual, g, name = best
    # a residual of 1e-8 tells 1 from 0.999: a term under a tiny scale is not a missing term
    slack = max(1e-5, min(2e-3, 30 * residual), 3 * noise_level(ev) / max(ev.error, 1e-12))
    if name.startswith("port op"):
        text = f"the port adds a term that the reference has not: {number(g)} times its {name.removeprefix('port ')}"
        yield Explanation(text, residual, 0.6, {"term": name, "factor": g}, "N6")
    elif near(g, -1, slack):
        yield Explanation(
            f"P is R without the term {name}", residual, sure(ev, residual, 0.96), {"term": name, "factor": g}
        )
    elif near(g, 1, slack):
        yield Explanation(
            f"the term {name} is counted twice", residual, sure(ev, residual, 0.95), {"term": name, "factor": g}, "N6"
        )
    else:
        values = [v for pair in ev.parameters.values() for v in pair if v is not None]
        quantised = any(not v.is_floating_point() or v.element_size() == 1 for v in values)
        text = f"the term {name} has {number(1 + g)} times its strength"
        class_id = "W1" if quantised else "N5"
        trust = 0.95 if quantised else 0.85
        yield Explanation(text, residual, sure(ev, residual, trust), {"term": name, "factor": g}, class_id)


def unchanged(ev: Evidence) -> Iterator[Explanation]:
    """P == one of the module's inputs, R is not: the module did nothing, or its result was thrown away (N5)."""
    if not comparable(ev, 4):
        return
    for name, x in ev.inputs.items():
        if tuple(x.shape) != tuple(ev.r.shape) or not x.is_floating_point():
            continue
        residual = accept(ev, x.detach().to("cpu", torch.float64))
        if residual is not None:
            text = f"P equals {name}, which went in: the step leaves its input unchanged"
            yield Explanation(text, residual, sure(ev, residual, 0.95), {"equals": name})
            return


def gated_term(ev: Evidence) -> Iterator[Explanation]:
    """d == −g·y (a gated or scaled term is missing) or (1 − g)·y (the gate is missing) for captured g and y."""
    if not comparable(ev, 16) or next(term(ev), None) is not None:
        return
    d = _sample(ev, ev.d)
    gates = vectors(ev)
    for gate_name, g in gates.items():
        for name, y in same_shape(ev).items():
            if _either(ev, d, g, y) is None:
                continue
            for label, want in (("gate", (1 - g) * y), ("term", -g * y), ("scale", g * y)):
                residual = float(torch.linalg.vector_norm(ev.d - want) / torch.linalg.vector_norm(ev.d))
                if residual > allowance(ev):
                    continue
                said = {
                    "gate": f"the gate {gate_name} is not applied to {name}",
                    "term": f"the term {gate_name}·{name} is missing",
                    "scale": f"the term {gate_name}·{name} is counted twice",
                }[label]
                class_id = "N6" if label == "scale" else "N5"
                yield Explanation(
                    said, residual, sure(ev, residual, 0.95), {"gate": gate_name, "term": name, "how": label}, class_id
                )
                return


def _either(ev: Evidence, d: Tensor, g: Tensor, y: Tensor) -> str | None:
    gs, ys = _sample(ev, g), _sample(ev, y)
    size = float(torch.linalg.vector_norm(d))
    for label, want in (("gate", (1 - gs) * ys), ("term", -gs * ys), ("scale", gs * ys)):
        if float(torch.linalg.vector_norm(d - want)) <= _loose(ev) * size:
            return label
    return None


def channel_gate(ev: Evidence) -> Iterator[Explanation]:
    """d == g_c·y with one unknown factor per channel or per batch entry: a gate or modulation left out (N5)."""
    if not comparable(ev, 64) or ev.r.ndim < 2 or next(term(ev), None) is not None:
        return
    for name, y in same_shape(ev).items():
        for axes in ((ev.r.ndim - 1,), (0, ev.r.ndim - 1), (1,)):
            if max(axes) >= ev.r.ndim or ev.r.numel() // _count(ev, axes) < 6:
                continue
            g = grouped_scale(ev.d, y, axes)
            residual = float(torch.linalg.vector_norm(ev.d - g * y) / torch.linalg.vector_norm(ev.d))
            if residual <= allowance(ev):
                where = " and ".join(axis_name(a, ev.r.shape, kind_of(ev)) for a in axes)
                text = (
                    f"P − R is {name} times one factor per index of {where} ({number(float(g.min()))} to "
                    f"{number(float(g.max()))}): a gate or scale is missing or another one"
                )
                yield Explanation(text, residual, sure(ev, residual, 0.82), {"term": name, "axes": list(axes)})
                return


def _count(ev: Evidence, axes: tuple[int, ...]) -> int:
    total = 1
    for a in set(axes):
        total *= ev.r.shape[a]
    return total


def bias(ev: Evidence) -> Iterator[Explanation]:
    """d == −b or another fixed multiple of a parameter vector b (N5). Whole positive multiples are D1, in
    `parallel.py`.
    """
    k, name, residual = bias_multiple(ev)
    if (
        name
        and near(k, 1, 0.01)
        and vectors(ev)[name].numel() not in {ev.r.shape[-1], ev.r.shape[min(1, ev.r.ndim - 1)]}
    ):
        yield Explanation(
            f"the table {name} is added twice", residual, sure(ev, residual, 0.96), {"vector": name}, "N6"
        )
    elif name and (not near(k, round(k), 0.01) or k < 0.5):
        what = f"the vector {name} is missing" if near(k, -1, 0.01) else f"P − R is {number(k)} times the vector {name}"
        yield Explanation(
            what, residual, sure(ev, residual, 0.96 if near(k, -1, 0.01) else 0.8), {"vector": name, "factor": k}
        )


def bias_multiple(ev: Evidence) -> tuple[float, str, float]:
    """(k, name, residual) of d == k·b for a known vector b, or (0, "", 1)."""
    if not comparable(ev, 8):
        return 0.0, "", 1.0
    d = _sample(ev, ev.d)
    for name, b in vectors(ev).items():
        if b.numel() == ev.r.numel():
            continue
        _, rough = scalar_fit(d, _sample(ev, b))
        if rough > _loose(ev):
            continue
        k, residual = scalar_fit(ev.d, b.expand(ev.r.shape))
        if residual <= allowance(ev):
            return k, name, residual
    return 0.0, "", 1.0


def _rms(x: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


def _layer_norm(x: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], eps=1e-6)


STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "tanh gelu": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softmax": lambda x: torch.softmax(x, -1),
    "rms norm": _rms,
    "layer norm": _layer_norm,
    "l2 norm": lambda x: functional.normalize(x, dim=-1),
    "exp": lambda x: x.clamp(max=50).exp(),
    "square": torch.square,
}
NORMS = {"rms norm", "layer norm", "l2 norm"}


def step(ev: Evidence) -> Iterator[Explanation]:
    """P == f(R): f was applied twice (N6) or only by the port; R == f(P): f is missing (N5). f: activations and norms
    without affine.
    """
    if not comparable(ev, 16) or ev.r.ndim == 0 or ev.r.shape[-1] < 4 or ev.kind == "mask" or not bool(ev.p.any()):
        return
    rows = ev.r.reshape(-1, ev.r.shape[-1]), ev.p.reshape(-1, ev.r.shape[-1])
    some = torch.linspace(0, rows[0].shape[0] - 1, min(64, rows[0].shape[0])).round().to(torch.int64)
    r, p = rows[0][some], rows[1][some]
    size = float(torch.linalg.vector_norm(p - r))
    if size == 0:
        return
    own = min(size, float(torch.linalg.vector_norm(r)))  # R may be tiny against P: then d says nothing about R
    for name, f in STEPS.items():
        slack = allowance(ev) if name not in NORMS else max(allowance(ev), 0.02)
        if float(torch.linalg.vector_norm(p - f(r))) <= 3 * slack * size:
            residual = ev.residual(f(ev.r))
            if residual <= slack:
                text = f"P is {name} of R: it is applied once too often"
                own = sum(op.name == name for op in ev.ref_ops)
                twice = own > 0 and sum(op.name == name for op in ev.port_ops) > own
                best = 0.98 if twice else 0.93
                yield Explanation(text, residual, sure(ev, residual, best), {"step": name, "side": "extra"}, "N6")
                return
        if float(torch.linalg.vector_norm(r - f(p))) <= 3 * slack * own:
            smaller = torch.minimum(torch.linalg.vector_norm(ev.d), torch.linalg.vector_norm(ev.r))
            residual = float(torch.linalg.vector_norm(ev.r - f(ev.p)) / smaller)
            if residual <= slack:
                text = f"R is {name} of P: the port leaves it out"
                yield Explanation(text, residual, sure(ev, residual, 0.93), {"step": name, "side": "missing"}, "N5")
                return


def exchanged_gate(ev: Evidence) -> Iterator[Explanation]:
    """R == f(a)·b and P == f(b)·a with captured a, b: gate and up are exchanged (W3); another f is N2's business."""
    if not comparable(ev, 16):
        return
    index = hot_index(ev)
    r, p = ev.r.reshape(-1)[index], ev.p.reshape(-1)[index]
    names = list(same_shape(ev).items())[:16]
    for a_name, a in names:
        for b_name, b in names:
            if a_name == b_name:
                continue
            x, y = a.reshape(-1)[index], b.reshape(-1)[index]
            for step_name in ("silu", "gelu", "tanh gelu", "sigmoid", "relu"):
                f = STEPS[step_name]
                if float(torch.linalg.vector_norm(r - f(x) * y)) > 1e-4 * float(torch.linalg.vector_norm(r)):
                    continue
                residual = accept(ev, f(b) * a)
                if residual is not None and float(torch.linalg.vector_norm(p - r)) > 0:
                    text = f"gate and up are exchanged: P = {step_name}({b_name})·{a_name}"
                    yield Explanation(text, residual, sure(ev, residual, 0.97), {"step": step_name}, "W3")
                    return


HYPOTHESES: tuple[Hypothesis, ...] = (
    Hypothesis("term", "N5", term, 0.9),
    Hypothesis("input_unchanged", "N5", unchanged, 0.95),
    Hypothesis("gated_term", "N5", gated_term, 0.7),
    Hypothesis("channel_gate", "N5", channel_gate, 0.4),
    Hypothesis("bias_vector", "N5", bias, 0.85),
    Hypothesis("exchanged_gate", "W3", exchanged_gate, 0.8),
    Hypothesis("step_applied", "N6", step, 0.85),
)
