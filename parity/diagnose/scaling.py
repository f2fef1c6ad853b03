"""Fixed scale and offset between the two sides: one factor, one affine map, or one per index of an axis.

Classes: C8 C10 T6 W1 W6 N5 N6 of the bug list. Fits have few parameters against many elements, and are accepted only
at the allowance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .axes import axis_name, kind_of, roles
from .evidence import Evidence, Explanation, Hypothesis, as_float64
from .fits import (
    accept,
    affine_fit,
    allowance,
    comparable,
    grouped_affine,
    grouped_scale,
    hot_index,
    near,
    noise_level,
    number,
    sample_index,
    sure,
)

RANGES = {  # (a, b) of P = aR + b -> what was left out or done twice (C8)
    (2.0, -1.0): "[0, 1] was mapped to [-1, 1] on the port's side only",
    (0.5, 0.5): "[-1, 1] was mapped to [0, 1] on the port's side only",
    (255.0, 0.0): "the port's values are in [0, 255], the reference's in [0, 1]",
    (1 / 255, 0.0): "the port's values are in [0, 1], the reference's in [0, 255]",
    (127.5, 127.5): "the port's values are in [0, 255], the reference's in [-1, 1]",
    (1 / 127.5, -1.0): "the port's values are in [-1, 1], the reference's in [0, 255]",
    (127.5, 0.0): "the port's values are 127.5 times the reference's",
    (1 / 127.5, 0.0): "the port's values are the reference's divided by 127.5",
}
NORMS = {"native_layer_norm", "rms_norm", "_fused_rms_norm", "native_group_norm"}
LATENT_SCALES = (0.18215, 0.13025, 0.3611, 0.476986)


def factor(ev: Evidence) -> Iterator[Explanation]:
    """P == c·R with one c (W1 on a weight, C8/C10 on pictures and latents, T6 for 1000)."""
    c = _factor_of(ev)
    if c is None:
        return
    residual = accept(ev, c * ev.r)
    if residual is None:
        return
    class_id, why = _name_factor(ev, c)
    known = bool(why)
    text = f"P is R times {number(c)}{': ' + why if why else ''}"
    yield Explanation(text, residual, sure(ev, residual, 0.96 if known else 0.88), {"factor": c}, class_id)


def _factor_of(ev: Evidence) -> float | None:
    """The factor of P = cR if the sampled elements agree with one; −1 and 0 are left to the layout family."""
    if not comparable(ev):
        return None
    index = hot_index(ev)
    r, p = ev.r.reshape(-1)[index], ev.p.reshape(-1)[index]
    rr = float((r * r).sum())
    c = float((r * p).sum()) / rr if rr > 0 else 0.0
    whole = float(torch.linalg.vector_norm(p - r))
    if (
        c == 0
        or near(c, -1, 1e-6)
        or whole == 0
        or float(torch.linalg.vector_norm(p - c * r)) > 3 * allowance(ev) * whole
    ):
        return None
    full = float((ev.r * ev.p).sum()) / float((ev.r * ev.r).sum())
    return full if bool((ev.r != 0).sum() >= 2) else None


def _name_factor(ev: Evidence, c: float) -> tuple[str, str]:
    slack = max(1e-3, 3 * noise_level(ev))
    named = _named_scalar(ev, c, slack)
    if ev.kind == "weight":
        return "W1", named or ("a quantisation scale was dropped or applied twice" if not 0.5 < c < 2 else "")
    for (a, b), why in RANGES.items():
        if b == 0 and near(c, a, slack):
            return "C8", why
    for known in (1000.0, 1 / 1000):
        if near(c, known, slack):
            return "T6", "time in units of 1 and of 1000"
    for scale in LATENT_SCALES:
        if near(c, scale, slack) or near(c, 1 / scale, slack):
            return "C10", f"the latent scale factor {scale} was left out or applied twice"
    if ev.kind == "frame":
        return "C8", named or "the pictures have another range of values"
    if ev.kind == "latent":
        return "C10", named
    if near(c, 2, slack):
        return "N6", "one contribution is counted twice"
    values = [v for pair in ev.parameters.values() for v in pair if v is not None]
    if any(not v.is_floating_point() or v.element_size() == 1 for v in values):
        return "W1", named or "the module is quantised: its scale was dropped or applied twice"
    root = _root_of_size(ev, c, slack)
    return ("N3", root) if root else ("N5", named)


def _root_of_size(ev: Evidence, c: float, slack: float) -> str:
    """Whether the factor is sqrt(n) or n, or its inverse, for the length n of an axis."""
    for n in sorted({size for size in ev.r.shape if size > 2}):
        laws = ((f"sqrt({n})", n**0.5), (f"1/sqrt({n})", n**-0.5), (f"{n}", float(n)), (f"1/{n}", 1 / n))
        for label, value in laws:
            if near(c, value, slack):
                return f"{label}, {n} being the length of an axis: a sum for a mean, or a root left out"
    return ""


def _named_scalar(ev: Evidence, c: float, slack: float) -> str:
    """Recognise a factor among the scalars of the module: s, 1/s, s², of parameters of one element and of settings."""
    scalars: dict[str, float] = {}
    for name, (ref, port) in ev.parameters.items():
        one = ref if ref is not None else port
        if one is not None and one.numel() == 1:
            scalars[name] = float(as_float64(one).reshape(-1)[0])
    for name, pair in ev.settings.items():
        if isinstance(pair[0], (int, float)) and not isinstance(pair[0], bool):
            scalars[name] = float(pair[0])
    for name, s in scalars.items():
        if s in (0.0, 1.0) or not math.isfinite(s):
            continue
        for label, value in (
            (f"{name}", s),
            (f"1/{name}", 1 / s),
            (f"1/sqrt({name})", abs(s) ** -0.5),
            (f"sqrt({name})", abs(s) ** 0.5),
        ):
            if near(c, value, slack):
                return f"the factor is {label} ({name} = {number(s)})"
    return ""


def affine(ev: Evidence) -> Iterator[Explanation]:
    """P == a·R + b with one (a, b), b ≠ 0 (C8 when the pair is a value range, C10 on latents, W6 for a weight moved by
    1).
    """
    if not comparable(ev, 4):
        return
    index = hot_index(ev)
    a, b = affine_fit(ev.p.reshape(-1)[index], ev.r.reshape(-1)[index])
    p, r = ev.p.reshape(-1)[index], ev.r.reshape(-1)[index]
    whole = float(torch.linalg.vector_norm(p - r))
    spread = float(ev.r.std())
    if a == 0 or spread == 0 or float(torch.linalg.vector_norm(p - a * r - b)) > 3 * allowance(ev) * whole:
        return
    a, b = affine_fit(ev.p, ev.r)
    if abs(b) <= 10 * noise_level(ev) * spread:
        return  # a pure factor
    shift_only = ev.p.mean() - ev.r.mean()
    residual = accept(ev, ev.r + shift_only)
    if residual is not None:
        yield from _offset(ev, float(shift_only), residual)
        return
    residual = accept(ev, a * ev.r + b)
    if residual is not None and ev.r.numel() >= 8:
        known = next(
            (why for (x, y), why in RANGES.items() if near(a, x, 5e-3) and abs(b - y) < 5e-3 * max(1, abs(y))), ""
        )
        byte = any(near(a, unit, 1e-3) for unit in (255, 127.5, 1 / 255, 1 / 127.5))
        known = known or ("the range of bytes on one side only" if byte else "")
        class_id = "C8" if known else "C10" if ev.kind in {"latent", "input", "frame"} else "C8"
        text = f"P is {number(a)}·R {'+' if b >= 0 else '−'} {number(abs(b))}{': ' + known if known else ''}"
        yield Explanation(
            text, residual, sure(ev, residual, 0.97 if known else 0.82), {"factor": a, "offset": b}, class_id
        )


def _offset(ev: Evidence, b: float, residual: float) -> Iterator[Explanation]:
    """P == R + b."""
    if ev.kind == "weight" and near(abs(b), 1, 1e-3):
        text = f"P is R {'+' if b > 0 else '−'} 1: the gain is stored as w on one side and as 1 + w on the other"
        yield Explanation(text, residual, sure(ev, residual, 0.96), {"offset": b}, "W6")
        return
    integers = not ev.reference.is_floating_point() or bool((ev.r == ev.r.round()).all())
    class_id = "C10" if ev.kind in {"latent", "frame", "input"} else "P2" if integers else "N5"
    yield Explanation(
        f"P is R {'+' if b >= 0 else '−'} {number(abs(b))} everywhere",
        residual,
        sure(ev, residual, 0.85),
        {"offset": b},
        class_id,
    )


def per_index(ev: Evidence) -> Iterator[Explanation]:
    """P == a_c·R + b_c, constant over all other axes (C10 latent statistics, W6 gain convention, W1 per row, N5
    missing gate).
    """
    if not comparable(ev, 16) or _simple_map(ev):
        return
    best: tuple[float, int, Tensor, Tensor, bool] | None = None
    for axis, size in enumerate(ev.r.shape):
        group = ev.r.numel() // size if size else 0
        if size < 2 or group < 6 or not _sample_fits(ev, axis):
            continue
        scale = grouped_scale(ev.p, ev.r, [axis])
        residual = accept(ev, scale * ev.r)
        a, b, pure = scale, torch.zeros_like(scale), True
        if residual is None:
            a, b = grouped_affine(ev.p, ev.r, [axis])
            residual, pure = accept(ev, a * ev.r + b), False
        if residual is not None and (best is None or residual < best[0]):
            best = residual, axis, a, b, pure
    if best is not None and bool((best[2].abs() > 1e-9).any()):  # all factors 0: P does not come from R at all
        yield _per_index(ev, *best)


def _simple_map(ev: Evidence) -> bool:
    """Whether one factor or one affine map explains it already."""
    index = sample_index(ev.r.numel(), 8192)
    p, r = ev.p.reshape(-1)[index], ev.r.reshape(-1)[index]
    a, b = affine_fit(p, r)
    whole = float(torch.linalg.vector_norm(p - r))
    if float(torch.linalg.vector_norm(p - a * r - b)) > 3 * allowance(ev) * whole + 1e-300:
        return False
    a, b = affine_fit(ev.p, ev.r)
    return accept(ev, a * ev.r + b) is not None


def _sample_fits(ev: Evidence, axis: int) -> bool:
    """A cheap test on a few indices of the axis."""
    size = ev.r.shape[axis]
    if ev.r.numel() < 50_000:
        return True
    keep = torch.tensor(sorted({round(i * (size - 1) / 7) for i in range(8)}))
    r, p = ev.r.index_select(axis, keep), ev.p.index_select(axis, keep)
    whole = float(torch.linalg.vector_norm(p - r))
    if whole == 0:
        return True
    a, b = grouped_affine(p, r, [axis])
    return float(torch.linalg.vector_norm(p - a * r - b)) <= 3 * allowance(ev) * whole


def _per_index(ev: Evidence, residual: float, axis: int, a: Tensor, b: Tensor, pure: bool) -> Explanation:
    where, role = axis_name(axis, ev.r.shape, kind_of(ev)), roles(ev.r.shape, kind_of(ev))[axis]
    factors, offsets = a.reshape(-1), b.reshape(-1)
    recognised = _recognise(ev, factors, offsets, pure)
    parameters = {"axis": axis, "factors": factors[:32].tolist()} | ({} if pure else {"offsets": offsets[:32].tolist()})
    if recognised is not None:
        class_id, why = recognised
        class_id = "W1" if class_id == "C10" and ev.kind == "weight" else class_id
        if class_id == "C10" and any(op.name in NORMS for op in ev.ref_ops):
            class_id = "N5"  # the norm's own gain and bias, not the statistics of latents
        return Explanation(
            f"P is R with a factor{'' if pure else ' and an offset'} per index of {where}: {why}",
            residual,
            sure(ev, residual, 0.96),
            parameters,
            class_id,
        )
    only_offset = not pure and float((factors - 1).abs().max()) < 1e-3
    what = "an offset" if only_offset else "a factor" if pure else "a factor and an offset"
    text = (
        f"P is R with {what} per index of {where} (factors {number(float(factors.min()))} to "
        f"{number(float(factors.max()))})"
    )
    if ev.kind == "weight":
        class_id = "W1"
    elif role == "c" and len(factors) == 3 and ev.kind in {"frame", "input"}:
        class_id = "C8"
        text += ": other means and deviations of the colours"
    elif only_offset and role == "c" and ev.kind in {"latent", "frame", "input"}:
        class_id = "C10"
        text = f"P is R plus one constant per index of {where}: a mean is left out, or subtracted at another place"
    elif only_offset:
        class_id = "N5"
        text = f"P is R plus one fixed vector along {where}: a bias is missing, added twice or another one"
    else:
        picture = role == "c" or ev.kind in {"latent", "frame", "input"}
        wide = float(factors.abs().max()) > 3 * float(factors.abs().min())
        # the outputs of a linear layer with wrong scales per row, or a norm's gain
        features = "W1" if wide and not pure else "N5"
        class_id = "C10" if picture else features if role == "d" else "N7"
    return Explanation(text, residual, sure(ev, residual, 0.8), parameters, class_id)


def _recognise(ev: Evidence, factors: Tensor, offsets: Tensor, pure: bool) -> tuple[str, str] | None:
    """Find the vectors (a, b) among the module's vectors: std and mean, their inverses and squares, 1 + w, a gate."""
    vectors = _vectors(ev, factors.numel())
    slack = max(2e-3, 4 * noise_level(ev))
    for name, w in vectors.items():
        for class_id, why, want in _vector_laws(name, w):
            if want is None or not bool(torch.isfinite(want).all()) or _distance(factors, want) > slack:
                continue
            if pure or class_id != "W6":
                mean = next((n for n, m in vectors.items() if not pure and _mean_law(factors, offsets, m, slack)), "")
                return class_id, why + (f", with {mean} as the mean" if mean else "")
    return None


