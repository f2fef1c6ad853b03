"""Time, sigma and solver causes (BUGS.md T1–T9)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from parity.diagnose.evidence import Evidence, Explanation, Hypothesis, as_float64
from parity.diagnose.roles import (
    close,
    noise,
    surroundings,
)
from parity.diagnose.schedules import ROUNDINGS, FlowTable, flow_table
from parity.diagnose.time_embeddings import embedding_halves, time_embedding

SMALL_TABLE = 4096
WHOLE = {"truncated": torch.floor, "rounded": torch.round, "rounded up": torch.ceil}
FIRST_TIME = 1e-3  # the smallest time of a model that was trained on a thousand


def _table(ev: Evidence) -> bool:
    """Say whether the record is a schedule: a table or a scalar of times or sigmas."""
    small = (
        0 < ev.reference.numel() <= SMALL_TABLE and not ev.reference.is_complex() and ev.reference.dtype != torch.bool
    )
    finite = small and bool(torch.isfinite(ev.r).all()) and ev.port.numel() > 0 and bool(torch.isfinite(ev.p).all())
    return finite and (
        ev.kind == "schedule" or (ev.kind == "input" and ev.reference.dim() <= 2 and ev.reference.numel() <= 256)
    )


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


def whole_times(ev: Evidence) -> Iterable[Explanation]:
    """T1: both tables are the sigmas around them in thousandths, made whole in two ways (truncated, rounded)."""
    if not _table(ev) or not ev.same_shape or ev.r.dim() != 1 or float(ev.d.abs().max()) != 1.0 or ev.r.numel() < 3:
        return
    for name, table in surroundings(ev):
        if not table.is_floating_point() or table.dim() != 1 or not 0 <= table.numel() - ev.r.numel() <= 1:
            continue
        exact = 1000.0 * as_float64(table)[: ev.r.numel()]
        how = [next((n for n, f in WHOLE.items() if torch.equal(f(exact), side)), None) for side in (ev.r, ev.p)]
        if None not in how and how[0] != how[1]:
            text = f"the timesteps are the sigmas ({name}) {how[1]} to whole thousandths where the reference has them {how[0]}"
            number = int((ev.d != 0).sum())
            yield Explanation(
                f"{text}: {number} of {ev.r.numel()} differ by one", 0.0, 0.95, {"rounding": how[1]}, "T1"
            )
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
    if turned and (ev.r.numel() > 1 or 0 < scale < whole) and ev.reference.is_floating_point():
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
    bent = _bent_odds(r[inside], p[inside])
    if bent is not None:
        yield bent
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


def _bent_odds(r: Tensor, p: Tensor) -> Explanation | None:
    """log σ/(1 − σ) of the port is a line of the reference's with another slope: a shift by another formula (T3)."""
    if len(r) < 3 or not bool((r.diff() < 0).all() & (p.diff() < 0).all()):
        return None  # noise falls from step to step
    x, y = torch.logit(r), torch.logit(p)
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum().clamp_min(1e-300))
    rest = float((y - y.mean() - slope * (x - x.mean())).abs().max())
    if abs(slope - 1) < 0.05 or slope <= 0 or rest > 1e-3 * float((y.max() - y.min()).clamp_min(1e-300)):
        return None
    text = f"the sigma shift follows another formula: the odds σ/(1 − σ) are raised to the power {slope:.4g}"
    return Explanation(text, 0.0, 0.94, {"power": slope}, "T3")


def _known_shift(ev: Evidence) -> float | None:
    values = [ours for name, (ours, _) in ev.settings.items() if "shift" in name and isinstance(ours, (int, float))]
    return float(values[0]) if values and values[0] else None


def _named_shift(ours: FlowTable, theirs: FlowTable) -> Explanation | None:
    s, k = ours.shift, theirs.shift
    slack = 1e-4 if s == k else 1e-3  # an end point is as sure as the shift
    same_ends = abs(ours.first - theirs.first) < slack and abs(ours.last - theirs.last) < 2e-4 + 1e-3 * ours.last
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
        upper = abs(theirs.first - shifted(ours.first)) < 0.05 * abs(theirs.first - ours.first)
        lower = abs(theirs.last - shifted(FIRST_TIME)) < 1e-3 * theirs.last < abs(ours.last - theirs.last)
        if abs(s - 1) > 1e-2 and ((last_twice and first_twice) or upper or (lower and first_twice)):
            which = "end points" if last_twice and first_twice else "upper end point" if upper else "lower end point"
            were = "were" if which == "end points" else "was"
            text = f"the {which} of the table {were} shifted before the table was: shift {s:g} counts twice"
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
    if ev.kind == "input" and not ev.reference.is_floating_point() and bool((r.diff() == 1).all()):
        return  # running numbers: positions
    near = 1e-6 + 2 * noise(ev)
    if r.numel() != p.numel():
        if ev.kind == "schedule" and all(
            max(x.shape) == x.numel() for x in (ev.reference, ev.port)
        ):  # features are no table
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


def zero_terminal(ev: Evidence) -> Iterable[Explanation]:
    """T5: only one side's table is rescaled to a signal of zero at the last step (Lin et al. 2023, algorithm 1)."""
    if (
        ev.kind != "schedule"
        or not ev.same_shape
        or ev.r.dim() != 1
        or len(ev.r) < 4
        or bool((ev.r < 0).any() | (ev.p < 0).any())
    ):
        return
    for plain, rescaled, who in ((ev.p, ev.r, "is not"), (ev.r, ev.p, "alone is")):
        root = plain.flatten().sqrt()
        made = (root - root[-1]) * root[0] / (root[0] - root[-1]).clamp_min(1e-300)
        if float((made.square() - rescaled.flatten()).abs().max()) <= 1e-5 * float(rescaled.abs().max()):
            text = f"the port's table {who} rescaled to zero signal at the last step"
            yield Explanation(text, 0.0, 0.95, {"last_reference": float(ev.r[-1]), "last_port": float(ev.p[-1])}, "T5")
            return


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


HYPOTHESES: tuple[Hypothesis, ...] = (
    Hypothesis("timestep rounding", "T1", time_rounding, 0.8),
    Hypothesis("whole timesteps", "T1", whole_times, 0.8),
    Hypothesis("time unit", "T6", time_unit, 0.9),
    Hypothesis("sigma shift", "T3", sigma_shift, 0.8),
    Hypothesis("table ends", "T5", table_ends, 0.7),
    Hypothesis("zero terminal signal", "T5", zero_terminal, 0.8),
    Hypothesis("neighbouring step", "T5", neighbour_step, 0.7),
    Hypothesis("time embedding", "T2", time_embedding, 0.75),
    Hypothesis("embedding halves", "T2", embedding_halves, 0.85),
)
