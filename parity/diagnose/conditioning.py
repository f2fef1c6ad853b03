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
from .framing import HYPOTHESES as FRAMING
from .origins import HYPOTHESES as ORIGINS
from .origins import reference_around
from .prompts import HYPOTHESES as PROMPTS
from .resizing import HYPOTHESES as RESIZING
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
    names = [(name, x) for name, x in same_shape(ev).items() if _may_be_branch(name)][:12]
    for (cond, c), (uncond, u) in permutations(names, 2):
        cs, us = c.reshape(-1)[index], u.reshape(-1)[index]
        s, rough = scalar_fit(r - us, cs - us)
        if rough > 0.02 or s <= 1.001:
            continue
        s, residual = scalar_fit(ev.r - u, c - u)
        if residual < 1e-4 + 5 * noise_level(ev):
            return cond, uncond, s, c, u
    return None


def _may_be_branch(name: str) -> bool:
    """A branch is something recorded or cut out of a batch; sums and products of the step itself combine to anything."""
    return " op " not in name or any(
        f"({cut})" in name for cut in ("split", "chunk", "slice", "select", "unbind", "split_with_sizes")
    )


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


def _parallel(ev: Evidence, site: str) -> bool:
    """Say whether R and the record at `site` are outputs of two modules that got the same tensor (gate and up, scale and shift)."""
    if ".in." not in ev.site or ".in." in site:
        return False
    for own in ev.sites:
        value = ev.ref_at(own, ev.coords) if ".in." not in own and own not in (site, ev.site) else None
        if value is None or value.shape != ev.reference.shape or not torch.equal(as_float64(value), ev.r):
            continue
        given = [next((s for s in ev.sites if s.startswith(f"{module}.in.")), "") for module in (own, site)]
        a, b = (ev.ref_at(name, ev.coords) if name else None for name in given)
        return a is not None and b is not None and a.shape == b.shape and torch.equal(a, b)
    return False


def _sibling(ev: Evidence, site: str) -> tuple[str, str]:
    """C2, unless the equal record is another part of the same list of arguments (D3) or comes from a twin with other
    weights (D2)."""
    if _parallel(ev, site):
        return "W3", ": the outputs of two projections of one input are exchanged"
    same_list = ".in." in site and re.sub(r"\d+$", "#", site) == re.sub(r"\d+$", "#", ev.site)
    if same_list:
        return "D3", ": the parts are in another order"
    if ev.kind == "kv":
        return "V2" if ev.reference.ndim == 5 else "K1", ": the slots are counted otherwise"
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


def inverted_mask(ev: Evidence) -> Iterator[Explanation]:
    """Two-valued R with P == (low + high) − R: the mask's meaning is reversed (C5; A2 for a mask record), also of some channels only."""
    if not comparable(ev, 4):
        return
    yield from _inverted_channels(ev)
    if len(torch.unique(ev.r.reshape(-1)[sample_index(ev.r.numel(), 512)])) > 2:
        return
    values = torch.unique(ev.r.reshape(-1))
    if len(values) != 2 or not torch.equal(torch.unique(ev.p.reshape(-1)), values):
        return
    residual = accept(ev, values.sum() - ev.r)
    if residual is not None:
        text = f"P is the mask inverted: {number(float(values[0]))} and {number(float(values[1]))} exchanged"
        yield Explanation(text, residual, sure(ev, residual, 0.97), {}, "A2" if ev.kind == "mask" else "C5")


def _inverted_channels(ev: Evidence) -> Iterator[Explanation]:
    """The differences are confined to some entries of one axis, which hold zeros and ones on both sides, exchanged."""
    if ev.r.ndim < 3 or ev.kind not in {"input", "latent"} or len(torch.unique(ev.r)) <= 2:
        return
    for axis, size in enumerate(ev.r.shape):
        hit = (ev.d.abs() > 1e-6).movedim(axis, 0).reshape(size, -1).any(1)
        indices = torch.nonzero(hit).reshape(-1)
        if not 0 < len(indices) < size or len(indices) != int(indices[-1] - indices[0]) + 1:
            continue
        r, p = ev.r.index_select(axis, indices), ev.p.index_select(axis, indices)
        if set(torch.unique(r).tolist()) == {0.0, 1.0} and float((p + r - 1).abs().max()) <= 1e-6:
            text = f"entries {_run(indices.tolist())} of axis {axis} are a mask, inverted: 0 and 1 exchanged"
            yield Explanation(text, 0.0, 0.97, {"axis": axis, "entries": indices.tolist()}, "C5")
            return


def given_frames(ev: Evidence) -> Iterator[Explanation]:
    """R is a video of one fill value but for some given frames; in P these are missing or stand elsewhere (C5)."""
    if not comparable(ev, 64) or ev.r.ndim not in (4, 5):
        return
    axis = axis_of("f", ev.r.shape, "latent" if ev.r.ndim == 4 else ev.kind)
    if axis is None or ev.r.shape[axis] < 4:
        return
    r, p = (x.movedim(axis, 0).reshape(x.shape[axis], -1) for x in (ev.r, ev.p))
    (ours, fill), (theirs, other) = _given(r), _given(p)
    if fill is None or other is None or fill != other or not 0 < len(ours) <= len(r) // 2 or ours == theirs:
        return
    if all(torch.equal(p[i], r[i]) for i in theirs if i in ours) and set(theirs) < set(ours):
        gone = sorted(set(ours) - set(theirs))
        text = f"the given frames {gone} of {len(r)} are missing: P has the fill value {number(fill)} there"
        yield Explanation(text, 0.0, 0.96, {"missing": gone, "fill": fill}, "C5")
        return
    if len(ours) == len(theirs) and all(torch.equal(r[i], p[j]) for i, j in zip(ours, theirs, strict=True)):
        text = f"the given frames stand at {theirs} instead of {ours}, the others hold the fill value {number(fill)}"
        yield Explanation(text, 0.0, 0.96, {"reference": ours, "port": theirs, "fill": fill}, "C5")