def _vector_laws(name: str, w: Tensor) -> Iterator[tuple[str, str, Tensor | None]]:
    yield (
        "W6",
        f"the gain is 1 + (1 + w) instead of 1 + w (w = {name})",
        (w + 2) / (w + 1) if bool((w != -1).all()) else None,
    )
    yield "W6", f"the gain is w instead of 1 + w (w = {name})", w / (w + 1) if bool((w != -1).all()) else None
    yield "W6", f"the gain is 1 + w instead of w (w = {name})", (w + 1) / w if bool((w != 0).all()) else None
    if bool((w != 0).all()):
        yield "C10", f"the factor is {name}: multiplied on one side only, or not divided by it", w
        yield "C10", f"the factor is 1/{name}: divided by it on one side only, or a gate left out", 1 / w
        yield "C10", f"the factor is {name} squared: multiplied instead of divided", w * w
        yield "C10", f"the factor is 1/{name} squared: divided instead of multiplied", 1 / (w * w)


def _mean_law(factors: Tensor, offsets: Tensor, m: Tensor, slack: float) -> bool:
    return any(_distance(offsets, want) <= slack for want in (m, -m, -m * factors, m * (1 - factors)))


def _distance(a: Tensor, b: Tensor) -> float:
    scale = float(torch.linalg.vector_norm(b))
    return float(torch.linalg.vector_norm(a - b)) / scale if scale > 0 else math.inf


def _vectors(ev: Evidence, size: int) -> dict[str, Tensor]:
    """Every known vector of that length that is not constant: parameters, and inputs that are one vector."""
    found: dict[str, Tensor] = {}
    for name, (ref, port) in ev.parameters.items():
        for value in (ref, port):
            if value is not None and value.numel() == size:
                found.setdefault(name, as_float64(value).reshape(-1))
    for name, value in ev.inputs.items():
        if value.numel() == size and value.is_floating_point():
            found.setdefault(name, as_float64(value).reshape(-1))
    return {name: v for name, v in found.items() if bool(torch.isfinite(v).all()) and float((v - v[0]).abs().max()) > 0}


HYPOTHESES: tuple[Hypothesis, ...] = (
    Hypothesis("factor", "W1", factor, 0.95),
    Hypothesis("affine", "C8", affine, 0.85),
    Hypothesis("per_index", "C10", per_index, 0.6),
)
