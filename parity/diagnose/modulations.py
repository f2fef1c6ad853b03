"""Adaptive modulation: scale, shift and gate chunks and their order (BUGS.md W5, N5, N6)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from parity.diagnose.evidence import Evidence, Explanation, as_float64, relative_error
from parity.diagnose.normal_forms import fit, norm_of, unit
from parity.diagnose.roles import (
    agreement,
    close,
    comparable,
    comparable_floats,
    confidence,
    fitted,
    like_reference,
    memo,
    noise,
    surroundings,
)


def modulation(ev: Evidence) -> Iterable[Explanation]:
    """W5: y = u·(1 + scale) + shift with scale and shift exchanged or taken from other chunks. N6: applied twice. N5: left out."""
    if not comparable_floats(ev) or ev.r.dim() < 2:
        return
    for u, gain, shift in _modulated(ev):
        if not adaptive(ev, gain):
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


def adaptive(ev: Evidence, gain: Tensor) -> bool:
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
    if not own.isdigit() or not stem or ".in." in ev.site or not comparable(ev) or not _varies(ev.r):
        return
    if any(
        ours is not None and (theirs is None or not torch.equal(ours, theirs))
        for ours, theirs in ev.parameters.values()
    ):
        return  # a twin with weights of its own, and these are the other's
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
