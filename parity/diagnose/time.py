"""Time, sigma and solver causes (BUGS.md T1–T9)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations

import torch
from torch import Tensor

from parity.diagnose.evidence import Evidence, Explanation, Hypothesis, as_float64, relative_error
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
    surroundings,
)
from parity.diagnose.schedules import FlowTable, Sinusoid, flow_table, sinusoid, write_sinusoid

ROUNDINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "rounded to bf16": lambda t: t.to(torch.bfloat16).to(torch.float64),
    "rounded to fp16": lambda t: t.to(torch.float16).to(torch.float64),
    "rounded down to a whole number": torch.floor,
    "rounded to a whole number": torch.round,
}
SMALL_TABLE = 4096


def _table(ev: Evidence) -> bool:
    """Say whether the record is a schedule: a table or a scalar of times or sigmas."""
    small = (
        0 < ev.reference.numel() <= SMALL_TABLE and not ev.reference.is_complex() and ev.reference.dtype != torch.bool
    )
    finite = small and bool(torch.isfinite(ev.r).all()) and ev.port.numel() > 0 and bool(torch.isfinite(ev.p).all())
    return finite and (
        ev.kind == "schedule" or (ev.kind == "input" and ev.reference.dim() <= 2 and ev.reference.numel() <= 256)
    )


# --- tables and scalars -------------------------------------------------------------------------------------------------------


def time_rounding(ev: Evidence) -> Iterable[Explanation]:
    """T1: t_P = bf16(t_R), fp16(t_R), ⌊t_R⌋ or round(t_R), exactly; also after the unit was changed by 1000."""
    if not _table(ev) or not ev.same_shape or not bool((ev.d != 0).any()):
        return
    if ev.kind != "schedule" and float(ev.r.abs().max()) <= 1.5:
        return
    whole = not ev.reference.is_floating_point() or not bool(ev.p.any())
    for unit in (1.0,) if whole else (1.0, 1000.0, 1e-3):
        for text, change in ROUNDINGS.items():
            made = change(ev.r * unit) / unit if unit != 1.0 else change(ev.r)
            if torch.equal(made, ev.r) or float((made - ev.p).abs().max()) > 1e-6 * float(
                ev.p.abs().max().clamp_min(1e-300)
            ):
                continue
            if unit != 1.0 and "bf16" not in text and "fp16" not in text and float((made - ev.r).abs().max()) == 0:
                continue
            where = "" if unit == 1.0 else f" (as {unit:g} times itself)"
            number = int((ev.d != 0).sum())
            sentence = f"the timestep is {text}{where} before use: {number} of {ev.r.numel()} values change"
            yield Explanation(sentence, 0.0, 0.98, {"rounding": text, "unit": unit}, "T1")
            return
    for text, change in list(ROUNDINGS.items())[:2]:
        if torch.equal(change(ev.p), ev.r) and not torch.equal(ev.p, ev.r):
            sentence = f"the reference's time is {text} before use and the port's is not"
            yield Explanation(sentence, 0.0, 0.97, {"rounding": text, "side": "reference"}, "T1")
            return


def time_unit(ev: Evidence) -> Iterable[Explanation]:
    """T6: P = 1000·R or R/1000. T8: P = 1 − R or 1000 − R, time runs the other way. T5: P reversed."""
    if not _table(ev) or not ev.same_shape or not bool((ev.d != 0).any()) or not bool(ev.r.any()):
        return
    scale = float(ev.r.abs().max())
    near = 1e-5 + 2 * noise(ev)

    def same(made: Tensor) -> bool:
        return not torch.equal(made, ev.r) and close(ev.p, made, near)

    for factor, text in ((1000.0, "1000 times the reference's"), (1e-3, "a thousandth of the reference's")):
        if same(ev.r * factor):
            yield Explanation(f"the time is in another unit: {text}", 0.0, 0.96, {"scale": factor}, "T6")
            return
    whole = 1.0 if scale <= 1.0 + 1e-6 else 1000.0
    turned = same(whole - ev.r) and float((ev.r - whole / 2).abs().max()) > 1e-3 * whole
    if turned and (ev.r.numel() > 1 or 0 < scale < whole):
        yield Explanation(f"time runs the other way: {whole:g} − t", 0.0, 0.9, {"end": whole}, "T8")
        return
    if ev.r.dim() == 1 and ev.r.numel() > 2 and same(ev.r.flip(0)):
        yield Explanation("the schedule is reversed", 0.0, 0.95, {}, "T5")


def sigma_shift(ev: Evidence) -> Iterable[Explanation]:
    """T3: log σ/(1 − σ) differs by one constant log(k_P/k_R); k·k means that the shift was applied twice. T5: other end points."""
    if not _table(ev) or not ev.same_shape or not bool((ev.d != 0).any()):
        return
    unit = 1000.0 if float(ev.r.abs().max()) > 1.5 else 1.0
    r, p = ev.r.flatten() / unit, ev.p.flatten() / unit
    ours, theirs = flow_table(r), flow_table(p)
    if ours is not None and theirs is not None:
        found = _named_shift(ours, theirs)
        if found is not None:
            yield found
            return
    inside = (r > 1e-6) & (r < 1 - 1e-6) & (p > 1e-6) & (p < 1 - 1e-6)
    if int(inside.sum()) < 1 or bool(((r != p) & ~inside).any()):
        return
    odds = torch.logit(p[inside]) - torch.logit(r[inside])
    ratio = float(odds.median().exp())
    # a table rounded to whole timesteps keeps the law only to half a step
    slack = (
        1e-3 + 0.6 / unit / (r[inside] * (1 - r[inside])) if unit > 1 else torch.full_like(odds, 2e-4 + 4 * noise(ev))
    )
    if bool(((odds - odds.median()).abs() > slack).any()) or abs(math.log(ratio)) < 1e-2:
        return
    shift = _known_shift(ev)
    text = f"sigmas are shifted by a further factor {ratio:.4g} in odds σ/(1 − σ)"
    if shift and math.isclose(ratio, shift, rel_tol=1e-2):
        text = f"the sigma shift was applied twice ({shift:g} → {shift * shift:g})"
    elif shift and math.isclose(ratio, 1 / shift, rel_tol=1e-2):
        text = f"the sigma shift {shift:g} was not applied"
    if int(inside.sum()) < 3 and "factor" in text:
        return
    sure = 0.95 if int(inside.sum()) >= 4 else 0.8
    yield Explanation(text, 0.0, sure, {"ratio": ratio, "shift": shift}, "T3")


def _known_shift(ev: Evidence) -> float | None:
    values = [ours for name, (ours, _) in ev.settings.items() if "shift" in name and isinstance(ours, (int, float))]
    return float(values[0]) if values and values[0] else None


def _named_shift(ours: FlowTable, theirs: FlowTable) -> Explanation | None:
    s, k = ours.shift, theirs.shift
    same_ends = abs(ours.first - theirs.first) < 1e-3 and abs(ours.last - theirs.last) < 2e-4 + 1e-3 * ours.last
    values: dict[str, object] = {"reference": s, "port": k}
    if same_ends and not math.isclose(s, k, rel_tol=5e-3):
        if math.isclose(k, s * s, rel_tol=2e-2):
            text = f"the sigma shift was applied twice ({s:g} → {k:g})"
        elif abs(k - 1) < 5e-3:
            text = f"the sigma shift {s:g} was not applied"
        elif abs(s - 1) < 5e-3:
            text = f"a sigma shift of {k:g} was applied where the reference has none"
        else:
            text = f"the sigma shift is {k:g} instead of {s:g}"
        return Explanation(text, 0.0, 0.96, values, "T3")
    if math.isclose(s, k, rel_tol=5e-3) and not same_ends:

        def shifted(u: float) -> float:
            return s * u / (1 + (s - 1) * u)

        values |= {"ends_reference": (ours.first, ours.last), "ends_port": (theirs.first, theirs.last)}
        last_twice = abs(theirs.last - shifted(ours.last)) < 2e-3 + 1e-2 * theirs.last
        first_twice = abs(theirs.first - shifted(ours.first)) < 1e-3
        if last_twice and first_twice and abs(s - 1) > 1e-2:
            text = f"the end points of the table were shifted before the table was: shift {s:g} counts twice"
            return Explanation(text, 0.0, 0.94, values, "T3")
        ends = f"{theirs.first:.5g} … {theirs.last:.5g} instead of {ours.first:.5g} … {ours.last:.5g}"
        return Explanation(f"the schedule has other end points before the shift: {ends}", 0.0, 0.93, values, "T5")
    return None


def table_ends(ev: Evidence) -> Iterable[Explanation]:
    """T5: a table longer or shorter by its ends, moved by one entry, with another closing value, or with another step count."""
    if ev.kind not in ("schedule", "input") or ev.reference.is_complex() or ev.reference.dtype == torch.bool:
        return
    r, p = ev.r.flatten(), ev.p.flatten()
    if (
        not (2 <= r.numel() <= SMALL_TABLE and 1 <= p.numel() <= SMALL_TABLE)
        or ev.reference.dim() > 2
        or not _table(ev)
    ):
        return
    near = 1e-6 + 2 * noise(ev)
    if r.numel() != p.numel():
        yield from _other_length(r, p, near)
        return
    for step in (1, -1):
        a, b = (r[1:], p[:-1]) if step > 0 else (r[:-1], p[1:])
        if r.numel() >= 3 and close(b, a, near) and float((a - a[0]).abs().max()) > 0 and not close(p, r, near):
            text = f"the table is moved by one entry: P[i] = R[i{step:+d}]"
            yield Explanation(text, 0.0, 0.95, {"offset": step}, "T5")
            return
    if r.numel() >= 4:
        for text, keep, at in (("closing", slice(0, -1), -1), ("first", slice(1, None), 0)):
            if close(p[keep], r[keep], near) and abs(float(p[at] - r[at])) > near * float(r.abs().max()):
                said = f"only the {text} value of the table differs: {float(p[at]):.6g} instead of {float(r[at]):.6g}"
                yield Explanation(said, 0.0, 0.9, {"reference": float(r[at]), "port": float(p[at])}, "T5")
                return


def _other_length(r: Tensor, p: Tensor, near: float) -> Iterator[Explanation]:
    long, short, who = (p, r, "the port's table has") if len(p) > len(r) else (r, p, "the port's table lacks")
    extra = len(long) - len(short)
    for start in (0, extra):
        if extra <= 4 and close(long[start : start + len(short)], short, near):
            where = "at the end" if start == 0 else "at the start"
            rest = long[len(short) :] if start == 0 else long[:extra]
            shown = ", ".join(f"{v:.6g}" for v in rest.tolist())
            text = f"{who} {extra} more entries {where} ({shown})".replace("lacks", "lacks the").replace(
                " more entries", " entries"
            )
            yield Explanation(text, 0.0, 0.94, {"reference": len(r), "port": len(p), "entries": rest.tolist()}, "T5")
            return
    ours, theirs = flow_table(r), flow_table(p)
    text = f"the schedule has {len(p)} entries instead of {len(r)}"
    values: dict[str, object] = {"reference": len(r), "port": len(p)}
    if ours and theirs:
        text += f" (shift {theirs.shift:g} and {ours.shift:g})"
        values |= {"shift_reference": ours.shift, "shift_port": theirs.shift}
    yield Explanation(text, 0.0, 0.8, values, "T5")


def neighbour_step(ev: Evidence) -> Iterable[Explanation]:
    """T5: the value of the next or the previous step: P[s] = R[s ± 1]."""
    if not _table(ev) or not ev.same_shape or not bool((ev.d != 0).any()):
        return
    axis = next((name for name in ("step", "call", "segment") if name in ev.coords), None)
    near = 1e-6 + 2 * noise(ev)
    if axis is not None:
        for offset in (1, -1, 2, -2):
            other = ev.ref_at(ev.site, {**ev.coords, axis: ev.coords[axis] + offset})
            if other is not None and other.shape == ev.reference.shape and close(ev.p, as_float64(other), near):
                text = f"the value of {axis} {ev.coords[axis] + offset} is used at {axis} {ev.coords[axis]}"
                yield Explanation(text, 0.0, 0.94, {"offset": offset, "axis": axis}, "T5")
                return
    if ev.r.numel() == 1:
        for name, table in surroundings(ev):
            values = as_float64(table).flatten()
            if not 3 <= values.numel() <= SMALL_TABLE or not table.is_floating_point():
                continue
            at = torch.nonzero((values - ev.r.flatten()[0]).abs() <= near * values.abs().max()).flatten()
            to = torch.nonzero((values - ev.p.flatten()[0]).abs() <= near * values.abs().max()).flatten()
            if len(at) == 1 and len(to) == 1:
                offset = int(to[0] - at[0])
                text = f"entry {int(to[0])} of the schedule ({name}) is used instead of entry {int(at[0])}"
                yield Explanation(text, 0.0, 0.9, {"offset": offset}, "T5")
                return


# --- sinusoidal embeddings ----------------------------------------------------------------------------------------------------


def time_embedding(ev: Evidence) -> Iterable[Explanation]:
    """T2, T1, T6: both values read as amplitude·(cos, sin)(t·base^(−j/m)); what differs is the order, base, time or amplitude."""
    if (
        not comparable(ev)
        or ev.reference.dim() < 1
        or not ev.reference.is_floating_point()
        or ev.kind in ("rope", "mask")
    ):
        return
    if ev.reference.shape[-1] < 8 or ev.reference.numel() > 1_000_000:
        return
    rows_r, rows_p = (x.reshape(-1, x.shape[-1]) for x in (ev.r, ev.p))
    ours, theirs = sinusoid(rows_r), sinusoid(rows_p)
    if len(rows_r) > 64:
        return
    if ours is None or theirs is None:
        yield from _frequency_table(ev, ours, theirs)
        return
    said: list[str] = []
    classes: list[str] = []
    values: dict[str, object] = {}
    _embedding_order(ours, theirs, said, classes, values)
    _embedding_rate(ours, theirs, rows_r.shape[-1] // 2, said, classes, values)
    _embedding_time(ev, ours, theirs, said, classes, values)
    if not said:
        return
    theta = torch.stack([line.amount * line.frequencies for line in theirs.lines])
    explained = write_sinusoid(theta, theirs.amplitude, theirs.order).reshape(ev.p.shape)
    text = "the time embedding differs: " + "; ".join(said)
    yield from fitted(ev, explained, text, 0.96 if len(said) == 1 else 0.94, classes[0], **values)


def _frequency_table(ev: Evidence, ours: Sinusoid | None, theirs: Sinusoid | None) -> Iterator[Explanation]:
    """W10: one side's frequencies are those of the other rounded to bf16 or fp16, or all zero (a buffer that was never filled)."""
    known = ours or theirs
    if known is None:
        return
    low, high = (ev.r, ev.p) if ours is None else (ev.p, ev.r)
    who = ("the port's", "the reference's") if ours is not None else ("the reference's", "the port's")

    def written(change: Callable[[Tensor], Tensor]) -> Tensor:
        theta = torch.stack([line.amount * change(line.frequencies) for line in known.lines])
        return write_sinusoid(theta, known.amplitude, known.order).reshape(ev.p.shape)

    changes = {f"{who[0]} frequencies are {who[1]} {text}": change for text, change in list(ROUNDINGS.items())[:2]}
    changes[f"{who[0]} frequencies are all zero: the buffer was never filled"] = torch.zeros_like
    for text, change in changes.items():
        exact, other = written(lambda f: f), written(change)
        if close(exact, high, 1e-3) and relative_error(other, low) < 0.02 * ev.error + 2 * noise(ev):
            # the residual of the side that is not R: how well the change predicts the other side
            residual = float(torch.linalg.vector_norm(other - low) / torch.linalg.vector_norm(ev.d))
            yield Explanation(text, residual, confidence(ev, residual, 0.94), {}, "W10")
            return


