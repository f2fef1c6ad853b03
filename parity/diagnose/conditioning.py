"""Conditioning: guidance, which hidden state, padded text, masks and concatenation, resizing, sampled posteriors,
missing terms.

Classes: C1 C2 C3 C5 C6 C9 N5 N6 of the bug list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import permutations

import torch
from torch import Tensor

from .axes import axis_of, kind_of
from .candidates import same_shape
from .evidence import Evidence, Explanation, Hypothesis, as_float64
from .fits import (
    accept,
    comparable,
    grouped_affine,
    grouped_scale,
    hot_index,
    near,
    noise_level,
    number,
    scalar_fit,
    sure,
)

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
            if class_id == "C2" and _goes_in(ev, other):
                class_id, why = "N5", ": what the reference runs in between is left out"
            best = 0.85 if class_id == "D2" else 0.95
            yield Explanation(text + why, residual, sure(ev, residual, best), {"equals": sites[i]}, class_id)
            return


def _goes_in(ev: Evidence, value: Tensor) -> bool:
    """Tell whether a value is one that the reference makes R of."""
    given = (*ev.inputs.values(), *(x for op in ev.ref_ops for x in op.inputs if x.is_floating_point()))
    return any(x.shape == value.shape and torch.equal(as_float64(x), value) for x in given)


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
    for name, moments in (ev.inputs if ev.r.numel() >= 64 else {}).items():
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
    Hypothesis("sampled_posterior", "C9", sampled, 0.7),
)
