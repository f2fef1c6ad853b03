"""Where a value comes from, found among the other records: another layer's state, a part of another tensor, channels of several (C2, C5, W3)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from .axes import kind_of, roles
from .evidence import Evidence, Explanation, Hypothesis, as_float64
from .fits import cached, comparable, noise_level
from .matching import as_rows, match_rows

NEAR_SITES = 48
MOST_NUMEL = 4_000_000
FIRST = ("video", "chunk", "frame", "call", "segment", "request", "step")

Lookup = Callable[[str, Mapping[str, int]], Tensor | None]

NO_CHANNELS = frozenset(["frame", "video", "image", "rope", "schedule", "mask"])  # no fused projection makes these


def around(ev: Evidence, sites: Sequence[str], at: Lookup) -> dict[str, Tensor]:
    """Return the floating records nearest to this one in order, here or where a run of them begins, by site."""
    order = list(sites)
    here = order.index(ev.site) if ev.site in order else len(order)
    found: dict[str, Tensor] = {}
    for i in sorted(range(len(order)), key=lambda i: abs(i - here))[:NEAR_SITES]:
        value = at(order[i], ev.coords)
        for axis in FIRST:
            value = at(order[i], {**ev.coords, axis: 0}) if value is None else value
        if value is not None and value.is_floating_point() and 8 <= value.numel() <= MOST_NUMEL and order[i] != ev.site:
            found[order[i]] = as_float64(value)
    return found


def reference_around(ev: Evidence) -> dict[str, Tensor]:
    """Return the reference's records around this one: what went in, and the nearest in order."""

    def make() -> dict[str, Tensor]:
        given = {
            name: as_float64(v)
            for name, v in ev.inputs.items()
            if v.is_floating_point() and 8 <= v.numel() <= MOST_NUMEL
        }
        return around(ev, ev.sites, ev.ref_at) | given

    return cached(ev, "reference_around", make)


def other_origin(ev: Evidence) -> Iterator[Explanation]:
    """R is the value of one layer and P that of another of the port's own, of the same name but for its number (C2)."""
    if not comparable(ev, 8) or not ev.port_sites:
        return
    ours = [site for site, value in reference_around(ev).items() if _same(ev, value, ev.r)]
    if not ours:
        return
    kin = {_blank(site) for site in ours}
    for site, value in around(ev, ev.port_sites, ev.port_at).items():
        if site not in ours and _blank(site) in kin and _same(ev, value, ev.p):
            text = f"the port takes its own {site} where the reference takes {ours[0]}"
            yield Explanation(text, 0.0, 0.95, {"reference": ours[0], "port": site})
            return


def _blank(site: str) -> str:
    return re.sub(r"\d+", "#", site)


def part_of_other(ev: Evidence) -> Iterator[Explanation]:
    """P is a run of entries of a larger record of the reference: the condition in place of the noise (C5), or a wrong tensor (C2)."""
    if not comparable(ev, 32) or ev.r.ndim < 2:
        return
    for site, value in reference_around(ev).items():
        if value.ndim != ev.p.ndim or value.numel() <= ev.p.numel():
            continue
        apart = [axis for axis in range(value.ndim) if value.shape[axis] != ev.p.shape[axis]]
        if len(apart) != 1:
            continue
        axis, length = apart[0], ev.p.shape[apart[0]]
        parts = [value.narrow(axis, start, length) for start in range(value.shape[axis] - length + 1)]
        if any(_same(ev, part, ev.r) for part in parts):
            continue  # R is a part of it too: a question of which
        for start, part in enumerate(parts):
            if _same(ev, part, ev.p):
                text = f"P is entries {start}..{start + length - 1} of axis {axis} of {site}, not its own value"
                class_id = "C5" if ev.kind == "latent" else "C2"
                yield Explanation(text, 0.0, 0.95, {"record": site, "axis": axis, "start": start}, class_id)
                return


def mixed_channels(ev: Evidence) -> Iterator[Explanation]:
    """Each channel of P is a channel of R or of a tensor beside it: a fused projection is cut apart in another order (W3)."""
    if not comparable(ev, 64) or ev.r.ndim < 2 or not 4 <= ev.r.shape[-1] <= 8192 or ev.kind in NO_CHANNELS:
        return
    if roles(ev.r.shape, kind_of(ev))[-1] != "d":
        return
    last = (ev.r.ndim - 1,)
    pool = {ev.site: ev.r} | {
        s: v for s, v in reference_around(ev).items() if v.shape == ev.r.shape and not _rearranged(v, ev.r)
    }
    if len(pool) < 2 or len(pool) * ev.r.numel() > 8 * MOST_NUMEL:
        return
    names = list(pool)
    rows = torch.cat([as_rows(value, last) for value in pool.values()])
    match = match_rows(as_rows(ev.p, last), rows, tolerance=1e-5 + 6 * noise_level(ev))
    if match is None or not match.complete:
        return
    alone = match_rows(as_rows(ev.p, last), as_rows(ev.r, last), tolerance=1e-5 + 6 * noise_level(ev))
    if alone is not None and alone.complete:
        return  # an order of R's own channels
    width = ev.r.shape[-1]
    if (match.index % width == range(width)).all():
        return  # every channel in its place: some of them went another way
    source = [names[i] for i in (match.index // width).tolist()]
    used = list(dict.fromkeys(source))
    if len(used) < 2 or source.count(ev.site) == 0:
        return
    counts = ", ".join(f"{source.count(name)} of {name}" for name in used[:4])
    text = f"the channels of P are channels of several tensors: {counts}; a fused tensor is cut apart in another order"
    yield Explanation(text, 0.0, 0.96, {"sources": used[:8]})


def _rearranged(value: Tensor, r: Tensor) -> bool:
    """Whether a tensor holds R's numbers, in the same order or another: an echo of it, no neighbour."""
    return torch.equal(value.flatten().sort().values, r.flatten().sort().values)


def _same(ev: Evidence, one: Tensor, other: Tensor) -> bool:
    """Whether two values agree up to rounding; values of one number only say nothing."""
    if one.shape != other.shape or not bool((other != other.reshape(-1)[0]).any()):
        return False
    scale = float(torch.linalg.vector_norm(other))
    return float(torch.linalg.vector_norm(one - other)) <= (1e-6 + 2 * noise_level(ev)) * scale


HYPOTHESES: tuple[Hypothesis, ...] = (
    Hypothesis("other_origin", "C2", other_origin, 0.9),
    Hypothesis("part_of_other", "C2", part_of_other, 0.8),
    Hypothesis("mixed_channels", "W3", mixed_channels, 0.7),
)
