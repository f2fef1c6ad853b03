"""Norm, activation and modulation causes: eps, kind, axes, gain convention, chunk order, dropout (BUGS.md N1–N3, N6–N8, W5, W6)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from parity.diagnose.activations import CURVES, activated, invert_from_values, operation_values
from parity.diagnose.evidence import Evidence, Explanation, Hypothesis, as_float64, relative_error
from parity.diagnose.normal_forms import EPS, Kind, fit, kinds, norm_of, unit
from parity.diagnose.roles import (
    agreement,
    close,
    comparable,
    confidence,
    fitted,
    like_reference,
    limit,
    memo,
    noise,
    parameter_vectors,
    surroundings,
)

# --- eps ----------------------------------------------------------------------------------------------------------------------


def norm_eps(ev: Evidence) -> Iterable[Explanation]:
    """N1: P = a·(x − m)/sqrt(v + eps') + b, all but eps as in R. Without x: (1/‖P‖² − 1)/(1/‖R‖² − 1) is the ratio of the eps."""
    if not _worth(ev):
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


def _worth(ev: Evidence) -> bool:
    return comparable(ev) and ev.reference.dim() >= 1 and ev.reference.is_floating_point()


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


# --- kind, gain, repetition ---------------------------------------------------------------------------------------------------


def norm_kind(ev: Evidence) -> Iterable[Explanation]:
    """N3, N7: the same gain and shift on other statistics: mean removed or not, other groups, frames together or apart."""
    norm = norm_of(ev) if _worth(ev) else None
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
    norm = norm_of(ev) if _worth(ev) else None
    if norm is None:
        yield from _gain_from_ratio(ev)
        return
    if _adaptive(ev, norm.gain):
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
    if not _worth(ev) or ev.r.dim() < 2 or ev.kind == "weight":
        return
    for name, w in parameter_vectors(ev, ev.r.shape[-1]):
        for ratio, text in (
            ((w + 1) / w, "1 + w for w"),
            (w / (w + 1), "w for 1 + w"),
            ((w + 2) / (w + 1), "2 + w for 1 + w"),
        ):
            if bool(torch.isfinite(ratio).all()) and float(ratio.std()) > 1e-6:
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
    norm = norm_of(ev) if _worth(ev) else None
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


def repeated(ev: Evidence) -> Iterable[Explanation]:
    """N6 with an activation, or a norm whose input is not at hand: P = f(R) for an elementwise f or a parameter-free norm."""
    if not _worth(ev) or ev.kind in ("rope", "mask", "schedule", "weight") or norm_of(ev) is not None:
        return
    readings = [a for a in _readings(ev) if not a.where]
    for reading in readings[:1]:
        curve = CURVES[reading.curve]
        if reading.curve != "no activation":
            yield from fitted(ev, curve(ev.r), f"the activation ({reading.curve}) was applied twice", 0.95, "N6")
    if ev.r.dim() >= 2 and ev.r.shape[-1] >= 4:
        for kind in (Kind("rms"), Kind("layer")):
            flat = unit(ev.r, kind, 1e-6)
            if relative_error(flat, ev.r) > 1e-3:
                text = f"P is the {kind.text} of R: one norm too many"
                yield from fitted(ev, flat, text, 0.93, "N6", kind=kind.name)


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


# --- activations --------------------------------------------------------------------------------------------------------------


def _readings(ev: Evidence) -> list:  # type: ignore[type-arg]
    return memo(ev, "activated", lambda e: list(activated(e)))


def activation(ev: Evidence) -> Iterable[Explanation]:
    """N2: P = g(x) where R = f(x): exact, tanh or quick GELU, SiLU, ReLU, none; alone, gated, or next to projections."""
    if not _worth(ev) or ev.kind in ("mask", "schedule", "rope", "weight"):
        return
    for reading in _readings(ev):
        whole = float(torch.linalg.vector_norm(reading.p - reading.r))
        for name, curve in CURVES.items():
            if name == reading.curve or whole <= 0:
                continue
            residual = float(torch.linalg.vector_norm(reading.build(curve) - reading.p)) / whole
            if residual <= limit(ev):
                if name == "no activation":
                    text = f"the activation ({reading.curve}) {reading.where} is missing".replace("  ", " ")
                elif reading.curve == "no activation":
                    text = f"{name} {reading.where} is applied where the reference has none".replace("  ", " ")
                else:
                    text = f"the activation {reading.where} is {name} instead of {reading.curve}".replace("  ", " ")
                values = {"reference": reading.curve, "port": name}
                missing = "no activation" in (name, reading.curve)  # a missing term rather than a variant
                sure = confidence(ev, residual, 0.96)
                yield Explanation(text, residual, sure, values, "N5" if missing else "N2")
                return
    yield from _activation_of_operations(ev)
    yield from _activation_of_values(ev)


def _activation_of_operations(ev: Evidence) -> Iterator[Explanation]:
    for x, ours, theirs in operation_values(ev):
        whole = float(torch.linalg.vector_norm(theirs - ours))
        if whole <= 0:
            continue
        mine = next((n for n, f in CURVES.items() if relative_error(f(x), ours) < 1e-5), None)
        for name, curve in CURVES.items():
            if (
                mine
                and name not in (mine, "no activation")
                and float(torch.linalg.vector_norm(curve(x) - theirs)) < 0.02 * whole
            ):
                text = f"an operation on the way ran {name} instead of {mine}"
                yield Explanation(text, 0.02, 0.93, {"reference": mine, "port": name}, "N2")
                return


def _activation_of_values(ev: Evidence) -> Iterator[Explanation]:
    """Both tensors alone: GELU and SiLU do not fall below −0.28, and one maps to the other where they are positive."""
    if ev.r.numel() < 64 or float(ev.r.min()) < -0.3 or float(ev.r.max()) < 0.3:
        return
    found = invert_from_values(ev.r.flatten(), ev.p.flatten())
    if found is not None and found[2] < 0.01:
        text = f"the activation is {found[1]} instead of {found[0]} (read off the two outputs)"
        yield Explanation(text, found[2], 0.85, {"reference": found[0], "port": found[1]}, "N2")


# --- dropout ------------------------------------------------------------------------------------------------------------------


def dropout(ev: Evidence) -> Iterable[Explanation]:
    """N8: a share p of P is zero where R is not, and the rest is R/(1 − p)."""
    if not _worth(ev) or ev.r.numel() < 256:
        return
    alive = ev.r != 0
    gone = alive & (ev.p == 0)
    share = float(gone.sum()) / max(1.0, float(alive.sum()))
    if not 0.01 < share < 0.95 or not bool((ev.p[~alive] == 0).all()):
        return
    kept = alive & ~gone
    factor = float((ev.r[kept] * ev.p[kept]).sum() / ev.r[kept].square().sum().clamp_min(1e-300))
    expected = 1 / (1 - share)
    scatter = 3 * math.sqrt(share * (1 - share) / float(alive.sum())) * expected**2
    if abs(factor - expected) > scatter + 0.01 * expected or factor < 1.005:
        return
    if not _scattered(gone):
        return
    explained = torch.where(gone, torch.zeros_like(ev.r), factor * ev.r)
    text = f"dropout is active: {share:.1%} of the values are zero and the rest is multiplied by {factor:.4g}"
    yield from fitted(ev, explained, text, 0.95, "N8", p=1 - 1 / factor)


def _scattered(gone: Tensor) -> bool:
    """Say whether zeros fall at random along every axis, rather than on whole rows, channels or tokens."""
    share = float(gone.double().mean())
    for axis in range(gone.dim()):
        size = gone.shape[axis]
        if size < 2:
            continue
        count = gone.numel() / size
        part = gone.double().mean([a for a in range(gone.dim()) if a != axis]) if gone.dim() > 1 else gone.double()
        if gone.dim() > 1 and float((part - share).abs().max()) > 6 * math.sqrt(share * (1 - share) / count) + 1e-9:
            return False
    return True


# --- adaptive modulation ------------------------------------------------------------------------------------------------------


def modulation(ev: Evidence) -> Iterable[Explanation]:
    """W5: y = u·(1 + scale) + shift with scale and shift exchanged or taken from other chunks. N6: applied twice. N5: left out."""
    if not _worth(ev) or ev.r.dim() < 2:
        return
    for u, gain, shift in _modulated(ev):
        if not _adaptive(ev, gain):
            continue
        explained = [
            (u * (1 + shift) + (gain - 1), "W5", "scale and shift are exchanged", 0.97),
            (u * shift + gain, "W5", "gain and shift are exchanged", 0.95),
            ((u * gain + shift) * gain + shift, "N6", "the modulation is applied twice", 0.96),
            (u, "N5", "scale and shift of the modulation are not applied", 0.95),
            (u * gain, "N5", "the shift of the modulation is not applied", 0.95),
            (u + shift, "N5", "the scale of the modulation is not applied", 0.95),
            (u * (gain - 1) + shift, "W6", "the modulation multiplies by scale instead of 1 + scale", 0.95),
        ]
        for value, class_id, text, best in explained:
            if torch.equal(value, ev.r):
                continue
            found = fitted(ev, value, text, best, class_id)
            if found:
                yield from found
                return
        yield from _other_chunks(ev, u, gain, shift)


def _adaptive(ev: Evidence, gain: Tensor) -> bool:
    """Say whether gain and shift are data (one per sample, or found in a tensor around R) rather than parameters."""
    if gain.shape[0] > 1:
        return True
    if float((gain - gain.mean()).abs().max()) < 1e-9:
        return False
    tolerance = max(1e-4, 3 * noise(ev))
    names = set(ev.parameters)
    return any(
        name.split(",")[0] not in names and (close(chunk, gain - 1, tolerance) or close(chunk, gain, tolerance))
        for name, chunk in _chunks(ev, gain)
    )


def _modulated(ev: Evidence) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield (u, gain, shift) with R = gain·u + shift: u a norm of, or a tensor around R itself."""

    def build(evidence: Evidence) -> list[tuple[Tensor, Tensor, Tensor]]:
        found = []
        norm = norm_of(evidence)
        if norm is not None and norm.kind.name != "group":
            found.append((unit(norm.x, norm.kind, norm.eps), norm.gain, norm.shift))
        for _, x in like_reference(evidence)[:6]:
            pair = fit(x, evidence.r, x.dim() - 1)
            if pair is not None and relative_error(pair[0] * x + pair[1], evidence.r) <= agreement(evidence):
                found.append((x, *pair))
        return found

    yield from memo(ev, "modulated", build)


def _other_chunks(ev: Evidence, u: Tensor, gain: Tensor, shift: Tensor) -> Iterator[Explanation]:
    """Read the port's own gain and shift and look them up among the chunks of modulation tensors around R."""
    theirs = fit(u, ev.p, u.dim() - 1)
    if (
        theirs is None
        or theirs[0].shape != gain.shape
        or relative_error(theirs[0] * u + theirs[1], ev.p) > agreement(ev)
    ):
        return
    chunks = _chunks(ev, gain)
    tolerance = max(1e-4, 3 * noise(ev))

    def look(value: Tensor) -> list[str]:
        return [name for name, chunk in chunks if close(chunk, value, tolerance)]

    ours = (look(gain - 1) or look(gain), look(shift))
    port = (look(theirs[0] - 1) or look(theirs[0]), look(theirs[1]))
    if not all(ours) or not all(port) or (ours[0][0] == port[0][0] and ours[1][0] == port[1][0]):
        return
    text = f"the modulation reads scale from {port[0][0]} and shift from {port[1][0]} instead of {ours[0][0]} and {ours[1][0]}"
    values = {"reference": (ours[0][0], ours[1][0]), "port": (port[0][0], port[1][0])}
    explained = theirs[0] * u + theirs[1]
    yield from fitted(ev, explained, text, 0.95, "W5", **values)


def _chunks(ev: Evidence, like: Tensor) -> list[tuple[str, Tensor]]:
    """Return the vectors of the gain's shape that tensors around R and parameters hold: whole, or chunk k of 2, 3 or 6."""
    batch, width = like.shape[0], like.shape[-1]
    found: list[tuple[str, Tensor]] = []
    named = [
        (n, as_float64(v)) for n, v in surroundings(ev) if v.is_floating_point() and v.numel() <= 12 * like.numel()
    ]
    named += [(n, as_float64(w)) for n, (w, _) in ev.parameters.items() if w is not None and w.numel() <= 12 * width]
    for name, value in named:
        count, rest = divmod(value.numel(), batch * width)
        if rest or not 1 <= count <= 12:
            continue
        for k in range(count):
            part = value.reshape(batch, count, width)[:, k].reshape(like.shape)
            found.append((f"{name}, chunk {k} of {count}" if count > 1 else name, part))
    return found


def modulation_outputs(ev: Evidence) -> Iterable[Explanation]:
    """W5 where a module returns its chunks apart: output k of the port is output m of the reference (sites `module.k`)."""
    stem, _, own = ev.site.rpartition(".")
    if not own.isdigit() or not stem or not comparable(ev) or not _varies(ev.r):
        return
    siblings = [s for s in ev.sites if s.rpartition(".")[0] == stem and s.rpartition(".")[2].isdigit()]
    if not 2 <= len(siblings) <= 12 or ev.r.numel() // ev.r.shape[-1] > max(64, ev.r.shape[0]):
        return
    for site in siblings:
        other = ev.ref_at(site, ev.coords) if site != ev.site else None
        if other is None or other.shape != ev.reference.shape or close(ev.r, as_float64(other), 1e-4):
            continue
        place = site.rpartition(".")[2]
        text = f"output {own} of {len(siblings)} is the reference's output {place}: the chunks are in another order"
        yield from fitted(ev, as_float64(other), text, 0.98, "W5", output=int(own), source=int(place))


def _varies(x: Tensor) -> bool:
    return x.dim() >= 1 and x.numel() >= 4 and float(x.std()) > 0


def modulation_source(ev: Evidence) -> Iterable[Explanation]:
    """W5: R is chunk i of a modulation tensor around it and P is chunk j of the same tensor."""
    if not comparable(ev) or ev.r.dim() < 1 or ev.r.numel() < 8 or ev.r.numel() > 200_000:
        return
    width, near = ev.r.shape[-1], max(1e-6, 3 * noise(ev))
    tables = [as_float64(w) for w, _ in ev.parameters.values() if w is not None and w.dim() == 3]
    named = [
        (n, as_float64(v)) for n, v in surroundings(ev) if v.is_floating_point() and v.numel() <= 12 * ev.r.numel()
    ]
    summed = [
        (f"{n} and a table", v + w) for n, v in named for w in tables if v.dim() == 3 and v.shape[1:] == w.shape[1:]
    ]
    for name, value in [*named, *summed]:
        count, rest = divmod(value.numel(), ev.r.numel())
        if rest or count not in (2, 3, 4, 6, 8, 9, 12):
            continue
        if value.shape[-1] not in (width, count * width) or (value.shape[-1] == width and count not in value.shape):
            continue
        axis = value.dim() - 1 if value.shape[-1] == count * width else list(value.shape).index(count)
        parts = [as_float64(part).reshape(ev.r.shape) for part in value.chunk(count, axis)]
        ours = [k for k, part in enumerate(parts) if close(ev.r, part, near)]
        theirs = [k for k, part in enumerate(parts) if close(ev.p, part, near)]
        if len(ours) == 1 and len(theirs) == 1 and ours != theirs:
            text = f"chunk {theirs[0]} of {count} of the modulation ({name}) is read where the reference reads chunk {ours[0]}"
            yield from fitted(ev, parts[theirs[0]], text, 0.96, "W5", reference=ours[0], port=theirs[0], chunks=count)
            return


def modulation_order(ev: Evidence) -> Iterable[Explanation]:
    """W5 on a modulation tensor: its 2, 3 or 6 chunks are in another order (last axis, or an axis of that size)."""
    if not comparable(ev) or not ev.reference.is_floating_point() or ev.kind in ("rope", "mask", "schedule"):
        return
    weight, last = ev.kind == "weight", ev.r.dim() - 1
    for axis in dict.fromkeys((0, last - 1, last) if weight else (last - 1, last)):
        size = ev.r.shape[axis] if axis >= 0 else 0
        for count in (2, 3, 6, 9):
            # halves of an activation, or whole samples, may change places for many reasons: not a modulation by themselves
            if (
                size == 0
                or size % count
                or (not weight and (count == 2 or axis == 0 or (axis != last and size != count)))
            ):
                continue
            found = _chunk_order(ev, axis, count)
            if found:
                yield found
                return


def _chunk_order(ev: Evidence, axis: int, count: int) -> Explanation | None:
    ours, theirs = ev.r.chunk(count, axis), ev.p.chunk(count, axis)
    if ours[0].numel() < 8:
        return None
    tolerance = max(1e-5, 3 * noise(ev))
    source = []
    for part in theirs:
        match = [k for k, other in enumerate(ours) if close(part, other, tolerance)]
        if not match:
            return None
        source.append(match[0])
    if sorted(source) != list(range(count)) or source == sorted(source):
        return None
    if (
        ev.r.shape[axis] > 64 * count
        and ev.kind == "weight"
        and count == 2
        and ev.r.dim() > 1
        and ev.r.shape[0] == ev.r.shape[1]
    ):
        return None
    names = {
        2: "shift and scale",
        3: "shift, scale and gate",
        6: "the six modulation chunks",
        9: "the modulation chunks",
    }[count]
    text = f"{names} are in another order: chunk k of the port is chunk {source} of the reference"
    residual = ev.residual(torch.cat([ours[k] for k in source], axis))
    return Explanation(text, residual, confidence(ev, residual, 0.8), {"order": source, "axis": axis}, "W5")


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
)
