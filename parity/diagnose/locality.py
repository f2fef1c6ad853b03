"""Where the error lies: reported for every divergence, explained or not.

Energy Σd² is summed over all axes but one and compared with a null model in which every element carries noise of the
same relative
size: the expected share of an index is the mean of its share of Σr² and of its count, so loud channels are not called
culprits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .axes import LONG, kind_of, many, roles
from .evidence import Evidence
from .fits import noise_level

CONCENTRATED = 0.9  # share of the energy that makes a statement


@dataclass(frozen=True)
class Locality:
    """`axis`: an axis number or a coordinate's name; `what`: only, from, tail, head, group, one, border, periodic,
    sparse, evenly, nonfinite;
    `detail`: a phrase for the engineer; `share`: of the error's energy that lies there."""

    axis: int | str
    what: str
    detail: str
    share: float


def measure(ev: Evidence) -> tuple[Locality, ...]:
    """Return where the error is concentrated, strongest statement first; one entry "evenly" when it is spread as the
    values are.
    """
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
    names = roles(ev.r.shape, kind_of(ev))
    touched = int((energy > float(energy.max()) * 1e-6).sum())
    for axis, size in enumerate(ev.r.shape):
        if size < 2:
            continue
        rest = [i for i in range(energy.ndim) if i != axis]
        e = energy.sum(dim=rest) if rest else energy
        o = own.sum(dim=rest) if rest else own
        if float(e.sum()) > 0:
            # so many indices would be hit if the wrong elements were thrown at random
            by_chance = size * (1 - (1 - 1 / size) ** touched)
            few = energy.numel() // size < 16
            shares = e / e.sum(), o / o.sum().clamp_min(1e-300)
            statement = _one_axis(*shares, axis, LONG[names[axis]], 1.0 if few else by_chance)
            if statement is not None:
                yield statement


def _one_axis(share: Tensor, own: Tensor, axis: int, word: str, by_chance: float) -> Locality | None:
    """The statement for one axis, if its energy is far from the null model."""
    n = len(share)
    null = torch.maximum(own, torch.full_like(own, 1 / n))
    hit = torch.nonzero(share > 1e-3 * null).reshape(-1).tolist()
    exact = len(hit) < n and float(share[hit].sum()) > 1 - 1e-6
    if exact:
        chosen = hit
    elif by_chance == 1.0:
        return None  # too few elements an index to speak of shares
    else:
        order = torch.argsort(share, descending=True)
        chosen = sorted(order[: int((share[order].cumsum(0) < CONCENTRATED).sum()) + 1].tolist())
        # 90 % of the energy where the null models expect less than 60 %
        if max(float(own[chosen].sum()), len(chosen) / n) > 0.6:
            return None
    held = float(share[chosen].sum())
    phrase = _phrase(chosen, n, word)
    if phrase is None or (phrase[0] == "some" and 2 * len(chosen) > by_chance):
        return None  # scattered over this axis
    what, where = phrase
    return Locality(axis, what, f"{'only ' if exact else f'{held:.0%} in '}{where}", held)


def _phrase(chosen: list[int], n: int, word: str) -> tuple[str, str] | None:
    """What kind of subset the chosen indices are, in words; None when they look scattered."""
    few = len(chosen)
    if n >= 4 and chosen == list(range(n - few, n)):
        if few <= n // 4 or few == 1:
            return "tail", f"the last{'' if few == 1 else f' {few}'} of {n} {many(word)}"
        return "from", f"{many(word)} from {n - few} on (of {n})"
    if n >= 4 and chosen == list(range(few)):
        return "head", f"the first{'' if few == 1 else f' {few}'} of {n} {many(word)}"
    period = _period(chosen, n)
    if period is not None:
        return "periodic", f"every {_ordinal(period)} {word} from {chosen[0]}"
    if _both_ends(chosen, n):
        return "border", f"the border {many(word)} (both ends, {few} of {n})"
    if few == 1:
        return "one", f"{word} {chosen[0]} of {n}"
    if chosen == list(range(chosen[0], chosen[-1] + 1)):
        return "group", f"{many(word)} {chosen[0]}..{chosen[-1]} of {n}"
    if 3 * few > n:
        return None
    return "some", f"{few} of {n} {many(word)} ({', '.join(map(str, chosen[:6]))}{'…' if few > 6 else ''})"


def _ordinal(n: int) -> str:
    suffix = "th" if 10 <= n % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{suffix}"


def _period(chosen: list[int], n: int) -> int | None:
    """The period of indices a, a+p, a+2p, … that reach the end of the axis."""
    if len(chosen) < 3:
        return None
    steps = {b - a for a, b in pairwise(chosen)}
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
    if count < 2000:
        return
    k = max(1, count // 100)
    top = torch.topk(flat, k)
    share = float(top.values.sum() / flat.sum())
    own = ev.r.reshape(-1).square()
    expected = float(own[top.indices].sum() / own.sum().clamp_min(1e-300))
    level = (noise_level(ev) * float(ev.r.abs().mean())) ** 2
    touched = int((flat > max(level, float(flat.max()) * 1e-6)).sum())
    if share > CONCENTRATED and expected < 0.5:
        yield Locality("elements", "sparse", f"{share:.0%} in {min(touched, k)} of {count} elements, scattered", share)


def _over_coordinates(ev: Evidence) -> Iterator[Locality]:
    """Which frames, steps, branches or requests are hit, from the table of all compared records of this site (or of
    every site).
    """
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
        return Locality(name, "periodic", f"every {_ordinal(period)} {name} from {hit[0]}", share)
    return Locality(name, "some", f"only at {many(name)} {hit[:8]}", share)