def _embedding_order(a: Sinusoid, b: Sinusoid, said: list[str], classes: list[str], values: dict[str, object]) -> None:
    if a.order != b.order:
        said.append(f"{b.order} instead of {a.order}")
        classes.append("T2")
        values |= {"order_reference": a.order, "order_port": b.order}
    if abs(b.amplitude / a.amplitude - 1) > 1e-2:
        said.append(f"amplitude {b.amplitude:.4g} instead of {a.amplitude:.4g}")
        classes.append("T2")
        values["amplitude"] = b.amplitude / a.amplitude


def _embedding_rate(
    a: Sinusoid, b: Sinusoid, half: int, said: list[str], classes: list[str], values: dict[str, object]
) -> None:
    if math.isclose(a.rate, b.rate, rel_tol=1e-4):
        return
    if math.isclose(b.rate / a.rate, half / (half - 1), rel_tol=1e-4):
        said.append(f"the exponent is divided by {half - 1} instead of {half} (end point included)")
    elif math.isclose(a.rate / b.rate, half / (half - 1), rel_tol=1e-4):
        said.append(f"the exponent is divided by {half} instead of {half - 1} (end point left out)")
    else:
        said.append(f"frequency base {math.exp(b.rate * half):.5g} instead of {math.exp(a.rate * half):.5g}")
    classes.append("T2")
    values["rate"] = b.rate / a.rate


