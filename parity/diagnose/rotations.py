"""How one rotary table differs from another: the position families P2–P7 told apart on unit tables e^{iθ[n, j]}."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from parity.diagnose.rotary import Band, Line, bands, geometric_line, read_positions, same_table

ROUNDINGS = {"bf16": torch.bfloat16, "fp16": torch.float16}

_ROUNDED = 2.0**-8  # what rounding to bf16 does to a frequency is no other unit


@dataclass(frozen=True)
class Story:
    """One way in which the port's table may have come about: what it says and the table that it predicts."""

    name: str
    class_id: str
    text: str
    table: Tensor
    parameters: Mapping[str, Any] = field(default_factory=dict)
    best: float = 0.985


def stories(zr: Tensor, zp: Tensor, tolerance: float) -> Iterator[Story]:
    """Yield every story that turns the reference's unit table [n, j] into the port's to `tolerance` (rms), simplest first."""
    if zr.shape != zp.shape or zr.numel() == 0 or same_table(zp, zr, tolerance):
        return
    one = torch.ones_like(zr)
    if same_table(zp, one, tolerance):
        yield Story("rotary missing", "N5", "no rotation was applied: the rotary embedding is missing or identity", one)
        return
    if same_table(zp, zr.conj(), tolerance):
        flipped = zr.conj().resolve_conj()
        yield Story("rotation sign", "P7", "the rotation has the opposite sign: angle −θ instead of θ", flipped)
        return
    found = list(bands(zr))
    told = False
    for kind in (_constant_offset, _columns, _constant_frequencies, _positions, _sections, _rounded, _frequencies):
        for story in kind(zr, zp, found, tolerance):
            if float((story.table - zp).abs().square().mean().sqrt()) <= max(tolerance, 0.0):
                yield story
                told = True
        if told:
            return


def _columns(zr: Tensor, zp: Tensor, found: list[Band], tolerance: float) -> Iterator[Story]:
    """P3, P4: every column of P is a column of R (or not turned at all)."""
    n, m = zr.shape
    rows = torch.linspace(0, n - 1, min(n, 256)).long()
    a, b = zr[rows], zp[rows]
    distance = (
        ((a[:, None, :] - b[:, :, None]).abs().square().mean(0)).sqrt() if m <= 128 else None
    )  # [P column, R column]
    if distance is None:
        return
    source = _assigned(distance, tolerance)
    idle = ((b - 1).abs().square().mean(0).sqrt() <= tolerance) & (distance.diagonal() > tolerance)
    idle &= distance.amin(1) > tolerance  # a column of an axis that does not move here is not an idle one
    if bool(((distance[torch.arange(m), source] > tolerance) & ~idle).any()):
        return
    table = torch.where(idle, torch.ones_like(zr), zr[:, source])
    if bool(idle.any()):
        turned = bool(((zr[rows] - 1).abs().mean(0) > tolerance)[idle].all())
        if turned and bool((source[~idle] == torch.arange(m)[~idle]).all()):
            text = f"pairs {runs(torch.nonzero(idle).flatten())} of {m} are not rotated: part of the cos/sin table is ignored"
            yield Story(
                "half of the table ignored", "P4", text, table, {"pairs": runs(torch.nonzero(idle).flatten())}, 0.95
            )
        return
    moved = torch.nonzero(source != torch.arange(m)).flatten()
    parameters = {"source": source.tolist()}
    if len(set(source.tolist())) == m:
        blocks = runs(source)
        if blocks.count(",") <= 6:
            text = f"the bands of the rotary table are in another order: the port's pairs take the reference's {blocks}"
            yield Story("band order", "P3", text, table, parameters)
        else:
            text = "the rotary frequencies are assigned to pairs in another order (interleaved against blocked, or reversed)"
            yield Story("frequency order", "P1", text, table, parameters, 0.93)
    else:
        text = (
            f"pairs {runs(moved)} use the angles of pairs {runs(source[moved])}: part of the cos/sin table is ignored"
        )
        yield Story("half of the table ignored", "P4", text, table, parameters, 0.95)


def _assigned(distance: Tensor, tolerance: float) -> Tensor:
    """Return for each port column the reference column that it equals: its own, else a free one, else the nearest. [m]"""
    m = distance.shape[0]
    source = distance.argmin(1)
    own = distance.diagonal() <= tolerance
    source[own] = torch.arange(m)[own]
    free = ~own
    for column in torch.nonzero(~own).flatten().tolist():
        options = torch.nonzero((distance[column] <= tolerance) & free).flatten()
        if len(options):
            source[column] = options[0]
            free[options[0]] = False
    return source


