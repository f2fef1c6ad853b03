"""Where the error lies: reported for every divergence, explained or not.

Energy Σd² is summed over all axes but one and compared with a null model in which every element carries noise of the same relative
size: the expected share of an index is the mean of its share of Σr² and of its count, so loud channels are not called culprits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .axes import LONG, roles
from .evidence import Evidence
from .fits import noise_level

CONCENTRATED = 0.9  # share of the energy that makes a statement


@dataclass(frozen=True)
class Locality:
    """`axis`: an axis number or a coordinate's name; `what`: only, from, tail, head, group, one, border, periodic, sparse, evenly, nonfinite;
    `detail`: a phrase for the engineer; `share`: of the error's energy that lies there."""

    axis: int | str
    what: str
    detail: str
    share: float


def measure(ev: Evidence) -> tuple[Locality, ...]:
    """Return where the error is concentrated, strongest statement first; one entry "evenly" when it is spread as the values are."""
    if ev.port.numel() == 0 or ev.reference.numel() == 0 or not ev.same_shape:
        return tuple(_over_coordinates(ev))
    found = list(_nonfinite(ev)) or list(_inside(ev))
    if not found and _comparable(ev):
        found = [Locality("all", "evenly", "spread evenly over the tensor", 1.0)]
    return (*found, *_over_coordinates(ev))


def describe(ev: Evidence) -> tuple[str, ...]:
    """Return short phrases, for every divergence: "only the last 3 of 24 tokens", "frames from 4 on", "evenly"."""
    return tuple(place.detail for place in measure(ev))


def _comparable(ev: Evidence) -> bool:
    return bool(torch.isfinite(ev.d).all()) and bool(ev.d.any())


def _nonfinite(ev: Evidence) -> Iterator[Locality]:
    bad = ~torch.isfinite(ev.p) & torch.isfinite(ev.r)
    if not bool(bad.any()):
        return
    share = float(bad.double().mean())
    if bool(bad.all()):
        yield Locality("all", "nonfinite", "every element of the port is NaN or infinite", 1.0)
        return
    where = next(_axis_statements(ev, bad.double(), torch.ones_like(ev.r)), None)
    detail = f"{int(bad.sum())} elements ({share:.1%}) are NaN or infinite{', ' + where.detail if where else ''}"
    yield Locality(where.axis if where else "all", "nonfinite", detail, share)


def _inside(ev: Evidence) -> Iterator[Locality]:
    if not _comparable(ev):
        return
    energy, own = ev.d.square(), ev.r.square()
    statements = sorted(_axis_statements(ev, energy, own), key=lambda s: -s.share)
    yield from statements
    if not statements:
        yield from _sparse(ev, energy)


def _axis_statements(ev: Evidence, energy: Tensor, own: Tensor) -> Iterator[Locality]:
    names = roles(ev.r.shape, ev.kind)
    for axis, size in enumerate(ev.r.shape):
        if size < 2:
            continue
        rest = [i for i in range(energy.ndim) if i != axis]
        e = energy.sum(dim=rest) if rest else energy
        o = own.sum(dim=rest) if rest else own
        if float(e.sum()) > 0:
            statement = _one_axis(e / e.sum(), o / o.sum().clamp_min(1e-300), axis, LONG[names[axis]])
            if statement is not None:
                yield statement


def _one_axis(share: Tensor, own: Tensor, axis: int, word: str) -> Locality | None:
    """The statement for one axis, if its energy is far from the null model."""
    n = len(share)
    null = 0.5 * own + 0.5 / n
    order = torch.argsort(share, descending=True)
    mass = share[order].cumsum(0)
    few = int((mass < CONCENTRATED).sum()) + 1  # the fewest indices that hold 90 %
    chosen = sorted(order[:few].tolist())
    held, expected = float(share[chosen].sum()), float(null[chosen].sum())
    # 90 % of the energy where the null model expects less than 60 %
    if few == n or expected > 0.6:
        return _trend(share, null, axis, word)
    exact = float(share.sum() - held) < 1e-9
    only = "only " if exact else f"{held:.0%} in "
    if n >= 4 and chosen[-1] == n - 1 and chosen == list(range(n - few, n)):
        where = "the last" if few == 1 else f"the last {few}"
        what, detail = (
            "tail",
            f"{only}{where} of {n} {word}s"
            if few <= n // 4 or few == 1
            else f"{only}{word}s from {n - few} on (of {n})",
        )
    elif n >= 4 and chosen == list(range(few)):
        what, detail = "head", f"{only}the first {few if few > 1 else ''}".rstrip() + f" of {n} {word}s"
    elif (period := _period(chosen, n)) is not None:
        what, detail = "periodic", f"{only}every {period}th {word} from {chosen[0]}"
    elif _both_ends(chosen, n):
        what, detail = "border", f"{only}the border {word}s (both ends, {few} of {n})"
    elif few == 1:
        what, detail = "one", f"{only}{word} {chosen[0]} of {n}"
    elif chosen == list(range(chosen[0], chosen[-1] + 1)):
        what, detail = "group", f"{only}{word}s {chosen[0]}..{chosen[-1]} of {n}"
    else:
        listed = ", ".join(map(str, chosen[:6])) + ("…" if few > 6 else "")
        what, detail = "some", f"{only}{few} of {n} {word}s ({listed})"
    return Locality(axis, what, detail, held)