def _embedding_time(
    ev: Evidence, a: Sinusoid, b: Sinusoid, said: list[str], classes: list[str], values: dict[str, object]
) -> None:
    t, s = a.times, b.times
    moved = (t - s).abs() > 1e-4 * t.abs().clamp_min(1e-3)
    if not bool(moved.any()):
        return
    ratio = float((s / t)[t != 0].median()) if bool((t != 0).any()) else math.nan
    at = int(moved.int().argmax())
    values |= {"time_reference": float(t[at]), "time_port": float(s[at])}
    for factor in (1000.0, 1e-3):
        if math.isclose(ratio, factor, rel_tol=1e-3):
            said.append(f"the time is multiplied by {factor:g}")
            classes.append("T6")
            return
    for text, change in ROUNDINGS.items():
        for unit in (1.0, 1e-3):
            if float((change(t * unit) / unit - s).abs().max()) < 2e-4 * float(s.abs().max()):
                said.append(f"the timestep is {text} ({float(t[at]):.6g} → {float(s[at]):.6g})")
                classes.append("T1")
                return
    step = float((s - t).median())
    if float((s - t - step).abs().max()) < 1e-3 and abs(step - round(step)) < 1e-3 and round(step):
        said.append(f"the time is offset by {round(step):+d}")
        classes.append("T5")
        return
    said.append(f"the time is {float(s[at]):.6g} instead of {float(t[at]):.6g}")
    classes.append("T6" if not math.isclose(ratio, 1, rel_tol=0.1) else "T1")