def _constant_offset(zr: Tensor, zp: Tensor, found: list[Band], tolerance: float) -> Iterator[Story]:
    """P2 on an axis along which this record does not move (one frame): the difference is n·ω_j in every row."""
    difference = zp * zr.conj()
    mean = difference.mean(0)
    unit = mean / mean.abs().clamp_min(1e-12)
    if not same_table(difference, unit.expand_as(difference), tolerance):
        return
    moving = set().union(*(band.columns.tolist() for band in found)) if found else set()
    columns = torch.nonzero(unit.angle().abs() > 3 * tolerance + 1e-7).flatten()
    if not len(columns) or moving & set(columns.tolist()):
        return
    still = torch.tensor([j for j in range(zr.shape[1]) if j not in moving])
    line = geometric_line(unit.angle()[still]) if len(still) >= 3 else None
    if line is None:
        line = geometric_line(unit.angle()[columns])
        still = columns
    if line is None:
        return
    offset = (
        round(line.amount) if abs(line.amount - round(line.amount)) < 1e-3 * max(1.0, abs(line.amount)) else line.amount
    )
    angles = torch.zeros(zr.shape[1], dtype=torch.float64)
    angles[still] = offset * line.frequencies
    text = f"positions of pairs {runs(still)} are offset by {offset:+g} (base {line.base:.6g})"
    yield Story("position offset", "P2", text, zr * torch.exp(1j * angles), {"offset": offset, "pairs": runs(still)})


def _constant_frequencies(zr: Tensor, zp: Tensor, found: list[Band], tolerance: float) -> Iterator[Story]:
    """P5 on an axis along which this record does not move (one frame): both sides turn by n·ω_j with other ω."""
    moving = set().union(*(band.columns.tolist() for band in found)) if found else set()
    still = torch.tensor([j for j in range(zr.shape[1]) if j not in moving], dtype=torch.long)
    turned = ((zr - 1).abs() + (zp - 1).abs()).amax(0) > tolerance  # an axis at position 0 says nothing
    still = still[turned[still]]
    if len(still) < 3 or (moving and not same_table(zp[:, sorted(moving)], zr[:, sorted(moving)], tolerance)):
        return
    rows_r, rows_p = zr[:, still], zp[:, still]
    if not (
        same_table(rows_r, rows_r[:1].expand_as(rows_r), tolerance)
        and same_table(rows_p, rows_p[:1].expand_as(rows_p), tolerance)
    ):
        return
    ours, theirs = geometric_line(rows_r[0].angle()), geometric_line(rows_p[0].angle())
    if ours is None or theirs is None or abs(ours.amount) < 1e-6:
        return
    text, values = _named_line(replace(ours, amount=1.0), replace(theirs, amount=theirs.amount / ours.amount), 1.0)
    table = zr.clone()
    table[:, still] = torch.exp(1j * theirs.amount * theirs.frequencies).expand_as(rows_p)
    yield Story("rotary frequencies", "P5", f"pairs {runs(still)}: {text}", table, values, 0.94)


def _positions(zr: Tensor, zp: Tensor, found: list[Band], tolerance: float) -> Iterator[Story]:
    """P2, P3, P5: the frequencies are R's and the positions follow a rule: shifted, scaled, frozen, restarted or exchanged."""
    table = zr.clone()
    said: list[str] = []
    parameters: dict[str, Any] = {}
    classes: list[tuple[str, str]] = []
    for number, band in enumerate(found):
        if same_table(zp[:, band.columns], zr[:, band.columns], tolerance):
            continue
        theirs = read_positions(zp, band)
        rule = _rule(band.positions, theirs, [other.positions for other in found if other is not band])
        if rule is None:
            return
        name, class_id, text, positions, values = rule
        table[:, band.columns] = torch.exp(1j * positions[:, None] * band.omega)
        said.append(f"pairs {runs(band.columns)}: {text}")
        classes.append((name, class_id))
        parameters |= {f"{key}_{number}" if key in parameters else key: value for key, value in values.items()}
    if said:
        name, class_id = classes[0]
        yield Story(name, class_id, "; ".join(said), table, parameters)


