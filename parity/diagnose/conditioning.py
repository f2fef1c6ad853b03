"""Conditioning: guidance, which hidden state, padded text, masks and concatenation, resizing, sampled posteriors,
missing terms.

Classes: C1 C2 C3 C5 C6 C9 N5 N6 of the bug list.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import permutations

import torch
from torch import Tensor
from torch.nn import functional

from .axes import axis_of, kind_of, roles
from .candidates import same_shape
from .evidence import Evidence, Explanation, Hypothesis, as_float64
from .fits import (
    accept,
    affine_fit,
    allowance,
    comparable,
    grouped_affine,
    grouped_scale,
    hot_index,
    near,
    noise_level,
    number,
    sample_index,
    scalar_fit,
    sure,
)
from .terms import HYPOTHESES as TERMS

NEAR_SITES = 48


def guidance(ev: Evidence) -> Iterator[Explanation]:
    """R == u + s·(c − u) with captured c, u; P is another combination: dropped, swapped, another scale, part of the
    channels (C1).
    """
    if not comparable(ev, 8) or len(same_shape(ev)) < 2:
        return
    found = _branches(ev)
    if found is None:
        return
    cond, uncond, s, c, u = found
    direction = c - u
    scale, _ = scalar_fit(ev.p - u, direction) if bool((ev.p != u).any()) else (0.0, 0.0)
    residual = accept(ev, u + scale * direction)
    parameters = {"cond": cond, "uncond": uncond, "scale": s, "port_scale": scale}
    if residual is not None:
        yield Explanation(_guidance_text(scale, s, cond, uncond), residual, sure(ev, residual, 0.97), parameters)
        return
    for axis, size in enumerate(ev.r.shape):
        if size < 2 or ev.r.numel() // size < 4:
            continue
        per = grouped_scale(ev.p - u, direction, [axis])
        residual = accept(ev, u + per * direction)
        if residual is None:
            continue
        kept = [i for i, v in enumerate(per.reshape(-1).tolist()) if near(v, s, 0.01)]
        other = sorted({round(v, 3) for v in per.reshape(-1).tolist() if not near(v, s, 0.01)})
        if kept and len(other) <= 3:
            text = (
                f"guidance {number(s)} is applied to entries {kept[:8]} of axis {axis} only, the others "
                f"have scale {other}"
            )
            yield Explanation(
                text, residual, sure(ev, residual, 0.95), {**parameters, "axis": axis, "guided": kept[:64]}
            )
            return


def _branches(ev: Evidence) -> tuple[str, str, float, Tensor, Tensor] | None:
    """The pair (c, u) and scale s > 1 with R == u + s·(c − u)."""
    index = hot_index(ev)
    r = ev.r.reshape(-1)[index]
    names = list(same_shape(ev).items())[:12]
    for (cond, c), (uncond, u) in permutations(names, 2):
        cs, us = c.reshape(-1)[index], u.reshape(-1)[index]
        s, rough = scalar_fit(r - us, cs - us)
        if rough > 0.02 or s <= 1.001:
            continue
        s, residual = scalar_fit(ev.r - u, c - u)
        if residual < 1e-4 + 5 * noise_level(ev):
            return cond, uncond, s, c, u
    return None


def _guidance_text(scale: float, s: float, cond: str, uncond: str) -> str:
    if abs(scale) < 1e-3:
        return f"P is the unconditional branch {uncond} alone: guidance {number(s)} is dropped"
    if near(scale, 1, 1e-3):
        return f"P is the conditional branch {cond} alone: guidance {number(s)} is dropped"
    if near(scale, 1 - s, 1e-3):
        return f"the branches are swapped: P = c + {number(s)}·(u − c)"
    if near(scale, s + 1, 1e-3):
        return f"P = c + {number(s)}·(c − u) where R = u + {number(s)}·(c − u): the other guidance convention"
    return f"the guidance scale is {number(scale)} instead of {number(s)}"


def other_record(ev: Evidence) -> Iterator[Explanation]:
    """P == another record of the reference at the same coordinates: wrong hidden state, wrong tensor (C2)."""
    if not comparable(ev, 8) or not ev.sites:
        return
    sites = list(ev.sites)
    here = sites.index(ev.site) if ev.site in sites else len(sites)
    order = sorted((i for i in range(len(sites)) if i != here), key=lambda i: abs(i - here))[:NEAR_SITES]
    for i in order:
        value = ev.ref_at(sites[i], ev.coords)
        if value is None or tuple(value.shape) != tuple(ev.r.shape) or not value.is_floating_point():
            continue
        other = as_float64(value)
        if torch.equal(other, ev.r):
            continue
        residual = accept(ev, other)
        if residual is not None and sites[i] not in ev.inputs:
            text = f"P equals the reference's {sites[i]} instead of {ev.site}"
            class_id, why = _sibling(ev, sites[i])
            best = 0.85 if class_id == "D2" else 0.95
            yield Explanation(text + why, residual, sure(ev, residual, best), {"equals": sites[i]}, class_id)
            return


def _sibling(ev: Evidence, site: str) -> tuple[str, str]:
    """C2, unless the equal record is another part of the same list of arguments (D3) or comes from a twin with other
    weights (D2)."""
    same_list = ".in." in site and re.sub(r"\d+$", "#", site) == re.sub(r"\d+$", "#", ev.site)
    if same_list:
        return "D3", ": the parts are in another order"
    shape, parent = ev.reference.shape, ev.site.rpartition(".")[0]
    if len(shape) == 3 and shape[1] == 1 and parent and site.rpartition(".")[0] == parent:
        return "W5", ": the vectors of the modulation are exchanged"
    if ev.parameters and any(
        r is not None and p is not None and r.shape == p.shape and not torch.equal(r, p)
        for r, p in ev.parameters.values()
    ):
        return "D2", ": this module has the parameters of that one"
    return "C2", ""


def final_norm(ev: Evidence) -> Iterator[Explanation]:
    """P == norm(R)·w + b or R == norm(P)·w + b per channel: the final norm is missing or applied to the wrong state
    (C2).
    """
    if not comparable(ev, 64) or ev.r.ndim < 2 or ev.r.shape[-1] < 8 or ev.r.numel() // ev.r.shape[-1] < 8:
        return
    last = [1]
    if not bool(ev.p.any()) or not bool(ev.r.any()):
        return
    rows = ev.r.reshape(-1, ev.r.shape[-1]), ev.p.reshape(-1, ev.r.shape[-1])
    r, p = (x[sample_index(x.shape[0], 512)] for x in rows)
    if not any(_norm_fits(a, b, f, last) for f in (_standard, _rms) for a, b in ((r, p), (p, r))):
        return
    for label, normalise in (("layer", _standard), ("rms", _rms)):
        for side, raw, normed in (("port", *rows), ("reference", *rows[::-1])):
            x = normalise(raw)
            if float(torch.linalg.vector_norm(x - raw)) < 0.05 * float(torch.linalg.vector_norm(raw)):
                continue
            a, b = grouped_affine(normed, x, last)
            size = torch.minimum(torch.linalg.vector_norm(ev.d), torch.linalg.vector_norm(normed))
            residual = float(torch.linalg.vector_norm(normed - a * x - b) / size)
            plain_a, plain_b = grouped_affine(normed, raw, last)
            plain = float(torch.linalg.vector_norm(normed - plain_a * raw - plain_b) / size)
            if residual <= min(allowance(ev), 0.2 * plain):
                said = {
                    "port": f"P is a {label} norm of R: the port normalises once more",
                    "reference": f"R is a {label} norm of P: the port takes the state before the norm",
                }[side]
                yield Explanation(said, residual, sure(ev, residual, 0.88), {"norm": label, "side": side})
                return


def _norm_fits(raw: Tensor, normed: Tensor, normalise: Callable[[Tensor], Tensor], last: list[int]) -> bool:
    """A cheap look at some rows: is `normed` an affine map per channel of the normalised `raw`?"""
    a, b = grouped_affine(normed, normalise(raw), last)
    whole = float(torch.linalg.vector_norm(normed - raw))
    return float(torch.linalg.vector_norm(normed - a * normalise(raw) - b)) <= 0.3 * whole


def _standard(x: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], eps=1e-6)


def _rms(x: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


def padded_rows(ev: Evidence) -> Iterator[Explanation]:
    """Only rows past the true length differ: zero on one side and kept on the other; or rows padded at the other end
    (C3).
    """
    if not comparable(ev, 8) or ev.r.ndim not in {2, 3} or ev.kind == "weight":
        return
    r, p = (x.reshape(-1, *x.shape[-2:]) for x in (ev.r, ev.p))
    r_zero, p_zero = (r == 0).all(-1), (p == 0).all(-1)
    wrong = torch.linalg.vector_norm(p - r, dim=-1) > 10 * noise_level(ev) * (
        torch.linalg.vector_norm(r, dim=-1) + 1e-12
    )
    if not bool(wrong.any()):
        return
    starts = [int(torch.nonzero(w)[0]) if bool(w.any()) else w.numel() for w in wrong]
    tail = all(bool(w[s:].all()) for w, s in zip(wrong, starts, strict=True)) and max(starts) > 0
    if tail and bool(r_zero[wrong].all()) and not bool(p_zero[wrong].any()):
        text = f"rows from {starts} on are zero in R and kept in P: the padded rows are not zeroed"
        yield Explanation(text, 0.0, 0.98, {"lengths": starts, "side": "port keeps"})
    elif tail and bool(p_zero[wrong].all()):
        text = f"rows from {starts} on are zero in P and not in R: the text is cut or its padding zeroed"
        yield Explanation(text, 0.0, 0.93, {"lengths": starts, "side": "port zeroes"})
    else:
        yield from _other_side(ev, r, p)


def _other_side(ev: Evidence, r: Tensor, p: Tensor) -> Iterator[Explanation]:
    """Rows shifted by an own amount per sequence: padding on the left instead of the right."""
    shifts = []
    explained = torch.empty_like(r)
    for i in range(r.shape[0]):
        first = torch.nonzero(
            torch.linalg.vector_norm(r - p[i, -1], dim=-1)[i] <= 1e-6 * (torch.linalg.vector_norm(p[i, -1]) + 1e-12)
        )
        if len(first) == 0:
            return
        shift = r.shape[1] - 1 - int(first[0])
        shifts.append(shift)
        explained[i] = r[i].roll(shift, 0)
    if not any(shifts) or len(set(shifts)) < 2:
        return
    residual = accept(ev, explained.reshape(ev.r.shape))
    if residual is not None:
        text = f"each sequence is shifted by its padding ({shifts} rows): padded on the other side"
        yield Explanation(text, residual, sure(ev, residual, 0.93), {"shifts": shifts})


def token_ids(ev: Evidence) -> Iterator[Explanation]:
    """Whole numbers per sequence differ: template, special tokens, padding side or length of the prompt (C3)."""
    if ev.reference.is_floating_point() or ev.reference.dtype == torch.bool or ev.kind not in {"input", "activation"}:
        return
    if (
        ev.reference.ndim != 2
        or not ev.same_shape
        or ev.reference.numel() < 4
        or ev.error == 0
        or len(torch.unique(ev.r)) < 4
    ):
        return
    steps = ev.r.diff(dim=1)
    if bool((steps == steps[:, :1]).all()):
        return  # positions, not text
    rows = torch.nonzero((ev.p != ev.r).any(dim=1)).reshape(-1).tolist()
    said = [_edit(ev.r[i], ev.p[i]) for i in rows]
    how = said[0] if said and all(s == said[0] for s in said) else "the tokens differ"
    text = f"the token ids of {len(rows)} of {len(ev.r)} sequences differ: {how}"
    yield Explanation(text, 0.0, 0.94 if how != "the tokens differ" else 0.85, {"rows": rows[:16], "how": how})


def _edit(r: Tensor, p: Tensor) -> str:
    """How one sequence of ids became the other: moved as a whole, or a piece left out or put in at one place."""
    n = len(r)
    for shift in range(1, n):
        if torch.equal(r.roll(shift), p):
            return "padded on the other side"
    start = int(torch.nonzero(r != p)[0])
    for k in range(1, n - start):
        if torch.equal(r[start + k :], p[start : n - k]):
            return f"{k} tokens are left out at {start}"
        if torch.equal(p[start + k :], r[start : n - k]):
            return f"{k} tokens are put in at {start}"
    return "the tokens differ"


def inverted_mask(ev: Evidence) -> Iterator[Explanation]:
    """Two-valued R with P == (low + high) − R: the mask's meaning is reversed (C5; A2 for a mask record)."""
    if not comparable(ev, 4):
        return
    if len(torch.unique(ev.r.reshape(-1)[sample_index(ev.r.numel(), 512)])) > 2:
        return
    values = torch.unique(ev.r.reshape(-1))
    if len(values) != 2 or not torch.equal(torch.unique(ev.p.reshape(-1)), values):
        return
    residual = accept(ev, values.sum() - ev.r)
    if residual is not None:
        text = f"P is the mask inverted: {number(float(values[0]))} and {number(float(values[1]))} exchanged"
        yield Explanation(text, residual, sure(ev, residual, 0.97), {}, "A2" if ev.kind == "mask" else "C5")


