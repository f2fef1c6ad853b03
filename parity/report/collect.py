"""From traces to what people would rather look at than read: frames, caches, positions and masks. Arrays only; the report draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from parity.case import Case
from parity.report.media import KvView, MaskView, Media, PairView, RopeView
from parity.report.sources import sources_of
from parity.report.values import value_views, values_at
from parity.result import Result
from parity.run.side import Runs
from parity.trace import Record, Trace

_MOST_VIEWS = 8
_ROUNDING = 1e-5  # relative L2 of an entry: what is below is no difference to look at


def collect_media(case: Case, runs: Runs, result: Result) -> Media:
    """Gather the pictures of one case: decoded frames, cache contents over time, positional tables, masks, values, source lines.

    A cache is recognised by its canonical form: records of kind `kv` named `<layer>.frames`, with `<layer>.k` beside it. What the verdict
    takes for equal is within the floor of its picture.
    """
    port = runs.free or runs.port
    wrong = {found.site for found in result.divergences}
    return Media(
        frames_reference=_frames(case, runs.reference),
        frames_port=_frames(case, port),
        kv=tuple(_judged_cache(view, wrong) for view in _caches(runs.reference, runs.port)[:_MOST_VIEWS]),
        rope=tuple(_judged_table(view, wrong) for view in _tables(runs.reference, runs.port)[:_MOST_VIEWS]),
        masks=_masks(runs.reference, runs.port)[:_MOST_VIEWS],
        pairs=_pairs(result, runs),
        values=value_views(result.rows, result.divergences, runs.reference, runs.port),
        sources=sources_of(result),
    )


def _pairs(result: Result, runs: Runs) -> tuple[PairView, ...]:
    """What the first cause says is rotated otherwise, and its like beside it (keys beside queries): one head, along the longest axis."""
    first = result.first
    if first is None or not result.causes or not result.causes[0].class_id.startswith("P"):
        return ()
    keys = {found.key for found in result.divergences}
    module = first.site.rpartition(".")[0]
    near = [
        r for r in result.rows if r.key in keys and r.coords == first.coords and r.site.rpartition(".")[0] == module
    ]
    found = []
    for row in near:
        left, right = values_at(row, runs.reference, runs.port)
        if left is None or right is None or row.shape != first.shape or left.dim() < 2 or left.shape[-1] % 2:
            continue
        axis = max(range(left.dim() - 1), key=lambda i: left.shape[i])
        sides = [side.movedim(axis, -2).flatten(0, -3)[0] if side.dim() > 2 else side for side in (left, right)]
        found.append(PairView(row.site, *(side.detach().double().cpu().numpy() for side in sides)))
    return tuple(found[:2])


def _judged_cache(view: KvView, wrong: set[str]) -> KvView:
    """The floor of a cache whose keys do not diverge is above all that it shows; else that of entries which do not."""
    if view.error is None or f"{view.layer}.k" in wrong:
        return replace(view, floor=_ROUNDING)
    return replace(view, floor=max(_ROUNDING, float(np.nanmax(view.error, initial=0.0))))


def _judged_table(view: RopeView, wrong: set[str]) -> RopeView:
    if view.name in wrong or view.reference.shape != view.port.shape:
        return view
    with np.errstate(invalid="ignore"):
        return replace(view, floor=float(np.nanmax(np.abs(view.port - view.reference), initial=0.0)))


def _frames(case: Case, trace: Trace) -> np.ndarray | None:
    if case.frames is None:
        return None
    frames = np.asarray(case.frames(trace))
    return frames if frames.size else None


def _caches(reference: Trace, port: Trace) -> tuple[KvView, ...]:
    sites = [s for s in reference.sites() if s.endswith(".frames")]
    found = []
    for site in sites:
        rows = [r for r in reference if r.site == site]
        held = [(_ints(reference.tensor(r.key)), _ints(port.tensor(r.key))) for r in rows]
        width = max((len(ids) for pair in held for ids in pair), default=0)
        if not width:
            continue
        layer = site.removesuffix(".frames")
        errors = [
            _slot_errors(reference, port, r, layer, left, right, width)
            for r, (left, right) in zip(rows, held, strict=True)
        ]
        found.append(
            KvView(
                layer=layer,
                held_reference=_pad([left for left, _ in held], width),
                held_port=_pad([right for _, right in held], width),
                error=np.array(errors),
            )
        )
    return tuple(found)


def _slot_errors(
    reference: Trace, port: Trace, record: Record, layer: str, left: Sequence[int], right: Sequence[int], width: int
) -> list[float]:
    """Return the relative error of each held frame's keys, nan where one side does not hold it."""
    errors = [float("nan")] * width
    r, p = reference.at(f"{layer}.k", record.coords), port.at(f"{layer}.k", record.coords)
    if r is None or p is None or r.dim() == 0 or p.dim() == 0:
        return errors
    for i, frame in enumerate(left):
        if frame in right and i < len(r):
            other = p[list(right).index(frame)]
            if other.shape == r[i].shape:
                norm = float(r[i].double().norm()) or 1.0
                errors[i] = float((other.double() - r[i].double()).norm()) / norm
    return errors