def _sections(zr: Tensor, zp: Tensor, found: list[Band], tolerance: float) -> Iterator[Story]:
    """P3: some columns keep their frequency and take the positions of another axis: the head is split elsewhere among the axes."""
    table, moved = zr.clone(), []
    for band in found:
        for place, column in enumerate(band.columns.tolist()):
            if same_table(zp[:, column], zr[:, column], tolerance):
                continue
            options = [torch.exp(1j * other.positions * band.omega[place]) for other in found if other is not band]
            best = min(options, key=lambda one: float((one - zp[:, column]).abs().max()), default=None)
            if best is None or not same_table(zp[:, column], best, tolerance):
                return
            table[:, column] = best
            moved.append(column)
    if moved:
        text = f"{len(moved)} of {zr.shape[1]} columns ({runs(torch.tensor(sorted(moved)))}) keep their frequency and take the position of another axis: the head is split elsewhere among the axes"
        yield Story("position axes", "P3", text, table, {"columns": sorted(moved)}, 0.97)


def _rule(ours: Tensor, theirs: Tensor, others: list[Tensor]) -> tuple[str, str, str, Tensor, dict[str, Any]] | None:
    """Name the rule that makes the port's positions of the reference's, or None; all in the same unit. [n] each."""
    scale = max(1.0, float(ours.abs().max()))
    near = 1e-3 * scale
    shift = theirs - ours
    if float((shift - shift.median()).abs().max()) < near:
        offset = _tidy(float(shift.median()))
        return "position offset", "P2", f"positions are offset by {offset:+g}", ours + offset, {"offset": offset}
    for other in others:
        if other.shape == theirs.shape and float((other - theirs).abs().max()) < near:
            return "position axes", "P3", "positions are taken from another axis", other, {}
    if float(theirs.std()) < 1e-6 * scale:
        value = _tidy(float(theirs.median()))
        return (
            "positions frozen",
            "P2",
            f"every position is {value:g}: positions do not advance",
            torch.full_like(ours, value),
            {"position": value},
        )
    factor = float((ours * theirs).sum() / ours.square().sum().clamp_min(1e-300))
    if float((theirs - factor * ours).abs().max()) < near and abs(factor) > 1e-3:
        factor = _tidy(factor)
        return "position unit", "P5", f"positions are multiplied by {factor:g}", factor * ours, {"scale": factor}
    steps = (theirs - ours[0]).round()
    if float((theirs - ours[0] - steps).abs().max()) > 0.02:
        return None
    table = ours[0] + steps
    values: dict[str, Any] = {"reference": _few(ours), "port": _few(table)}
    if _same_set(ours, table):
        return "position axes", "P3", "positions are those of the grid walked in another order", table, values
    whole = ours - ours[0]
    for period in range(2, min(int(whole.max()), 4096) + 1):
        if torch.equal(torch.remainder(whole, period).round(), steps):
            return (
                "positions restart",
                "P2",
                f"positions restart at {float(ours[0]):g} every {period}",
                table,
                values | {"period": period},
            )
    for period in range(2, min(len(ours), 4096)):
        if bool((steps == steps[torch.arange(len(ours)) % period]).all()):
            text = f"positions restart every {period} rows"
            return "positions restart", "P2", text, table, values | {"rows": period}
    text = f"positions {_few(table)} were used for {_few(ours)}"
    return "positions replaced", "P2", text, table, values


def _frequencies(zr: Tensor, zp: Tensor, found: list[Band], tolerance: float) -> Iterator[Story]:
    """P5: positions are R's; the base, the unit or single frequencies changed."""
    table = zr.clone()
    said: list[str] = []
    parameters: dict[str, Any] = {}
    for band in found:
        cols = band.columns
        if same_table(zp[:, cols], zr[:, cols], tolerance):
            continue
        step = (zp[band.stride, cols] * zp[0, cols].conj()).angle()
        span = band.positions[band.stride] - band.positions[0]
        line = geometric_line(step)
        if line is not None and band.line is not None:
            text, values = _named_line(band.line, line, float(span))
            omega = line.amount * line.frequencies / span
        else:
            text, values, omega = "single frequencies differ", {}, step / span
            ratio = omega / band.omega
            middle = float(ratio.median())
            if abs(middle - 1) > _ROUNDED and float((ratio - middle).abs().max()) < 1e-3 * abs(middle):
                text, values = (
                    f"all angles are multiplied by {middle:.6g}",
                    {"scale": _tidy(middle)},
                )
        table[:, cols] = torch.exp(1j * (band.positions[:, None] - band.positions[0]) * omega) * zp[0, cols]
        start = torch.exp(1j * band.positions[0] * omega)
        if same_table(start[None], zp[:1, cols], tolerance):
            table[:, cols] = torch.exp(1j * band.positions[:, None] * omega)
        said.append(f"pairs {runs(cols)}: {text}")
        parameters |= values
    if said:
        yield Story("rotary frequencies", "P5", "; ".join(said), table, parameters, 0.96 if parameters else 0.85)


