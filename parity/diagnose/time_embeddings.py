"""Sinusoidal time embeddings: order, base, amplitude, time and frequency table (BUGS.md T1, T2, T5, T6, W10)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from parity.diagnose.evidence import Evidence, Explanation, relative_error
from parity.diagnose.roles import (
    close,
    comparable,
    confidence,
    fitted,
    noise,
)
from parity.diagnose.schedules import ORDERS, ROUNDINGS, Sinusoid, sinusoid, write_sinusoid


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
        found = list(_frequency_table(ev, ours, theirs)) or list(_rewritten(ev, ours, theirs))
        yield from found
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
    if ours is not None:
        changes["the port's frequencies are all zero: the buffer was never filled"] = torch.zeros_like
    for text, change in changes.items():
        exact, other = written(lambda f: f), written(change)
        if close(exact, high, 1e-3) and relative_error(other, low) < 0.02 * ev.error + 2 * noise(ev):
            # the residual of the side that is not R: how well the change predicts the other side
            residual = float(torch.linalg.vector_norm(other - low) / torch.linalg.vector_norm(ev.d))
            yield Explanation(text, residual, confidence(ev, residual, 0.94), {}, "W10")
            return


BASES = (100.0, 256.0, 500.0, 1000.0, 2000.0, 5000.0, 1e4, 2e4, 5e4, 1e5, 5e5, 1e6)
UNITS = (1.0, 1000.0, 1e-3, 2.0, 0.5)


def _rewritten(ev: Evidence, ours: Sinusoid | None, theirs: Sinusoid | None) -> Iterator[Explanation]:
    """One side's angles cannot be read (they turn too fast): it is the other's with a usual base, end point or unit of time."""
    known = ours or theirs
    if known is None:
        return
    port_unread = ours is not None
    unread = (ev.p if port_unread else ev.r).reshape(-1, ev.r.shape[-1])
    half = unread.shape[-1] // 2
    times, j = _exact_times(ev, known), torch.arange(half, dtype=torch.float64)
    rates = {known.rate: "", known.rate * half / (half - 1): "end point", known.rate * (half - 1) / half: "end point"}
    rates |= {math.log(base) / steps: f"base {base:g}" for base in BASES for steps in (half, half - 1)}
    for rate, what in rates.items():
        for unit in UNITS:
            theta = unit * times[:, None] * torch.exp(-rate * j)
            for order in dict.fromkeys((known.order, *ORDERS)):
                other = write_sinusoid(theta, known.amplitude, order)
                if not close(other, unread, 1e-3 + 2 * noise(ev)):
                    continue
                said, class_id = [], "T2"
                if order != known.order:
                    said.append(f"{order} instead of {known.order}")
                if what:
                    said.append("another end point of the exponent" if what == "end point" else f"frequency {what}")
                if unit != 1.0:
                    said.append(f"the time is multiplied by {unit:g}")
                    class_id = class_id if what or order != known.order else "T6"
                if said:
                    residual = float(torch.linalg.vector_norm(other - unread) / torch.linalg.vector_norm(ev.d))
                    who = "port" if port_unread else "reference"
                    text = f"the time embedding differs; the {who}'s: {'; '.join(said)}"
                    trust = confidence(ev, residual, 0.95 if len(said) == 1 else 0.93)
                    yield Explanation(text, residual, trust, {"rate": rate, "unit": unit, "order": order}, class_id)
                return


def _exact_times(ev: Evidence, known: Sinusoid) -> Tensor:
    """Return t·f_0 of every row: the input that it was read from where there is one, since large angles need all its digits."""
    times = known.times
    for value in ev.inputs.values():
        if value.numel() in (1, len(times)) and not value.is_complex():
            given = value.detach().cpu().double().flatten().expand(len(times))
            if close(given, times, 1e-4):
                return given
    return times


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