def _trend(share: Tensor, null: Tensor, axis: int, word: str) -> Locality | None:
    """Equal at the start and wrong from an index on, even when that is most of the axis."""
    n = len(share)
    if n < 4:
        return None
    clean = share < 1e-3 * null
    first = int(torch.nonzero(~clean)[0]) if bool((~clean).any()) else 0
    last = int(torch.nonzero(~clean)[-1]) if bool((~clean).any()) else n - 1
    if first > 0 and float(null[:first].sum()) > 0.02 and last == n - 1:
        return Locality(axis, "from", f"{word}s from {first} on (of {n})", float(share[first:].sum()))
    if last < n - 1 and first == 0 and float(null[last + 1 :].sum()) > 0.02:
        return Locality(axis, "until", f"{word}s up to {last} (of {n})", float(share[: last + 1].sum()))
    return None


def _period(chosen: list[int], n: int) -> int | None:
    """The period of indices a, a+p, a+2p, … that reach the end of the axis."""
    if len(chosen) < 3:
        return None
    steps = {b - a for a, b in zip(chosen, chosen[1:], strict=False)}
    step = min(steps)
    regular = len(steps) == 1 and step >= 2 and chosen[0] < step + 1 and chosen[-1] + step >= n
    return step if regular else None


def _both_ends(chosen: list[int], n: int) -> bool:
    width = max((i + 1 for i in chosen if i < n // 2), default=0)
    other = max((n - i for i in chosen if i >= n // 2), default=0)
    return 0 < width <= n // 4 and 0 < other <= n // 4 and len(chosen) == width + other and n >= 8


def _sparse(ev: Evidence, energy: Tensor) -> Iterator[Locality]:
    """Few elements carry the error, scattered over the axes."""
    flat = energy.reshape(-1)
    count = flat.numel()
    if count < 64:
        return
    k = max(1, count // 100)
    top = torch.topk(flat, k).values
    share = float(top.sum() / flat.sum())
    level = (noise_level(ev) * float(ev.r.abs().mean())) ** 2
    touched = int((flat > max(level, float(flat.max()) * 1e-6)).sum())
    if share > CONCENTRATED:
        yield Locality("elements", "sparse", f"{share:.0%} in {min(touched, k)} of {count} elements, scattered", share)


def _over_coordinates(ev: Evidence) -> Iterator[Locality]:
    """Which frames, steps, branches or requests are hit, from the table of all compared records of this site (or of every site)."""
    rows = [row for row in ev.table if row[0] == ev.site] or list(ev.table)
    axes: dict[str, dict[int, list[bool]]] = {}
    for _, coords, error, floor in rows:
        bad = math.isnan(error) or error > floor
        for name, value in coords.items():
            axes.setdefault(name, {}).setdefault(int(value), []).append(bad)
    for name, values in axes.items():
        statement = _one_coordinate(name, values)
        if statement is not None:
            yield statement


def _one_coordinate(name: str, values: Mapping[int, list[bool]]) -> Locality | None:
    """Hit from k on, only k, or some values of one coordinate."""
    seen = sorted(values)
    hit = [v for v in seen if any(values[v])]
    if len(seen) < 2 or not hit or len(hit) == len(seen):
        return None
    share = sum(sum(values[v]) for v in hit) / max(1, sum(len(values[v]) for v in hit))
    if len(hit) == 1 and hit[0] != seen[-1]:
        return Locality(name, "only", f"only at {name} {hit[0]} of {len(seen)}", share)
    if hit == [v for v in seen if v >= hit[0]]:
        return Locality(name, "from", f"from {name} {hit[0]} on (of {len(seen)})", share)
    if len(hit) == 1:
        return Locality(name, "only", f"only at {name} {hit[0]}", share)
    period = _period([seen.index(v) for v in hit], len(seen))
    if period is not None:
        return Locality(name, "periodic", f"every {period}th {name} from {hit[0]}", share)
    return Locality(name, "some", f"only at {name}s {hit[:8]}", share)