def slice_filled(ev: Evidence) -> Iterator[Explanation]:
    """Differences only in some frames or channels, where P or R is one constant: another fill, or another mask entry
    (C5).
    """
    if not comparable(ev, 16) or ev.kind not in {"input", "latent", "frame"} or ev.r.ndim < 3:
        return
    wrong = (ev.d.abs() > 10 * noise_level(ev) * float(ev.r.abs().mean())) & (ev.d != 0)
    share = float(wrong.double().mean())
    if not 0 < share < 0.8:
        return
    where = []
    for axis, role in enumerate(roles(ev.r.shape, kind_of(ev))):
        if role not in {"f", "c", "n"}:
            continue
        hit = wrong.any(dim=tuple(i for i in range(wrong.ndim) if i != axis))
        indices = torch.nonzero(hit).reshape(-1).tolist()
        if 0 < len(indices) < wrong.shape[axis]:
            where.append(f"{ {'f': 'frames', 'c': 'channels', 'n': 'tokens'}[role] } {_run(indices)}")
    if not where:
        return
    r_values, p_values = torch.unique(ev.r[wrong]), torch.unique(ev.p[wrong])
    said = []
    if len(p_values) == 1:
        said.append(f"P is {number(float(p_values[0]))}")
    if len(r_values) == 1:
        said.append(f"R is {number(float(r_values[0]))}")
    if said:
        text = (
            f"P differs only in {' of '.join(where)} ({share:.0%}), where {' and '.join(said)}: "
            "another fill or mask entry"
        )
        best = 0.85 if len(said) == 2 else 0.8 if len(p_values) == 1 else 0.7
        yield Explanation(text, 0.0, best, {"where": where, "share": share})


