"""Cache and state causes: wrong slot, stale or shared content, length, eviction, frozen indices (BUGS.md K1–K9)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from parity.diagnose.evidence import Evidence, Explanation, Hypothesis, as_float64
from parity.diagnose.roles import close, comparable, confidence, distinct, fitted, limit, noise
from parity.diagnose.rotary import arrangements, as_pairs, bands, pairings, same_table, turn
from parity.diagnose.rotations import runs
from parity.diagnose.slices import is_memory
from parity.diagnose.slots import rows_of, slot_axes, slot_map

PARTS = frozenset(["segment", "window", "clip"])  # of a long video: each is given its own pictures
AXES_OF_TIME = ("request", "segment", "chunk", "frame", "step", "call", "branch", "cfg", "pass")
MOST_ELEMENTS = 30_000_000


def _exact(ev: Evidence) -> float:
    return max(1e-6, 3 * noise(ev))


def stale(ev: Evidence) -> Iterable[Explanation]:
    """K2, K4, K5, K9: P equals R at other coordinates (and not R here); the axis says whose state it is."""
    if not comparable(ev) or ev.reference.numel() > MOST_ELEMENTS or not _varied(ev.p):
        return
    for coords, value in _other_values(ev):
        if value.shape != ev.r.shape or not close(ev.p, value, _exact(ev)) or close(ev.r, value, _exact(ev)):
            continue
        moved = {axis: (ev.coords.get(axis), at) for axis, at in coords.items() if ev.coords.get(axis) != at}
        if not moved:
            continue
        axis = next((name for name in AXES_OF_TIME if name in moved), next(iter(moved)))
        now, then = moved[axis]
        place = ", ".join(f"{name} {at}" for name, at in coords.items())
        class_id, why = _whose(ev, axis, now, then)
        if class_id == "K5" and axis in ("branch", "cfg") and _given(ev):
            class_id, why = "C1", "the condition of the other guidance branch is given"
        text = f"P equals the reference's value at {place}: {why}"
        residual = ev.residual(value)
        sure = 0.9 if ev.r.numel() >= 4 else 0.7
        yield Explanation(
            text, residual, confidence(ev, residual, sure), {"axis": axis, "here": now, "there": then}, class_id
        )
        return


def _given(ev: Evidence) -> bool:
    """Say whether the record was handed to the model from outside, so that no state of the model is in it."""
    return ev.kind == "input" and ev.module in ("model", "")


def _varied(x: Tensor) -> bool:
    """Tell whether a value says whose it is: a fraction does, and so do several numbers; a flag or a count is equal by chance."""
    return bool((x != x.round()).any()) if x.numel() == 1 else bool((x != x.flatten()[0]).any())


def _other_values(ev: Evidence) -> Iterator[tuple[Mapping[str, int], Tensor]]:
    """Yield (coords, value) of the site elsewhere: neighbours of each axis first, then whatever earlier values there are."""
    tried: list[dict[str, int]] = []
    for axis, at in ev.coords.items():
        for offset in (-1, 1, -2, 2, 3, 4):
            coords = {**ev.coords, axis: at + offset}
            if coords in tried or at + offset < 0:
                continue
            tried.append(coords)
            value = ev.ref_at(ev.site, coords)
            if value is not None and value.shape == ev.reference.shape:
                yield coords, as_float64(value)
    for key, value in list(ev.earlier.items())[::-1][:32]:
        if value.shape == ev.reference.shape:
            yield _coords(key), as_float64(value)


def _coords(key: str) -> dict[str, int]:
    """Read coordinates from "site@frame=1,step=2" or "frame=1,step=2"; a key without any stands for itself as call −1."""
    found = {}
    for part in key.rpartition("@")[2].split(","):
        axis, _, number = part.partition("=")
        if number.strip().lstrip("-").isdigit():
            found[axis.strip()] = int(number)
    return found or {"call": -1}


def _whose(ev: Evidence, axis: str, now: int | None, then: int) -> tuple[str, str]:
    if axis == "request":
        return "K4", "state of another request was not reset"
    if axis in ("branch", "cfg"):
        return "K5", "the state or cached output of the other guidance branch is used"
    if ev.kind == "input" and axis in PARTS:
        return "V8", f"what belongs to another {axis} is given"
    constant = ev.kind in ("schedule", "rope", "mask", "input")
    before = now is None or then < now
    if constant:
        if axis == "step" and not before:
            return "T5", "the next step's value is used"
        if ev.kind == "input" and not before:
            return "V7", f"what belongs to a later {axis} is given"
        return "K9", "it is not refreshed" if before else "it is advanced too early"
    if ev.kind == "kv":
        return ("K3", "the cache is not updated") if before else ("K2", "the cache holds a later value")
    if axis == "step" and ev.kind == "latent":
        return "K2", "an older latent is used" if before else "a later latent is used"
    return "K5", "a cached output of an earlier call is reused" if before else "a later value overwrote it (aliasing)"


def cache_slots(ev: Evidence) -> Iterable[Explanation]:
    """K1, K3, K6: the port's slots hold the reference's entries in other places, hold zeros, or hold older entries."""
    if not _cache(ev) or not ev.same_shape or not comparable(ev):
        return
    for axis in slot_axes(tuple(ev.reference.shape)):
        found = list(_slots_along(ev, axis))
        if found:
            yield from found
            return


def _cache(ev: Evidence) -> bool:
    number = ev.reference.is_floating_point() or not ev.reference.is_complex()
    return ev.kind == "kv" and number and 1 < ev.reference.numel() <= MOST_ELEMENTS and ev.reference.dim() >= 2


def _slots_along(ev: Evidence, axis: int) -> Iterator[Explanation]:
    ours, theirs = rows_of(ev.r, axis), rows_of(ev.p, axis)
    mapped = slot_map(ours, theirs, _exact(ev))
    if mapped is None:
        return
    n = len(ours)
    wrong = torch.nonzero(~mapped.same).flatten()
    if not len(wrong):
        return
    values = {"slots": n, "wrong": runs(wrong), "axis": axis}
    if mapped.is_permutation:
        yield from _permuted_slots(ev, mapped.source, n, axis)
        return
    if bool(mapped.zero[wrong].all()):
        text, class_id = f"slots {runs(wrong)} of {n} are zero: entries were never written", "K1"
        if len(wrong) == n or bool((torch.linalg.vector_norm(theirs, dim=1) == 0).all()):
            text, class_id = "the cache is empty: nothing was ever written", "K3"
        explained = ev.r.clone().index_fill(axis, wrong, 0.0)
        yield from fitted(ev, explained, text, 0.93, class_id, **values)
        return
    yield from _shifted_slots(ev, mapped.source, n, axis)
    yield from _older_slots(ev, axis, wrong)
    known = mapped.source >= 0
    if bool(known.all()):
        lost = sorted(set(range(n)) - set(mapped.source.tolist()))
        text = f"slots {runs(wrong)} hold copies of entries {runs(mapped.source[wrong])}; entries {runs(torch.tensor(lost))} are lost"
        explained = ev.r.index_select(axis, mapped.source)
        yield from fitted(ev, explained, text, 0.9, "K1", source=mapped.source.tolist()[:256], **values)


def _permuted_slots(ev: Evidence, source: Tensor, n: int, axis: int) -> Iterator[Explanation]:
    explained = ev.r.index_select(axis, source)
    steps = distinct(torch.remainder(torch.arange(n) - source, n))
    if len(steps) == 1:
        by = int(steps[0]) if int(steps[0]) <= n // 2 else int(steps[0]) - n
        text = f"all entries are there but rolled by {by:+d} of {n} slots: the write index is off"
        yield from fitted(ev, explained, text, 0.94, "K1", roll=by, axis=axis)
        return
    wrong = torch.nonzero(source != torch.arange(n)).flatten()
    text = f"all entries are there in other slots: slots {runs(wrong)} hold entries {runs(source[wrong])}"
    yield from fitted(ev, explained, text, 0.92, "K1", source=source.tolist()[:256], axis=axis)


def _shifted_slots(ev: Evidence, source: Tensor, n: int, axis: int) -> Iterator[Explanation]:
    """K6: entries moved by k slots over a run, and what fell out at one end was not replaced as it should have been."""
    offset = source - torch.arange(n)
    moved = torch.nonzero((source >= 0) & (offset != 0)).flatten()
    if len(moved) < max(2, n // 3) or len(distinct(offset[moved])) != 1:
        return
    by = int(offset[moved][0])
    other = torch.nonzero(source < 0).flatten()
    if len(other) > abs(by) + n // 8:
        return
    text = f"entries {runs(moved)} are moved by {-by:+d} slots against the reference: the window was rolled at the wrong time or by too much"
    rest = f"; slots {runs(other)} hold something else" if len(other) else ""
    explained = ev.p.clone().index_copy(axis, moved, ev.r.index_select(axis, source[moved]))
    residual = ev.residual(explained)
    if residual <= limit(ev):
        yield Explanation(text + rest, residual, 0.85, {"offset": -by, "axis": axis}, "K6")


def _older_slots(ev: Evidence, axis: int, wrong: Tensor) -> Iterator[Explanation]:
    """K1, K3: the wrong slots hold what the reference held there before: a write that was skipped or went elsewhere."""
    for coords, value in _other_values(ev):
        if value.shape != ev.r.shape:
            continue
        explained = ev.r.index_copy(axis, wrong, value.index_select(axis, wrong))
        if ev.residual(explained) <= limit(ev):
            place = ", ".join(f"{name} {at}" for name, at in coords.items())
            text = f"slots {runs(wrong)} still hold their entries of {place}: the write is missing"
            class_id = "K3" if len(wrong) == ev.r.shape[axis] else "K1"
            yield from fitted(ev, explained, text, 0.9, class_id, wrong=runs(wrong), axis=axis)
            return


def cache_length(ev: Evidence) -> Iterable[Explanation]:
    """K3, K6, K1: the caches have different lengths: entries missing at one end, doubled, or kept too long."""
    if ev.kind not in ("kv", "mask") or ev.same_shape or ev.reference.dim() != ev.port.dim() or ev.reference.dim() < 1:
        return
    if max(ev.reference.numel(), ev.port.numel()) > MOST_ELEMENTS or min(ev.reference.numel(), ev.port.numel()) == 0:
        if ev.port.numel() == 0 and ev.reference.numel():
            yield Explanation("the port's cache is empty", 0.0, 0.9, {}, "K3")
        return
    apart = [a for a in range(ev.reference.dim()) if ev.reference.shape[a] != ev.port.shape[a]]
    if len(apart) != 1:
        return
    axis = apart[0]
    if not ev.reference.is_floating_point():  # masks and frame numbers have their own tests
        return
    if is_memory(ev):
        text = f"a convolution remembers {ev.port.shape[axis]} frames where the reference remembers {ev.reference.shape[axis]}"
        yield Explanation(text, 0.0, 0.95, {"axis": axis}, "V2")
        return
    ours, theirs = rows_of(ev.r, axis), rows_of(ev.p, axis)
    n, m = len(ours), len(theirs)
    near = _exact(ev)
    values = {"reference": n, "port": m, "axis": axis}
    if m > n:
        yield from _too_long(ours, theirs, near, values)
        return
    if close(theirs, ours[n - m :], near):
        text = f"the port keeps only the newest {m} of {n} entries: the window is too short, or the oldest {n - m} were evicted too early"
        yield Explanation(text, 0.0, 0.93, values, "K6")
    elif close(theirs, ours[:m], near):
        yield Explanation(
            f"the newest {n - m} of {n} entries are missing: they were not written", 0.0, 0.93, values, "K3"
        )
    else:
        yield Explanation(f"the port's cache has {m} entries, the reference's {n}", 0.0, 0.6, values, "K3")


def _too_long(ours: Tensor, theirs: Tensor, near: float, values: dict[str, int]) -> Iterator[Explanation]:
    n, m = len(ours), len(theirs)
    extra = m - n
    if extra <= n and (close(theirs[n:], ours[n - extra :], near) and close(theirs[:n], ours, near)):
        yield Explanation(
            f"the newest {extra} entries are there twice: one copy too many was appended", 0.0, 0.95, values, "K3"
        )
    elif m == 2 * n and close(theirs[0::2], ours, near) and close(theirs[1::2], ours, near):
        yield Explanation("every entry is there twice in a row", 0.0, 0.95, values, "K3")
    elif close(theirs[extra:], ours, near):
        text = f"the port keeps {extra} older entries that the reference has evicted: the window is too long"
        yield Explanation(text, 0.0, 0.93, values, "K6")
    elif close(theirs[:n], ours, near):
        rest = "zeros (unwritten slots)" if not bool(theirs[n:].any()) else "something else"
        yield Explanation(f"{extra} entries follow the reference's {n}: {rest}", 0.0, 0.88, values, "K3")
    else:
        yield Explanation(f"the port's cache has {m} entries, the reference's {n}", 0.0, 0.6, values, "K3")


def unrotated_keys(ev: Evidence) -> Iterable[Explanation]:
    """K7: cached keys differ by a rotation per position, θ = n·base^(−2j/d): one side caches before, the other after rotation."""
    if ev.kind != "kv" or not comparable(ev) or not ev.reference.is_floating_point() or ev.reference.dim() < 3:
        return
    if ev.reference.numel() > 8_000_000:
        return
    tolerance = max(1e-5, 3 * noise(ev))
    for arrangement in arrangements(tuple(ev.reference.shape)):
        r, p = arrangement.fold(ev.r), arrangement.fold(ev.p)
        if r.shape[1] < 2 or not close(r.norm(dim=-1), p.norm(dim=-1), tolerance):
            continue
        known = pairings(arrangement.head)
        for source, target in ((x, y) for x in known for y in known):
            for before, after, missing in ((p, r, True), (r, p, False)):
                table, rest = turn(as_pairs(before, known[source]), as_pairs(after, known[target]))
                turned = _positional(table) if rest <= tolerance else 0
                if turned == 0 or (turned < 0 and missing and source == target):
                    continue
                text = (
                    "keys are cached before the rotary embedding"
                    if missing
                    else "keys are rotated once more than the reference's"
                )
                values = {"pairing": source, "output": target, "rotated": not missing}
                yield Explanation(f"{text} ({source} pairs)", rest, 0.93, values, "K7")
                return


def _positional(table: Tensor) -> int:
    """Say whether a unit table [n, j] is a rotation by position: 1 forwards, −1 backwards (or it cannot be told), 0 it is none.

    A rotation that is the same at every position is an offset or a change of layout, and a table of signs is no rotation.
    """
    found = bands(table)
    if not found or float((table.imag.abs() > 1e-6).double().mean()) < 0.2:
        return 0
    lines = [band for band in found if band.line is not None]
    if not lines:
        return 1 if len(table) >= 4 else 0
    band = max(lines, key=lambda b: len(b.columns))
    made = torch.exp(1j * band.positions[:, None] * band.omega)
    whole = float((band.positions - band.positions.round()).abs().max()) < 1e-2
    if not whole or not same_table(made, table[:, band.columns], 1e-3):
        return 0
    return 1 if float(band.positions.mean()) > 0 else -1


HYPOTHESES: tuple[Hypothesis, ...] = (
    Hypothesis("stale value", "K5", stale, 0.8),
    Hypothesis("cache slots", "K1", cache_slots, 0.75),
    Hypothesis("cache length", "K3", cache_length, 0.8),
    Hypothesis("keys before rotation", "K7", unrotated_keys, 0.7),
)
