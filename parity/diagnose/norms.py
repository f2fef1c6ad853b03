"""Norm, activation and modulation causes: eps, kind, axes, gain convention, chunk order, dropout (BUGS.md N1–N3, N6–N8, W5, W6)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from parity.diagnose.activation_causes import activation, dropout, repeated
from parity.diagnose.evidence import Evidence, Explanation, Hypothesis
from parity.diagnose.modulations import adaptive, modulation, modulation_order, modulation_outputs, modulation_source
from parity.diagnose.norm_calls import HYPOTHESES as NORM_CALLS
from parity.diagnose.normal_forms import EPS, Kind, kinds, norm_of, unit
from parity.diagnose.roles import (
    comparable,
    comparable_floats,
    confidence,
    fitted,
    limit,
    parameter_vectors,
)
from parity.diagnose.skipped_calls import HYPOTHESES as SKIPPED_CALLS


def norm_eps(ev: Evidence) -> Iterable[Explanation]:
    """N1: P = a·(x − m)/sqrt(v + eps') + b, all but eps as in R. Without x: (1/‖P‖² − 1)/(1/‖R‖² − 1) is the ratio of the eps."""
    if not comparable_floats(ev):
        return
    norm = norm_of(ev)
    if norm is None:
        yield from _eps_from_ratio(ev)
        return

    def residual(eps: float) -> float:
        value = norm(eps=eps)
        return ev.residual(value) if bool(torch.isfinite(value).all()) else math.inf

    other = min((eps for eps in EPS if eps != norm.eps), key=residual)
    if residual(other) > limit(ev) and ev.r.numel() <= 2_000_000:
        grid = [10.0 ** (n / 4) for n in range(-32, 1)]
        start = min(grid, key=residual)
        low, high = math.log(start) - 0.6, math.log(start) + 0.6
        for _ in range(28):
            third = (high - low) / 3
            if residual(math.exp(low + third)) < residual(math.exp(high - third)):
                high -= third
            else:
                low += third
        other = math.exp((low + high) / 2)
    if math.isclose(other, norm.eps, rel_tol=1e-3, abs_tol=1e-13):
        return
    ours = norm.eps
    for name, (one, two) in ev.settings.items():  # below what the values can tell, the modules' own settings can
        if (
            "eps" in name
            and isinstance(one, float)
            and isinstance(two, float)
            and math.isclose(two, other, rel_tol=0.05)
        ):
            ours, other = one, two
    text = f"the {norm.kind.text} has eps {other:.3g} instead of {ours:.3g}"
    yield from fitted(ev, norm(eps=other), text, 0.97, "N1", reference=ours, port=other)


def _eps_from_ratio(ev: Evidence) -> Iterator[Explanation]:
    """P/R is one number per token and R, P have mean square v/(v + eps): the two eps have one ratio for all tokens."""
    if ev.r.dim() < 2 or ev.r.shape[-1] < 8 or ev.error > 0.5 or ev.r.numel() < 6 * ev.r.shape[-1]:
        return
    r, p = ev.r.flatten(0, -2), ev.p.flatten(0, -2)
    alive = (r != 0).any(-1)
    if int(alive.sum()) < 4:
        return
    gains: list[Tensor | None] = [None, *(w for _, w in parameter_vectors(ev, r.shape[-1]))]
    factor = (r * p).sum(-1, keepdim=True) / r.square().sum(-1, keepdim=True).clamp_min(1e-300)
    explained = (r * factor).reshape(ev.p.shape)
    if ev.residual(explained) > limit(ev):
        return
    for gain in gains:
        u = r if gain is None else r / gain
        short_r = 1 / u[alive].square().mean(-1) - 1
        short_p = 1 / (u * factor)[alive].square().mean(-1) - 1
        for one, other, whose in ((short_r, short_p, "the port's"), (short_p, short_r, "the reference's")):
            if float(one.abs().max()) < 1e-2 * float(other.min()) and float(other.max() / other.min()) > 1.05:
                text = f"{whose} norm has an eps that counts (mean square 1 − {float(other.median()):.2g}), the other side's has none"
                residual = ev.residual(explained)
                yield Explanation(text, residual, confidence(ev, residual, 0.88), {}, "N1")
                return
        if not bool(torch.isfinite(short_r).all()) or bool((short_r < 1e-9).any()) or bool((short_p < 1e-9).any()):
            continue
        ratio = short_p / short_r
        middle = float(ratio.median())
        spread = float((ratio / middle - 1).abs().median())
        if spread < 0.02 and float(short_r.max() / short_r.min()) > 1.05 and not 0.98 < middle < 1.02:
            text = f"the norm's eps is {middle:.3g} times the reference's (P/R per token follows the eps law)"
            residual = ev.residual(explained)
            yield Explanation(text, residual, confidence(ev, residual, 0.88), {"ratio": middle}, "N1")
            return


def norm_kind(ev: Evidence) -> Iterable[Explanation]:
    """N3, N7: the same gain and shift on other statistics: mean removed or not, other groups, frames together or apart."""
    norm = norm_of(ev) if comparable_floats(ev) else None
    if norm is None:
        return
    best: tuple[float, Kind, float] | None = None
    for kind in kinds(norm.x):
        if kind == norm.kind:
            continue
        for eps in (norm.eps, 1e-6, 1e-5):
            value = norm(kind=kind, eps=eps)
            residual = ev.residual(value) if bool(torch.isfinite(value).all()) else math.inf
            if best is None or residual < 0.5 * best[0]:
                best = (residual, kind, eps)
    if best is None or best[0] > limit(ev):
        return
    _, kind, eps = best
    class_id = "N7" if "group" in (kind.name, norm.kind.name) else "N3"
    text = f"{kind.text} instead of {norm.kind.text}"
    if {kind.name, norm.kind.name} == {"rms", "layer"}:
        text += ": the mean is " + ("removed" if kind.name == "layer" else "not removed")
    yield from fitted(ev, norm(kind=kind, eps=eps), text, 0.97, class_id, reference=norm.kind.text, port=kind.text)


def norm_gain(ev: Evidence) -> Iterable[Explanation]:
    """W6: gain 1 + w for w, or w for 1 + w. N3: gain or shift missing."""
    norm = norm_of(ev) if comparable_floats(ev) else None
    if norm is None:
        yield from _gain_from_ratio(ev)
        return
    if adaptive(ev, norm.gain):
        return
    u = unit(norm.x, norm.kind, norm.eps)
    options = (
        (
            u * (norm.gain + 1) + norm.shift,
            "W6",
            "the norm's gain is 1 + w where the reference's is w: one was added again",
        ),
        (u * (norm.gain - 1) + norm.shift, "W6", "the norm's gain is w where the reference's is 1 + w"),
        (u, "N3", "the norm's gain and shift are not applied"),
        (u * norm.gain, "N3", "the norm's shift is not applied"),
        (u + norm.shift, "N3", "the norm's gain is not applied"),
    )
    for explained, class_id, text in options:
        found = fitted(ev, explained, text, 0.96, class_id)
        if found:
            yield from found
            return


def _gain_from_ratio(ev: Evidence) -> Iterator[Explanation]:
    """W6 without the input: P/R per channel is (w + 1)/w or w/(1 + w) for a known vector w, the same for all tokens."""
    if not comparable_floats(ev) or ev.r.dim() < 2 or ev.kind == "weight":
        return
    for name, w in parameter_vectors(ev, ev.r.shape[-1]):
        for ratio, text in (
            ((w + 1) / w, "1 + w for w"),
            (w / (w + 1), "w for 1 + w"),
            ((w + 2) / (w + 1), "2 + w for 1 + w"),
        ):
            if bool(torch.isfinite(ratio).all()) and ratio.numel() > 1 and float(ratio.std()) > 1e-6:
                sentence = f"the norm's gain is {text}: P/R is that of the vector {name} in every channel"
                found = fitted(ev, ev.r * ratio, sentence, 0.95, "W6", vector=name)
                if found:
                    yield from found
                    return


def gain_weight(ev: Evidence) -> Iterable[Explanation]:
    """W6 on the parameter: a vector that differs by exactly 1 in every element."""
    if not comparable(ev) or ev.kind != "weight" or ev.r.dim() != 1 or ev.r.numel() < 4:
        return
    step = float(ev.d.median())
    if abs(abs(step) - 1) < 1e-3 and float((ev.d - step).abs().max()) < 2e-2:
        text = f"the norm's gain differs by {step:+.0f} in every element: 1 + w and w are confused"
        yield from fitted(ev, ev.r + round(step), text, 0.95, "W6", offset=round(step))


def norm_missing(ev: Evidence) -> Iterable[Explanation]:
    """N5: P is the norm's input (or only its affine part). N6: P is the norm of R, the norm applied twice."""
    norm = norm_of(ev) if comparable_floats(ev) else None
    if norm is None:
        return
    name = norm.kind.text
    class_id = "A7" if ev.reference.dim() == 4 and norm.kind.name == "rms" else "N5"
    options = (
        (norm.x, class_id, f"the {name} is missing: the port's value is its input"),
        (norm.gain * norm.x + norm.shift, "N5", f"the {name} only scales and shifts: nothing is normalised"),
        (norm(ev.r), "N6", f"the {name} was applied twice"),
        (norm(norm.x.square()), "N6", f"the {name} normalises the squared input"),
    )
    for explained, found_class, text in options[:3]:
        if not torch.equal(explained, ev.r):
            yield from fitted(ev, explained, text, 0.97, found_class)


def norm_rounding(ev: Evidence) -> Iterable[Explanation]:
    """N3, cast order: P = a·round(u) + b, the normalised value rounded to bf16/fp16 before gain and shift; or statistics rounded."""
    norm = norm_of(ev) if comparable(ev) and ev.error < 0.05 else None
    if norm is None:
        return
    trivial = float((norm.gain - 1).abs().max()) < 1e-6 and float(norm.shift.abs().max()) < 1e-6
    u = unit(norm.x, norm.kind, norm.eps)
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        if not trivial:
            low = u.to(dtype).to(torch.float64)
            text = f"the norm rounds to {name} before its gain is applied, not after"
            found = fitted(ev, norm.gain * low + norm.shift, text, 0.95, "N3", dtype=name)
            if not found:
                explained = (norm.gain.to(dtype) * u.to(dtype)).to(dtype).to(torch.float64) + norm.shift
                found = fitted(
                    ev, explained, f"normalised value, gain and product are in {name}", 0.93, "N3", dtype=name
                )
            yield from found
        x = norm.x.to(dtype).to(torch.float64)
        yield from fitted(ev, norm(x), f"the norm's input is rounded to {name}", 0.93, "N4", dtype=name)


HYPOTHESES: tuple[Hypothesis, ...] = (
    Hypothesis("norm eps", "N1", norm_eps, 0.8),
    Hypothesis("norm statistics", "N3", norm_kind, 0.75),
    Hypothesis("norm gain", "W6", norm_gain, 0.75),
    Hypothesis("gain weight", "W6", gain_weight, 0.8),
    Hypothesis("norm missing or repeated", "N6", norm_missing, 0.85),
    Hypothesis("applied twice", "N6", repeated, 0.6),
    Hypothesis("norm rounding", "N3", norm_rounding, 0.5),
    Hypothesis("activation", "N2", activation, 0.8),
    Hypothesis("dropout", "N8", dropout, 0.6),
    Hypothesis("modulation", "W5", modulation, 0.75),
    Hypothesis("modulation outputs", "W5", modulation_outputs, 0.9),
    Hypothesis("modulation source", "W5", modulation_source, 0.85),
    Hypothesis("modulation order", "W5", modulation_order, 0.5),
    *NORM_CALLS,
    *SKIPPED_CALLS,
)