def _run(indices: list[int]) -> str:
    if len(indices) > 1 and indices == list(range(indices[0], indices[-1] + 1)):
        return f"{indices[0]}..{indices[-1]}"
    return str(indices[:8] if len(indices) > 1 else indices[0])


MODES = ("bilinear", "bicubic", "nearest", "nearest-exact", "area")


def resampled(ev: Evidence) -> Iterator[Explanation]:
    """R and P are two resizings of one captured picture: filter, antialias, corner alignment (C6), by recomputation."""
    if not comparable(ev, 64) or ev.r.ndim < 3 or ev.kind == "weight":
        return
    size = (int(ev.r.shape[-2]), int(ev.r.shape[-1]))
    for name, x in ev.inputs.items():
        if x.ndim < 3 or tuple(x.shape[-2:]) == size or x.numel() > 8_000_000 or not x.is_floating_point():
            continue
        pictures = as_float64(x).reshape(-1, 1, *x.shape[-2:])
        if pictures.shape[0] != ev.r.numel() // (size[0] * size[1]):
            continue
        mine, theirs = _which(pictures, ev.r, size), _which(pictures, ev.p, size)
        if mine and theirs and mine != theirs:
            yield Explanation(
                f"P resizes {name} with {theirs}, R with {mine}", 0.0, 0.95, {"reference": mine, "port": theirs}
            )
            return
    yield from _high_pass(ev)