def _named_line(ours: Line, theirs: Line, span: float) -> tuple[str, dict[str, Any]]:
    scale = theirs.amount / span
    values: dict[str, Any] = {"base_reference": _tidy(ours.base, 1e-4), "base_port": _tidy(theirs.base, 1e-4)}
    text = ""
    if abs(theirs.base / ours.base - 1) > 1e-3:
        text = f"the rotary base is {values['base_port']:g} instead of {values['base_reference']:g}"
    else:
        values = {}
    if abs(scale - 1) > 1e-3:
        text = " and ".join(filter(None, [text, f"positions are multiplied by {_tidy(scale):g}"]))
        values["scale"] = _tidy(scale)
    return text or "the frequencies differ slightly", values


def _rounded(zr: Tensor, zp: Tensor, found: list[Band], tolerance: float) -> Iterator[Story]:
    """P6: the angles were formed in bf16 or fp16: position and frequency rounded, their product rounded, or cos and sin rounded."""
    if float((zp - zr).abs().square().mean().sqrt()) > 0.7 or not found:
        return
    for name, dtype in ROUNDINGS.items():

        def low(x: Tensor, dtype: torch.dtype = dtype) -> Tensor:
            return x.to(dtype).to(torch.float64)

        makers = {
            f"frequencies rounded to {name}": lambda p, w: p[:, None] * low(w),
            f"positions and frequencies in {name}": lambda p, w: low(p)[:, None] * low(w),
            f"angles rounded to {name}": lambda p, w: low(p[:, None] * w),
            f"angles computed in {name}": lambda p, w: low(low(p)[:, None] * low(w)),
        }
        for text, make in makers.items():
            table = zr.clone()
            for band in found:
                table[:, band.columns] = torch.exp(1j * make(band.positions, band.omega))
            part = float((table - zp).abs().square().mean().sqrt() / (zp - zr).abs().square().mean().sqrt())
            if part < 0.1:
                story = f"the rotary table was computed in low precision: {text}"
                yield Story("low-precision angles", "P6", story, table, {"dtype": name}, 0.95)
                return
        cast = torch.complex(low(zr.real), low(zr.imag))
        turned = cast / cast.abs().clamp_min(1e-12)
        for table in (cast, turned):
            if float((table - zp).abs().square().mean().sqrt()) < 0.1 * float((zp - zr).abs().square().mean().sqrt()):
                yield Story(
                    "low-precision angles", "P6", f"cos and sin were rounded to {name}", cast, {"dtype": name}, 0.95
                )
                return


def runs(index: Tensor) -> str:
    """Write indices as runs: [0, 1, 2, 8, 9] -> "0-2, 8-9"."""
    values = index.tolist()
    if not values:
        return ""
    parts, start = [], values[0]
    for left, right in zip(values, [*values[1:], None], strict=True):
        if right != left + 1:
            parts.append(str(start) if start == left else f"{start}-{left}")
            start = right
    return ", ".join(parts)


def _tidy(value: float, relative: float = 1e-3) -> float:
    """Return the nearest simple number (an integer, or one over an integer) when it is within `relative`, else the value."""
    for simple in (
        float(round(value)),
        1.0 / round(1.0 / value) if abs(value) > 1e-6 and abs(value) < 0.9 else math.nan,
    ):
        if abs(value - simple) <= relative * max(1.0, abs(value)) * (1.0 if abs(value) >= 0.5 else abs(simple)):
            return simple
    return value


def _few(values: Tensor) -> list[float]:
    distinct = torch.unique_consecutive(values.round(decimals=3))
    return [round(value, 3) for value in distinct[:8].tolist()]


def _same_set(a: Tensor, b: Tensor) -> bool:
    return float((a.sort().values - b.sort().values).abs().max()) < 1e-2
