"""Video: the first frame, chunks, borders, tiles, anchors and seams, read off where the error lies.

Classes: V1 V2 V3 V4 V8 V9 of the bug list. These are statements about place: they explain less than an identity, so
their confidence is lower.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations

import torch
from torch import Tensor

from .axes import axis_name, axis_of, kind_of
from .detours import HYPOTHESES as DETOURS
from .evidence import Evidence, Explanation, Hypothesis, as_float64
from .fits import comparable, grouped_affine, grouped_scale, noise_level, number, sure

FILM = {"frame", "latent", "activation", "output", "input"}


def energies(ev: Evidence, axis: int) -> Tensor:
    """Σ d² per index of one axis."""
    return ev.d.square().sum(dim=tuple(i for i in range(ev.d.ndim) if i != axis))


def _film(ev: Evidence, least: int = 2) -> int | None:
    """The frame axis of a picture-like record (frames, rows and columns), or None."""
    if not comparable(ev, 32) or ev.kind not in FILM or ev.r.ndim not in {3, 4, 5}:
        return None
    if ev.r.ndim != 5 and ev.kind == "activation":
        return None
    axis = axis_of("f", ev.r.shape, kind_of(ev))
    return axis if axis is not None and ev.r.shape[axis] >= least else None


def _wrong(ev: Evidence, axis: int) -> Tensor:
    """Which indices of an axis differ by more than noise."""
    own = ev.r.square().sum(dim=tuple(i for i in range(ev.r.ndim) if i != axis))
    return energies(ev, axis) > (1e-6 + 4 * noise_level(ev)) ** 2 * own.clamp_min(float(own.mean()) * 1e-6 + 1e-300)


def first_frames(ev: Evidence) -> Iterator[Explanation]:
    """Only frame 0 differs, or the error starts there and dies away within a few frames (V1; V3 for causal padding)."""
    axis = _film(ev, 3)
    if axis is None:
        return
    wrong = torch.nonzero(_wrong(ev, axis)).reshape(-1).tolist()
    n = ev.r.shape[axis]
    share = energies(ev, axis) / energies(ev, axis).sum()
    if wrong == [0]:
        yield Explanation(f"only the first of {n} frames differs", 0.0, 0.7, {"frames": wrong})
    elif wrong and wrong == list(range(len(wrong))) and len(wrong) <= max(1, (2 * n) // 3) and float(share[0]) > 0.4:
        text = (
            f"only the first {len(wrong)} of {n} frames differ, the first most "
            f"({float(share[0]):.0%} of the error): the causal start"
        )
        yield Explanation(text, 0.0, 0.6, {"frames": wrong})


def phase_shift(ev: Evidence) -> Iterator[Explanation]:
    """Lengths 4T against 1 + 4(T − 1): P[i + 3] ≈ R[i], with an error that dies away (V1)."""
    r, p = as_float64(ev.reference), as_float64(ev.port)
    if ev.same_shape or r.ndim != p.ndim or r.ndim < 3 or r.numel() == 0:
        return
    axes = [i for i in range(r.ndim) if r.shape[i] != p.shape[i]]
    if len(axes) != 1:
        return
    axis, n, m = axes[0], r.shape[axes[0]], p.shape[axes[0]]
    if not (m == n + 3 and n % 4 == 1) and not (n == m + 3 and m % 4 == 1):
        return
    long, short = (p, r) if m > n else (r, p)
    late = _frame_errors(long.narrow(axis, 3, min(n, m)), short, axis)
    early = _frame_errors(long.narrow(axis, 0, min(n, m)), short, axis)
    side = "P" if m > n else "R"
    text = (
        f"{side} has 4·T frames and the other 1 + 4·(T − 1) ({m} and {n}): the first latent "
        "frame is upsampled in time too"
    )
    fits = float(late[-1]) < 0.5 * float(early[-1]) or float(late[-1]) < 0.05
    yield Explanation(text, float(late.mean()), 0.93 if fits else 0.8, {"reference": n, "port": m})


def _frame_errors(a: Tensor, b: Tensor, axis: int) -> Tensor:
    rest = tuple(i for i in range(a.ndim) if i != axis)
    size: Tensor = torch.linalg.vector_norm(b, dim=rest).clamp_min(1e-12)
    errors: Tensor = torch.linalg.vector_norm(a - b, dim=rest) / size
    return errors


def chunk_period(ev: Evidence) -> Iterator[Explanation]:
    """The error per frame repeats with a period: only some phases of every chunk are wrong (V2)."""
    axis = _film(ev, 6)
    if axis is None:
        return
    wrong = _wrong(ev, axis)
    n = len(wrong)
    share = energies(ev, axis)
    for period in range(2, n // 2 + 1):
        for start in (1, 0):  # causal chunks count from frame 1
            phases = torch.arange(n - start) % period
            body, hit = share[start:], wrong[start:]
            per_phase = torch.stack([body[phases == k].mean() for k in range(period)])
            top = int(per_phase.argmax())
            at = hit[phases == top]
            others = float(body[phases != top].sum() / body.sum()) if float(body.sum()) > 0 else 1.0
            if (
                len(at) >= 2
                and bool(at[1:].all())
                and others < 0.1
                and int(at.sum()) >= 2
                and (not bool(at.all()) or period <= n // 2)
            ):
                first = start + top
                text = (
                    f"the error repeats every {period} frames (frames {first}, {first + period}, …): the "
                    "joints of chunks"
                )
                yield Explanation(text, others, 0.78, {"period": period, "phase": first})
                return


def border(ev: Evidence) -> Iterator[Explanation]:
    """All of the error lies in a border of few rows or columns (V3: padding mode or side)."""
    if not comparable(ev, 64) or ev.r.ndim < 3 or ev.kind == "weight":
        return
    h, w = axis_of("h", ev.r.shape, kind_of(ev)), axis_of("w", ev.r.shape, kind_of(ev))
    if h is None or w is None or min(ev.r.shape[h], ev.r.shape[w]) < 6:
        return
    other = tuple(i for i in range(ev.r.ndim) if i not in (h, w))
    energy = ev.d.square().sum(dim=other) if other else ev.d.square()
    own = ev.r.square().sum(dim=other) if other else ev.r.square()
    wrong = energy > (1e-6 + 4 * noise_level(ev)) ** 2 * float(own.mean())
    total, ys, xs = wrong.shape[0] * wrong.shape[1], wrong.shape[0], wrong.shape[1]
    hit = torch.nonzero(wrong)
    if len(hit) == 0 or len(hit) > 0.6 * total:
        return
    distance = {"top": hit[:, 0], "bottom": ys - 1 - hit[:, 0], "left": hit[:, 1], "right": xs - 1 - hit[:, 1]}
    width = int(torch.stack(list(distance.values())).amin(dim=0).max()) + 1
    if width > min(ys, xs) // 4:
        return
    sides = [
        name
        for name, far in distance.items()
        if int((far < width).sum()) > 0.7 * width * (xs if name in {"top", "bottom"} else ys) * 0.9
    ]
    if not sides:
        return
    only = torch.stack([distance[s] for s in sides]).amin(dim=0) < width
    if bool(only.all()):
        text = f"all of the error lies within {width} of the {', '.join(sides)} border: padding mode or side"
        yield Explanation(text, 0.0, 0.85, {"width": width, "sides": sides})


def tile_grid(ev: Evidence) -> Iterator[Explanation]:
    """The error lies in bands at multiples of a pitch along rows or columns (V4: tile seams)."""
    if not comparable(ev, 256) or ev.r.ndim < 3 or ev.kind not in FILM or next(border(ev), None) is not None:
        return
    for role in ("w", "h"):
        axis = axis_of(role, ev.r.shape, kind_of(ev))
        if axis is None or ev.r.shape[axis] < 16:
            continue
        found = _bands(energies(ev, axis))
        if found is not None:
            pitch, inside, width = found
            text = (
                f"{inside:.0%} of the error lies in bands of {width} at multiples of {pitch} along "
                f"{axis_name(axis, ev.r.shape, kind_of(ev))}: tile seams"
            )
            yield Explanation(text, max(0.0, 1 - inside) ** 0.5, 0.75, {"axis": axis, "pitch": pitch, "width": width})
            return


def _bands(energy: Tensor) -> tuple[int, float, int] | None:
    """Pitch p and band width with > 95 % of the energy in bands after (or around) multiples of p that cover at most 60
    %.
    """
    n, total = len(energy), float(energy.sum())
    hot = energy > 0.02 * float(energy.max())
    if total == 0 or float(hot.double().mean()) > 0.6:
        return None
    edges = [i for i in range(1, n) if bool(hot[i]) and not bool(hot[i - 1])]
    starts = edges + ([0] if bool(hot[0]) else [])
    if len(edges) < 2 or len(edges) > n // 6:
        return None
    gaps = torch.tensor(sorted(edges)).diff()
    pitch = int(gaps[0])
    if pitch < 6 or not bool((gaps == pitch).all()) or len(starts) > len(edges) + 1:
        return None
    width = int(hot.sum()) // max(1, len(starts))
    inside = float(energy[hot].sum()) / total
    return (pitch, inside, width) if inside > 0.9 and width < 0.6 * pitch else None


def blend_ramp(ev: Evidence) -> Iterator[Explanation]:
    """R and P mix two captured tiles column by column (or row by row) with other weights (V4: the blending ramp)."""
    if not comparable(ev, 32) or ev.r.ndim < 3 or ev.kind not in FILM:
        return
    tiles = [
        (n, as_float64(x))
        for n, x in ev.inputs.items()
        if tuple(x.shape) == tuple(ev.r.shape) and x.is_floating_point()
    ]
    for (first, a), (second, b) in permutations(tiles[:6], 2):
        for role in ("w", "h", "f"):
            axis = axis_of(role, ev.r.shape, kind_of(ev))
            if axis is None or not 2 <= ev.r.shape[axis] <= 4096:
                continue
            ramps = _ramps(ev, a, b, axis)
            if ramps is None:
                continue
            ours, theirs = ([round(v, 3) for v in ramp[:6]] for ramp in ramps)
            text = (
                f"{first} and {second} are blended along {axis_name(axis, ev.r.shape, kind_of(ev))} with "
                f"weights {theirs} instead of {ours}"
            )
            yield Explanation(text, 0.0, 0.96, {"axis": axis, "reference": ours, "port": theirs})
            return


def _ramps(ev: Evidence, a: Tensor, b: Tensor, axis: int) -> tuple[list[float], list[float]] | None:
    """Weights w of x = (1 − w)·a[i + δ] + w·b[i] on the differing indices, for R and P, with one δ for the overlap of
    the tiles."""
    wrong = torch.nonzero(_wrong(ev, axis)).reshape(-1)
    size = ev.r.shape[axis]
    if not 0 < len(wrong) < size:
        return None
    r, p, near_b = (x.index_select(axis, wrong) for x in (ev.r, ev.p, b))
    for shift in range(size - int(wrong.max())):
        near_a = a.index_select(axis, wrong + shift)
        found = []
        for target in (r, p):
            w = grouped_scale(target - near_a, near_b - near_a, [axis])
            rest = torch.linalg.vector_norm(target - near_a - w * (near_b - near_a))
            if float(rest) > 1e-5 * float(torch.linalg.vector_norm(target)) or not bool(
                ((w > -1e-4) & (w < 1.0001)).all()
            ):
                break
            found.append(w.reshape(-1).tolist())
        if len(found) == 2:
            return found[0], found[1]
    return None


def last_frames(ev: Evidence) -> Iterator[Explanation]:
    """Only the last frames differ (V8: end frame or anchor), and whether one of them repeats an earlier frame."""
    axis = _film(ev, 3)
    if axis is None:
        return
    wrong = torch.nonzero(_wrong(ev, axis)).reshape(-1).tolist()
    n = ev.r.shape[axis]
    if not wrong or wrong[-1] != n - 1 or wrong != list(range(wrong[0], n)) or len(wrong) > max(1, n // 3):
        return
    first = wrong[0]
    frames = ev.p.unbind(axis)
    stale = [f for f in wrong if f > 0 and torch.equal(frames[f], frames[f - 1])]
    text = f"only the last {len(wrong)} of {n} frames differ" + (
        f", and P's frame {stale[0]} repeats frame {stale[0] - 1}: frozen" if stale else ""
    )
    yield Explanation(text, 0.0, 0.8 if stale else 0.62, {"frames": wrong, "frozen": stale, "first": first})


def seam(ev: Evidence) -> Iterator[Explanation]:
    """Equal up to frame k, then every frame is an affine image of R's with about the same (a, b): a colour step at a
    joint (V9).
    """
    axis = _film(ev, 4)
    if axis is None:
        return
    wrong = torch.nonzero(_wrong(ev, axis)).reshape(-1).tolist()
    n = ev.r.shape[axis]
    if not wrong or wrong[0] == 0 or wrong != list(range(wrong[0], n)) or len(wrong) < 2:
        return
    keep = [axis] + ([c] if (c := axis_of("c", ev.r.shape, kind_of(ev))) is not None else [])
    a, b = grouped_affine(ev.p, ev.r, keep)
    residual = ev.residual(a * ev.r + b)
    if residual < 0.15:
        text = (
            f"frames before {wrong[0]} are equal; from there on colours are changed by one affine "
            f"map (factor {number(float(a.select(axis, wrong[0]).mean()))}): a step at the joint"
        )
        yield Explanation(text, residual, sure(ev, min(residual, 0.02), 0.75), {"frame": wrong[0]})


def frozen(ev: Evidence) -> Iterator[Explanation]:
    """All frames of P are equal and R's are not (S3 for noise, V8 for pictures)."""
    axis = _film(ev, 3)
    if axis is None:
        return
    p, r = ev.p.movedim(axis, 0), ev.r.movedim(axis, 0)
    scale = float(torch.linalg.vector_norm(p[0]))
    still = all(float(torch.linalg.vector_norm(f - p[0])) <= 1e-6 * scale for f in p[1:])
    moving = float(torch.linalg.vector_norm(r[1] - r[0])) > 1e-3 * float(torch.linalg.vector_norm(r[0]))
    if still and moving and scale > 0:
        text = f"all {len(p)} frames of P are the same picture, R's are not"
        yield Explanation(text, 0.0, 0.8, {"frames": len(p)})


HYPOTHESES: tuple[Hypothesis, ...] = (
    Hypothesis("first_frames", "V1", first_frames, 0.3),
    Hypothesis("phase_shift", "V1", phase_shift, 0.8),
    Hypothesis("chunk_period", "V2", chunk_period, 0.3),
    Hypothesis("border", "V3", border, 0.4),
    Hypothesis("blend_ramp", "V4", blend_ramp, 0.8),
    Hypothesis("tile_grid", "V4", tile_grid, 0.3),
    Hypothesis("last_frames", "V8", last_frames, 0.2),
    Hypothesis("seam", "V9", seam, 0.3),
    Hypothesis("frozen_frames", "V8", frozen, 0.6),
    *DETOURS,
)