def _resizings(x: Tensor, size: tuple[int, int]) -> Iterator[tuple[str, Tensor]]:
    for mode in MODES:
        yield mode, functional.interpolate(x, size, mode=mode)
        if mode in {"bilinear", "bicubic"}:
            yield f"{mode}, antialias", functional.interpolate(x, size, mode=mode, antialias=True)
            yield f"{mode}, corners aligned", functional.interpolate(x, size, mode=mode, align_corners=True)


def _which(x: Tensor, wanted: Tensor, size: tuple[int, int]) -> str:
    """The resizing whose result is `wanted` up to one affine map, or ""."""
    wanted = wanted.reshape(-1, 1, *size)
    spread = float(torch.linalg.vector_norm(wanted - wanted.mean()))
    for label, y in _resizings(x, size):
        a, b = affine_fit(wanted, y)
        if spread > 0 and float(torch.linalg.vector_norm(wanted - a * y - b)) < 2e-4 * spread:
            return label
    return ""


def _high_pass(ev: Evidence) -> Iterator[Explanation]:
    """Without the source: d has no low frequencies and lives where R has edges; P is a sharper or smoother R (C6, a
    hint).
    """
    h, w = int(ev.r.shape[-2]), int(ev.r.shape[-1])
    if (
        ev.kind not in {"frame", "input", "latent"}
        or min(h, w) < 16
        or ev.r.numel() > 8_000_000
        or not 3e-3 < ev.error < 0.5
    ):
        return
    d, r = ev.d.reshape(-1, 1, h, w), ev.r.reshape(-1, 1, h, w)
    some = sample_index(d.shape[0], 24)
    d, r = d[some], r[some]
    low = functional.avg_pool2d(d, 4)
    ratio = 16 * float(low.square().mean()) / (float(d.square().mean()) + 1e-300)  # 1 for white noise
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=torch.float64).reshape(1, 1, 3, 3)
    curvature = functional.conv2d(r, kernel)
    inner = d[..., 1:-1, 1:-1]
    cosine = float(
        (inner * curvature).sum() / (torch.linalg.vector_norm(inner) * torch.linalg.vector_norm(curvature) + 1e-300)
    )
    if ratio < 1 and abs(cosine) > 0.5:
        how = "smoother" if cosine > 0 else "sharper"
        text = (
            f"P is a {how} R: the difference follows R's edges (correlation {abs(cosine):.2f}) and "
            "has no low frequencies: another resize filter or antialiasing"
        )
        yield Explanation(
            text, 1 - cosine * cosine, 0.6 + 0.2 * (abs(cosine) - 0.5), {"correlation": cosine, "low": ratio}, "C6"
        )