def _given(frames: Tensor) -> tuple[list[int], float | None]:
    """Return which frames hold more than one value, and the one value of all others (None when they have several)."""
    plain = (frames == frames[:, :1]).all(1)
    values = torch.unique(frames[plain, 0]) if bool(plain.any()) else frames.new_zeros(0)
    return torch.nonzero(~plain).reshape(-1).tolist(), float(values[0]) if len(values) == 1 else None


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


RANDOM = {"randn", "randn_like", "normal", "normal_functional", "rand", "rand_like"}


def sampled(ev: Evidence) -> Iterator[Explanation]:
    """P − R == std·ε with the captured posterior: sampled where the reference takes its mode (C9)."""
    if not comparable(ev, 16) or ev.r.ndim < 3:
        return
    drawn = [x for op in ev.port_ops if op.name in RANDOM for x in op.outputs if tuple(x.shape) == tuple(ev.r.shape)]
    for noise in drawn if not any(op.name in RANDOM for op in ev.ref_ops) else ():
        for i, op in enumerate(ev.port_ops):
            for x in op.outputs:
                if tuple(x.shape) == tuple(ev.r.shape) and x.is_floating_point() and bool((x > 0).all()):
                    added = as_float64(x) * as_float64(noise)
                    residual = accept(ev, ev.r + added)
                    if residual is None:  # in the units of a latent that is normalised by channel
                        residual = accept(ev, ev.r + grouped_scale(ev.d, added, [1]) * added)
                    if residual is not None:
                        text = (
                            f"P is R plus the noise drawn here times the port's op {i} ({op.name}): a sample, not "
                            "the mode"
                        )
                        yield Explanation(text, residual, sure(ev, residual, 0.97), {"operation": op.name})
                        return
    for name, moments in ({**ev.inputs, **reference_around(ev)} if ev.r.numel() >= 64 else {}).items():
        for r, d in _differing_block(ev):
            yield from _posterior(name, moments, r, d)


def _differing_block(ev: Evidence) -> Iterator[tuple[Tensor, Tensor]]:
    """R and P − R; and of that the run of entries of one axis outside which nothing differs (latents beside a mask)."""
    yield ev.r, ev.d
    for axis in range(ev.r.ndim):
        hit = torch.nonzero((ev.d.abs() > 1e-6).movedim(axis, 0).flatten(1).any(1)).reshape(-1)
        length = int(hit[-1] - hit[0]) + 1 if len(hit) else 0
        if 0 < length < ev.r.shape[axis]:
            yield ev.r.narrow(axis, int(hit[0]), length), ev.d.narrow(axis, int(hit[0]), length)


def _posterior(name: str, moments: Tensor, r: Tensor, d: Tensor) -> Iterator[Explanation]:
    """R is an affine map of the mean in `moments` (mean and log-variance), and P − R has its deviation."""
    if moments.ndim == r.ndim + 1 and moments.shape[0] == 1:
        moments = moments[0]
    if moments.ndim != r.ndim or not moments.is_floating_point():
        return
    doubled = [i for i in range(r.ndim) if moments.shape[i] == 2 * r.shape[i]]
    if len(doubled) != 1 or any(moments.shape[i] != r.shape[i] for i in range(r.ndim) if i not in doubled):
        return
    mean, log_variance = as_float64(moments).chunk(2, dim=doubled[0])
    a, b = grouped_affine(r, mean, doubled)
    if float(torch.linalg.vector_norm(r - a * mean - b)) > 1e-3 * float(torch.linalg.vector_norm(r)):
        return
    z = d / (a * (0.5 * log_variance.clamp(-30, 20)).exp())
    spread, centre = float(z.std()), float(z.mean())
    kurtosis = float(((z - centre) ** 4).mean()) / max(spread, 1e-12) ** 4
    if 0.9 < spread < 1.1 and abs(centre) < 0.1 and 2.5 < kurtosis < 3.6:
        text = (
            f"P is a sample of the posterior {name} where R is its mode: (P − R)/std has mean {centre:.3f} "
            f"and std {spread:.3f}"
        )
        yield Explanation(text, 0.05, 0.93, {"std": spread, "input": name})


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
    Hypothesis("inverted_mask", "C5", inverted_mask, 0.95),
    Hypothesis("given_frames", "C5", given_frames, 0.9),
    Hypothesis("slice_filled", "C5", slice_filled, 0.6),
    Hypothesis("sampled_posterior", "C9", sampled, 0.7),
    *ORIGINS,
    *PROMPTS,
    *RESIZING,
    *FRAMING,
    *TERMS,
)