def _tables(reference: Trace, port: Trace) -> tuple[RopeView, ...]:
    """Return positional tables; those that differ first."""
    found = []
    for site in reference.sites():
        pairs = [
            (r_, p_)
            for r in reference
            if r.site == site
            and r.kind == "rope"
            and (r_ := reference.tensor(r.key)) is not None
            and (p_ := port.tensor(r.key)) is not None
        ]
        pairs = [(r, p) for r, p in pairs if r.shape == p.shape and r.dim() >= 2 and not r.is_complex()]
        if not pairs:
            continue
        unequal = [(r, p) for r, p in pairs if not torch.equal(r, p)]
        r, p = (unequal or pairs)[0]
        found.append((not unequal, RopeView(site, _matrix(r), _matrix(p))))
    return tuple(view for _, view in sorted(found, key=lambda item: item[0]))


def _masks(reference: Trace, port: Trace) -> tuple[MaskView, ...]:
    """Return boolean masks, one row a coordinate; those that differ first."""
    found = []
    for site in reference.sites():
        rows = []
        width = _largest_id(site, reference, port) + 1
        for record in reference:
            if record.site == site and record.kind == "mask":
                r, p = reference.tensor(record.key), port.tensor(record.key)
                if r is not None and p is not None:
                    row = _mask_row(r, p, width)
                    rows += [row] if row is not None else []
        rows = [row for row in rows if row[0].shape == rows[0][0].shape]
        if not rows or rows[0][0].size > 4096:
            continue
        left, right = np.stack([r for r, _ in rows]), np.stack([p for _, p in rows])
        found.append(
            (bool((left == right).all()), MaskView(site, left, right, row_label="forward", column_label="key"))
        )
    return tuple(view for _, view in sorted(found, key=lambda item: item[0]))


def _mask_row(r: Tensor, p: Tensor, width: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return one row of both masks: a boolean mask as it is, a list of visible ids as a mask over ids."""
    if r.dtype == torch.bool:
        return (r.flatten().numpy(), p.flatten().numpy()) if p.shape == r.shape else None
    if r.dim() != 1 or r.dtype != torch.int64 or p.dtype != torch.int64:
        return None
    return np.isin(np.arange(width), _ints(r)), np.isin(np.arange(width), _ints(p))


def _largest_id(site: str, *traces: Trace) -> int:
    values = [
        t
        for trace in traces
        for rec in trace
        if rec.site == site and rec.dtype == "int64" and (t := trace.tensor(rec.key)) is not None
    ]
    return min(4095, max((int(t.max()) for t in values if t.numel()), default=0))


def _ints(value: Tensor | None) -> list[int]:
    return [] if value is None else [int(v) for v in value.flatten().tolist()]


def _pad(rows: Sequence[Sequence[int]], width: int) -> np.ndarray:
    out = np.full((len(rows), width), -1, dtype=np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def _matrix(value: Tensor) -> np.ndarray:
    """Return a table as [positions, channels]."""
    return value.detach().float().reshape(-1, value.shape[-1]).cpu().numpy()