def embedding_halves(ev: Evidence) -> Iterable[Explanation]:
    """T2 where the frequencies are not geometric: P is R with its halves exchanged and R's halves are cos and sin of one angle."""
    if (
        not comparable(ev)
        or ev.reference.dim() < 1
        or ev.reference.shape[-1] < 4
        or ev.reference.shape[-1] % 2
        or ev.kind == "rope"
    ):
        return
    a, b = ev.r.chunk(2, -1)
    square = a.square() + b.square()
    if float(square.std()) > 1e-3 * float(square.mean()) or float(a.std()) < 1e-3 * float(square.mean().sqrt()):
        return
    yield from fitted(
        ev, torch.cat([b, a], -1), "the sine and cosine halves of the embedding are exchanged", 0.95, "T2"
    )


# --- solver steps -------------------------------------------------------------------------------------------------------------


def _combination(ev: Evidence, target: Tensor, parts: list[Tensor], tolerance: float) -> Tensor | None:
    """Return the coefficients with target ≈ Σ c_i·parts_i to `tolerance` (relative), first on a sample, else None."""
    every = max(1, target.numel() // 8192)

    def solve(step: int) -> tuple[Tensor, float]:
        columns = torch.stack([part.flatten()[::step] for part in parts], 1)
        goal = target.flatten()[::step]
        answer = torch.linalg.lstsq(columns, goal[:, None]).solution[:, 0]
        return answer, relative_error(columns @ answer, goal)

    coefficients, error = solve(every)
    if error > tolerance:
        return None
    coefficients, error = solve(max(1, target.numel() // 200_000))
    return coefficients if error <= tolerance else None


def step_of(ev: Evidence) -> tuple[Tensor, Tensor, float, float, str] | None:
    """Return (x, v, α, β, name of v) with R = α·x + β·v for two tensors around R: a one-step solver."""

    def build(evidence: Evidence) -> tuple[Tensor, Tensor, float, float, str] | None:
        if not comparable(evidence) or evidence.reference.numel() < 16 or not evidence.reference.is_floating_point():
            return None
        if evidence.kind not in ("latent", "activation", "output", "input"):
            return None
        pool = like_reference(evidence)[:8]
        for (name_a, a), (name_b, b) in combinations(pool, 2):
            if abs(float((a * b).sum())) > 0.9999 * float(a.norm() * b.norm()):
                continue
            found = _combination(evidence, evidence.r, [a, b], agreement(evidence))
            if found is None or float(found.abs().min()) < 1e-9:
                continue
            first, second = float(found[0]), float(found[1])
            if abs(first - 1) <= abs(second - 1):
                return a, b, first, second, name_b
            return b, a, second, first, name_a
        return None

    return memo(ev, "solver step", build)


def solver_step(ev: Evidence) -> Iterable[Explanation]:
    """T4, T8: R = x + (σ' − σ)·v. P is in the plane of x and v too: sign, x0 reading, or another step; or it leaves the plane."""
    step = step_of(ev)
    if step is None:
        others = list(_other_coefficients(ev)) if ev.kind != "activation" or "step" in ev.coords else []
        yield from others or _plain_step_in_port(ev)
        return
    x, v, alpha, beta, _ = step
    found = _combination(ev, ev.p, [x, v], max(agreement(ev), limit(ev) * ev.error))
    if found is None:
        yield from _leaves_the_plane(ev, x, v, alpha, beta)
        return
    a, b = float(found[0]), float(found[1])
    explained = a * x + b * v
    values = {"reference": (alpha, beta), "port": (a, b)}
    slack = 1e-3 * max(abs(beta), 1e-6)
    if abs(alpha - 1) < 1e-4 and abs(a - 1) < 1e-4:
        if abs(b + beta) < slack:
            text = f"the solver step has the opposite sign: x − (σ' − σ)·v, step {b:.5g} instead of {beta:.5g}"
            yield from fitted(ev, x - beta * v, text, 0.985, "T8", **values)
            return
        near = _named_difference(ev, b)
        text = f"the solver steps by {b:.6g} instead of {beta:.6g}{near}"
        yield from fitted(ev, explained, text, 0.95 if near else 0.92, "T4", **values)
        return
    if abs(alpha - 1) < 1e-4 and abs(a + b - 1) < 1e-3:
        text = f"the model's output is taken as x0: P = {a:.5g}·x + {b:.5g}·output, where the reference adds {beta:.5g}·output"
        yield from fitted(ev, explained, text, 0.94, "T8", **values)
        return
    if abs(a) < 1e-6 and abs(b - 1) < 1e-4:
        yield from fitted(
            ev, v, "the port's latent is the model's output: no solver step was made", 0.9, "T4", **values
        )
        return
    text = f"the solver's update is {a:.5g}·x + {b:.5g}·v instead of {alpha:.5g}·x + {beta:.5g}·v"
    yield from fitted(ev, explained, text, 0.82, "T4", **values)


def _named_difference(ev: Evidence, step: float) -> str:
    """Say which two entries of a schedule around R the step is the difference of."""
    for name, table in surroundings(ev):
        values = as_float64(table).flatten()
        if not 3 <= values.numel() <= 256 or not table.is_floating_point():
            continue
        for i in range(values.numel() - 1):
            if math.isclose(float(values[i + 1] - values[i]), step, rel_tol=1e-3):
                return f": that of step {i} of the schedule ({name})"
    return ""


def _leaves_the_plane(ev: Evidence, x: Tensor, v: Tensor, alpha: float, beta: float) -> Iterator[Explanation]:
    """P needs a third tensor: an older output (another order, or history that survived), or noise added by a stochastic solver."""
    older = [(n, t) for n, t in [*like_reference(ev), *_earlier(ev)] if t is not x and t is not v]
    for name, third in older[:12]:
        found = _combination(ev, ev.p, [x, v, third], max(agreement(ev), 0.5 * limit(ev) * ev.error))
        if found is None or abs(float(found[2])) * float(third.norm()) < 0.1 * float(ev.d.norm()):
            continue
        explained = found[0] * x + found[1] * v + found[2] * third
        values = {"reference": (alpha, beta), "port": found.tolist(), "history": name}
        if ev.coords.get("step") == 0:
            text = f"the first step already uses an older output ({name}): solver history of an earlier run survives"
            yield from fitted(ev, explained, text, 0.85, "T7", **values)
        else:
            text = f"the port's step uses an older output too ({name}): a multistep solver where the reference makes one step of x and v"
            yield from fitted(ev, explained, text, 0.88, "T4", **values)
        return


def _earlier(ev: Evidence) -> Iterator[tuple[str, Tensor]]:
    for name, value in ev.earlier.items():
        if tuple(value.shape) == tuple(ev.reference.shape) and value.is_floating_point():
            yield name, as_float64(value)


def _other_coefficients(ev: Evidence) -> Iterator[Explanation]:
    """T4: R and P are the same three tensors added up with other coefficients: a multistep update with a wrong ratio or order."""
    if not comparable(ev) or ev.reference.numel() < 64 or ev.kind not in ("latent", "activation", "output"):
        return
    for parts in combinations(like_reference(ev)[:6], 3):
        tensors = [part for _, part in parts]
        ours = _combination(ev, ev.r, tensors, agreement(ev))
        if ours is None or float(ours.abs().min()) < 1e-6:
            continue
        theirs = _combination(ev, ev.p, tensors, max(agreement(ev), 0.5 * limit(ev) * ev.error))
        if theirs is None:
            continue
        explained = sum((c * t for c, t in zip(theirs, tensors, strict=True)), torch.zeros_like(ev.p))
        names = ", ".join(name for name, _ in parts)
        said = [", ".join(f"{float(c):.5g}" for c in some) for some in (theirs, ours)]
        text = f"the update adds up {names} with {said[0]} instead of {said[1]}"
        yield from fitted(ev, explained, text, 0.9, "T4", reference=ours.tolist(), port=theirs.tolist())
        return


def _plain_step_in_port(ev: Evidence) -> Iterator[Explanation]:
    """T4: R is no combination of two tensors around it, P is x + c·v: a plain Euler step in place of the reference's solver."""
    if not comparable(ev) or ev.kind not in ("latent", "output") or ev.reference.numel() < 64 or ev.error < 5e-3:
        return
    pool = like_reference(ev)[:8]
    for (_, a), (_, b) in combinations(pool, 2):
        found = _combination(ev, ev.p, [a, b], agreement(ev) * 0.1)
        if found is None or float(found.abs().min()) < 1e-6:
            continue
        first, second = float(found[0]), float(found[1])
        if min(abs(first - 1), abs(second - 1)) < 1e-4:
            text = f"the port makes a plain Euler step (x {second if abs(first - 1) < 1e-4 else first:+.5g}·v); the reference's step is not one"
            yield from fitted(ev, found[0] * a + found[1] * b, text, 0.88, "T4", port=(first, second))
            return


def solver_rounding(ev: Evidence) -> Iterable[Explanation]:
    """T9: P = bf16(R), or the step computed in bf16/fp16, for latents; the reverse: R is rounded and P is not."""
    if ev.kind != "latent" or not ev.same_shape or ev.error <= ev.floor or not ev.reference.is_floating_point():
        return
    if not bool(torch.isfinite(ev.r).all() and torch.isfinite(ev.p).all()) or ev.error > 0.05:
        return
    step = step_of(ev) if comparable(ev) else None
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):

        def low(t: Tensor, dtype: torch.dtype = dtype) -> Tensor:
            return t.to(dtype).to(torch.float64)

        options = [(low(ev.r), f"the latent is rounded to {name} after the step")]
        if step is not None:
            x, v, alpha, beta, _ = step
            options += [
                (
                    low(low(alpha * x) + low(low(v) * float(low(torch.tensor(beta))))),
                    f"the solver's arithmetic is in {name}",
                ),
                (alpha * x + beta * low(v), f"the model's output is rounded to {name} before the step"),
            ]
        for explained, text in options:
            if torch.equal(explained, ev.r):
                continue
            residual = ev.residual(explained)
            if residual <= 0.02:
                yield Explanation(text, residual, 0.9, {"dtype": name}, "T9")
                return
        if bool((low(ev.p) == ev.r).all()) and not torch.equal(ev.p, ev.r):
            text = f"the reference's latent is the port's rounded to {name}: the port keeps a higher precision in the solver"
            yield Explanation(text, 0.0, 0.85, {"dtype": name}, "T9")
            return


def parametrisation(ev: Evidence) -> Iterable[Explanation]:
    """T8: P = ±R + c·x (or c·noise): the output was turned into another parametrisation (ε, v, x0)."""
    if (
        not comparable(ev)
        or ev.kind not in ("output", "latent")
        or ev.reference.numel() < 64
        or step_of(ev) is not None
    ):
        return
    for name, x in like_reference(ev)[:6]:
        found = _combination(ev, ev.p, [ev.r, x], max(agreement(ev), 0.5 * limit(ev) * ev.error))
        if found is None or abs(float(found[1])) < 1e-2 or abs(float(found[0])) < 1e-2:
            continue
        a, b = float(found[0]), float(found[1])
        simple = any(math.isclose(abs(value), 1.0, rel_tol=1e-3) for value in (a, b))
        if not simple:
            continue
        text = f"P = {a:.4g}·R {b:+.4g}·{name}: the output is in another parametrisation (ε, v or x0)"
        explained = a * ev.r + b * x
        residual = ev.residual(explained)
        if residual <= limit(ev):
            yield Explanation(text, residual, confidence(ev, residual, 0.8), {"coefficients": (a, b)}, "T8")
            return


HYPOTHESES: tuple[Hypothesis, ...] = (
    Hypothesis("timestep rounding", "T1", time_rounding, 0.8),
    Hypothesis("time unit", "T6", time_unit, 0.9),
    Hypothesis("sigma shift", "T3", sigma_shift, 0.8),
    Hypothesis("table ends", "T5", table_ends, 0.7),
    Hypothesis("neighbouring step", "T5", neighbour_step, 0.7),
    Hypothesis("time embedding", "T2", time_embedding, 0.75),
    Hypothesis("embedding halves", "T2", embedding_halves, 0.85),
    Hypothesis("solver step", "T4", solver_step, 0.6),
    Hypothesis("solver rounding", "T9", solver_rounding, 0.6),
    Hypothesis("parametrisation", "T8", parametrisation, 0.5),
)
