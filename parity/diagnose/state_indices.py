"""Frames that a cache keeps and indices that advance, as whole numbers (BUGS.md K1, K3, K6, P2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from parity.diagnose.evidence import Evidence, Explanation, as_float64
from parity.diagnose.roles import distinct


def kept_frames(ev: Evidence) -> Iterable[Explanation]:
    """K1, K3, K6 on whole numbers that say which frames or positions a cache holds: another window, stride or order."""
    if ev.kind not in ("kv", "mask") or not _whole(ev.reference) or not _whole(ev.port):
        return
    if min(ev.reference.numel(), ev.port.numel()) < 1 or max(ev.reference.numel(), ev.port.numel()) > 1_000_000:
        return
    if ev.reference.numel() == ev.port.numel() == 1:  # a counter, not a list
        return
    r, p = ev.r.flatten().long(), ev.p.flatten().long()
    if r.shape == p.shape and torch.equal(r, p):
        return
    ours, theirs = distinct(r).tolist(), distinct(p).tolist()
    if set(ours) <= {0, 1} and len(r) > len(ours) and ev.kind == "mask":
        return  # a mask of zeros and ones, not a list of frames
    lost, extra = [v for v in ours if v not in theirs], [v for v in theirs if v not in ours]
    values = {"missing": lost[:32], "extra": extra[:32]}
    if not lost and not extra:
        if len(r) == len(p) and torch.equal(r.sort().values, p.sort().values):
            text = "the cache holds the same entries in other slots"
            roll = next((k for k in range(1, len(r)) if torch.equal(r.roll(k), p)), None)
            if roll is not None:
                by = roll if roll <= len(r) // 2 else roll - len(r)
                text += f": rolled by {by:+d}"
                values["roll"] = [by]
            yield Explanation(text, 0.0, 0.88, values, "K1")
        else:
            yield Explanation("the cache holds the same entries another number of times", 0.0, 0.8, values, "K3")
        return
    written = _right_at_first_step(ev) if extra and not lost else ""
    if written:
        text = f"entries {_list(extra)} are there too, but not at step 0: the cache is written {written}"
        yield Explanation(text, 0.0, 0.97, values, "K3")
        return
    yield from _named_frames(ours, theirs, lost, extra, values)


def _right_at_first_step(ev: Evidence) -> str:
    """Say between which steps an entry came in, when the same pass still agreed at its first step."""
    step = ev.coords.get("step", 0)
    if step < 1:
        return ""
    first = {**ev.coords, "step": 0}
    r, p = ev.ref_at(ev.site, first), ev.port_at(ev.site, first)
    agreed = r is not None and p is not None and r.shape == p.shape and torch.equal(r, p)
    return f"while denoising (between steps 0 and {step})" if agreed else ""


def _named_frames(
    ours: list[int], theirs: list[int], lost: list[int], extra: list[int], values: dict[str, list[int]]
) -> Iterator[Explanation]:
    stride_r, stride_p = _stride(ours), _stride(theirs)
    if any(v < 0 for v in extra) and not lost:
        yield Explanation("unwritten slots (negative positions) count as visible", 0.0, 0.96, values, "A2")
    elif stride_r and stride_p and stride_r != stride_p and lost and extra:
        text = f"every {_nth(stride_p)} entry is kept instead of every {_nth(stride_r)}: the dilation is {stride_p}, not {stride_r}"
        yield Explanation(text, 0.0, 0.96, values | {"stride": [stride_r, stride_p]}, "K6")
    elif not extra and len(theirs) == 1 and max(lost) < min(theirs):
        text = f"only entry {theirs[0]} is there: the history {_list(lost)} was never cached"
        yield Explanation(text, 0.0, 0.96, values, "K3")
    elif not extra and theirs and max(lost) < min(theirs):
        text = f"the oldest entries {_list(lost)} are missing: the window holds {len(theirs)} instead of {len(ours)}"
        yield Explanation(text, 0.0, 0.96, values, "K6")
    elif not extra and theirs and min(lost) > max(theirs):
        text = f"the newest entries {_list(lost)} are missing: they were not written"
        yield Explanation(text, 0.0, 0.96, values, "K3")
    elif not lost and max(extra) < min(ours):
        text = f"older entries {_list(extra)} are still there: the window holds {len(theirs)} instead of {len(ours)}"
        yield Explanation(text, 0.0, 0.96, values, "K6")
    elif not lost and min(extra) > max(ours):
        text = f"later entries {_list(extra)} are there already: written one time too many or too early"
        yield Explanation(text, 0.0, 0.88, values, "K3")
    elif not lost:
        text = f"entries {_list(extra)} between the reference's {_list(ours)} are visible too: the dilation is not respected"
        yield Explanation(text, 0.0, 0.96, values, "K6")
    elif len(ours) == len(theirs) and len({b - a for a, b in zip(ours, theirs, strict=True)}) == 1:
        text = f"all entries are numbered {theirs[0] - ours[0]:+d} against the reference"
        yield Explanation(text, 0.0, 0.9, values | {"offset": [theirs[0] - ours[0]]}, "P2")
    elif not extra:
        text = f"entries {_list(lost)} are missing from the middle: overwritten or never written"
        yield Explanation(text, 0.0, 0.85, values, "K1")
    else:
        text = f"the cache holds {_list(theirs)} instead of {_list(ours)}"
        yield Explanation(text, 0.0, 0.7, values, "K1")


def _stride(values: list[int]) -> int | None:
    """Return the common step of the entries but for the newest (the own frame may be off the grid), or None."""
    if len(values) < 3:
        return None
    steps = {b - a for a, b in pairwise(values)}
    older = {b - a for a, b in pairwise(values[:-1])}
    if len(steps) == 1:
        return steps.pop()
    return older.pop() if len(older) == 1 and len(values) > 3 else None


def _nth(step: int) -> str:
    return {1: "single", 2: "second", 3: "third", 4: "fourth"}.get(step, f"{step}th")


def _list(values: list[int]) -> str:
    return ", ".join(map(str, values[:8])) + (", …" if len(values) > 8 else "")


def _whole(x: Tensor) -> bool:
    return not x.is_floating_point() and not x.is_complex() and x.dtype != torch.bool


def index(ev: Evidence) -> Iterable[Explanation]:
    """P2 on a timestamp or counter: it does not advance, starts at one, or is advanced too early."""
    if (
        ev.kind not in ("schedule", "input", "rope", "kv")
        or not ev.same_shape
        or not ev.coords
        or ev.reference.numel() > 4096
    ):
        return
    if not (_whole(ev.reference) and _whole(ev.port)) or ev.reference.numel() == 0:
        return
    step = distinct(ev.p - ev.r)
    if len(step) != 1 or int(step[0]) == 0:
        return
    by = int(step[0])
    axis = next((name for name in ("frame", "segment", "chunk", "step") if name in ev.coords), next(iter(ev.coords)))
    at = ev.coords[axis]
    before = ev.ref_at(ev.site, {**ev.coords, axis: at - 1}) if at > 0 else None
    values = {"offset": by, "axis": axis, "at": at}
    if before is not None and before.shape == ev.reference.shape and bool((as_float64(before) == ev.p).all()):
        text = f"the index does not advance: {axis} {at} still has that of {axis} {at - 1}"
        yield Explanation(text, 0.0, 0.92, values, "P2")
    elif by > 0 and at == 0 and not _agreed_before(ev):
        yield Explanation(f"the index starts at {by} instead of 0 (offset {by:+d})", 0.0, 0.92, values, "P2")
    elif by > 0 and _agreed_before(ev):
        text = f"the index is advanced by {by} too early: earlier calls of this {axis} still agree"
        yield Explanation(text, 0.0, 0.92, values, "P2")
    elif ev.reference.numel() == 1:
        yield Explanation(f"the index is offset by {by:+d}", 0.0, 0.85, values, "P2")


def _agreed_before(ev: Evidence) -> bool:
    """Say whether an earlier call of the same frame has the same value on both sides."""
    for axis in ("step", "call"):
        if ev.coords.get(axis, 0) > 0:
            other = {**ev.coords, axis: ev.coords[axis] - 1}
            a, b = ev.ref_at(ev.site, other), ev.port_at(ev.site, other)
            if a is not None and b is not None and torch.equal(a, b):
                return True
    return False