RANDOM = {"randn", "randn_like", "normal", "normal_functional", "rand", "rand_like"}


def sampled(ev: Evidence) -> Iterator[Explanation]:
    """P − R == std·ε with the captured posterior: sampled where the reference takes its mode (C9)."""
    if not comparable(ev, 64) or ev.r.ndim < 3:
        return
    drawn = [x for op in ev.port_ops if op.name in RANDOM for x in op.outputs if tuple(x.shape) == tuple(ev.r.shape)]
    for noise in drawn if not any(op.name in RANDOM for op in ev.ref_ops) else ():
        for i, op in enumerate(ev.port_ops):
            for x in op.outputs:
                if tuple(x.shape) == tuple(ev.r.shape) and x.is_floating_point() and bool((x > 0).all()):
                    residual = accept(ev, ev.r + as_float64(x) * as_float64(noise))
                    if residual is not None:
                        text = (
                            f"P is R plus the noise drawn here times the port's op {i} ({op.name}): a sample, not "
                            "the mode"
                        )
                        yield Explanation(text, residual, sure(ev, residual, 0.97), {"operation": op.name})
                        return
    for name, moments in ev.inputs.items():
        if moments.ndim != ev.r.ndim or not moments.is_floating_point():
            continue
        doubled = [i for i in range(ev.r.ndim) if moments.shape[i] == 2 * ev.r.shape[i]]
        if len(doubled) != 1 or any(moments.shape[i] != ev.r.shape[i] for i in range(ev.r.ndim) if i not in doubled):
            continue
        mean, log_variance = as_float64(moments).chunk(2, dim=doubled[0])
        a, b = grouped_affine(ev.r, mean, doubled)
        if float(torch.linalg.vector_norm(ev.r - a * mean - b)) > 1e-3 * float(torch.linalg.vector_norm(ev.r)):
            continue
        z = ev.d / (a * (0.5 * log_variance.clamp(-30, 20)).exp())
        spread, centre = float(z.std()), float(z.mean())
        kurtosis = float(((z - centre) ** 4).mean()) / max(spread, 1e-12) ** 4
        if 0.9 < spread < 1.1 and abs(centre) < 0.1 and 2.5 < kurtosis < 3.6:
            text = (
                f"P is a sample of the posterior {name} where R is its mode: (P − R)/std has mean "
                f"{centre:.3f} and std {spread:.3f}"
            )
            yield Explanation(text, 0.05, 0.93, {"std": spread, "input": name})
            return


def branch_of_batch(ev: Evidence) -> Iterator[Explanation]:
    """Batch entries exchanged between the two halves: the conditional rows hold the unconditional ones (C1), blind to
    names.
    """
    if (
        not comparable(ev, 8)
        or ev.r.ndim < 2
        or ev.r.shape[0] % 2
        or ev.kind == "weight"
        or axis_of("b", ev.r.shape, kind_of(ev)) != 0
    ):
        return
    first, second = ev.r.chunk(2)
    for how, explained in (
        ("the conditional half for both", torch.cat([second, second])),
        ("the unconditional half for both", torch.cat([first, first])),
    ):
        residual = accept(ev, explained)
        if residual is not None:
            yield Explanation(f"P holds {how} of the batch", residual, sure(ev, residual, 0.75), {"how": how})
            return


HYPOTHESES: tuple[Hypothesis, ...] = (
    Hypothesis("guidance", "C1", guidance, 0.9),
    Hypothesis("one_branch", "C1", branch_of_batch, 0.7),
    Hypothesis("other_record", "C2", other_record, 0.9),
    Hypothesis("final_norm", "C2", final_norm, 0.5),
    Hypothesis("padded_rows", "C3", padded_rows, 0.85),
    Hypothesis("token_ids", "C3", token_ids, 0.8),
    Hypothesis("inverted_mask", "C5", inverted_mask, 0.95),
    Hypothesis("slice_filled", "C5", slice_filled, 0.6),
    Hypothesis("resampled", "C6", resampled, 0.7),
    Hypothesis("sampled_posterior", "C9", sampled, 0.7),
    *TERMS,
)
