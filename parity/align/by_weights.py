"""Which weights of the port are which of the reference: equal content, also transposed or reordered, or as row blocks of a fused projection."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from parity.align.by_values import moments, moments_of_stats, off
from parity.capture.module_state import ModuleState
from parity.trace import Parameter

_EQUAL = 1e-5
_ROUNDED = 4e-3  # of one weight in two dtypes, one of them half precision


@dataclass(frozen=True)
class Fusion:
    """A port leaf whose output axis is several reference leaves, one after the other."""

    leaves: tuple[str, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class WeightMatch:
    """Leaf modules with the same weights."""

    leaves: Mapping[str, str]  # port leaf -> reference leaf
    fused: Mapping[str, Fusion]
    lone: frozenset[str] = frozenset()  # reference modules some weight of which the port does not hold
    spread: Mapping[str, str] = field(
        default_factory=dict
    )  # port weight -> reference weight, of modules that are cut otherwise


def match_weights(
    ref_root: nn.Module,
    port_root: nn.Module,
    ref_ran: Collection[str] | None = None,
    port_ran: Collection[str] | None = None,
) -> WeightMatch:
    """Pair leaf modules by the content of their weights; equal weights are paired in order of registration.

    ref_ran, port_ran: paths of the modules that ran; weights of others (left over after a fusion) are nobody's partner.
    """
    refs, ports = _weights(ref_root, ref_ran), _weights(port_root, port_ran)
    prints = [{n: Print(tuple(v.shape), moments(v)) for n, v in side.items()} for side in (refs, ports)]
    found = pair_prints(*prints)
    leaves, spread = leaves_of(found, prints[0])
    free = {n: v for n, v in refs.items() if n not in found.values() and v.dim() >= 2}
    alone = {n: v for n, v in ports.items() if n not in found and v.dim() >= 2}
    fused = _fusions(alone, free, leaves)
    parts = {leaf for fusion in fused.values() for leaf in fusion.leaves}
    constants = {(math.prod(p.shape), p.moments[0], p.moments[3]) for p in prints[1].values() if p.moments[4] == 0}
    held = {n for n, p in prints[0].items() if (math.prod(p.shape), p.moments[0], p.moments[3]) in constants}
    lone = {leaf_of(n) for n in refs if n not in found.values() and n not in held and leaf_of(n) not in parts}
    return WeightMatch(leaves, fused, frozenset(lone), spread)


@dataclass(frozen=True)
class Print:
    """Shape and order-free moments of a weight, and what the moments of an equal one may be off by."""

    shape: tuple[int, ...]
    moments: tuple[float, ...]
    tolerance: float = _EQUAL


def print_of(parameter: Parameter) -> Print:
    """Return the print of a weight that a trace describes."""
    rounded = parameter.dtype in ("bfloat16", "float16")
    return Print(parameter.shape, moments_of_stats(parameter.stats), _ROUNDED if rounded else _EQUAL)


def pair_prints(refs: Mapping[str, Print], ports: Mapping[str, Print]) -> dict[str, str]:
    """Pair weights of equal content (port name -> reference name), the nearest first; equal ones in order of registration."""
    pool: dict[int, list[str]] = {}
    for name, one in refs.items():
        pool.setdefault(math.prod(one.shape), []).append(name)
    found: dict[str, str] = {}
    leaves: dict[str, str] = {}
    used: set[str] = set()
    like: dict[str, str] = {}  # of equal weights, one that is elsewhere the partner of another place comes last
    for name, mine in ports.items():
        size = math.prod(mine.shape)
        distance = {r: off(mine.moments, refs[r].moments) for r in pool.get(size, []) if r not in used}
        equal = [r for r, d in distance.items() if d <= max(mine.tolerance, refs[r].tolerance)]
        equal = [r for r in equal if size > 1 or r == name]
        equal = [r for r in equal if _suffix(r) == _suffix(name)] or equal
        if not equal or mine.moments[4] == 0:
            continue

        def rank(r: str, port: str = name, d: Mapping[str, float] = distance) -> tuple[bool, bool, bool, float, bool]:
            same_leaf = leaves.get(leaf_of(port)) == leaf_of(r)
            return (
                refs[r].shape == ports[port].shape,
                r == port,
                same_leaf,
                -d[r],
                like.get(blank(r)) in (None, blank(port)),
            )

        best = max(equal, key=rank)
        used.add(best)
        found[name] = best
        like.setdefault(blank(best), blank(name))
        leaves.setdefault(leaf_of(name), leaf_of(best))
    return found


def leaves_of(weights: Mapping[str, str], refs: Mapping[str, Print]) -> tuple[dict[str, str], dict[str, str]]:
    """Return port leaf -> reference leaf, as its first paired weight says, and the pairs of weights that say nothing of their owners.

    A model with weights of its own is no leaf. Where one module holds several matrices that the other side keeps in several modules, none of these is that
    module: its boundaries are others. Its weights still tell which containers hold the same.
    """
    partners: dict[
        tuple[str, str], set[str]
    ] = {}  # ("port" or "ref", leaf) -> leaves of the other side that hold its matrices
    for port, ref in weights.items():
        if sum(n > 1 for n in refs[ref].shape) > 1:
            partners.setdefault(("port", leaf_of(port)), set()).add(leaf_of(ref))
            partners.setdefault(("ref", leaf_of(ref)), set()).add(leaf_of(port))
    cut = {leaf for leaf, others in partners.items() if len(others) > 1}
    leaves: dict[str, str] = {}
    spread: dict[str, str] = {}
    for port, ref in weights.items():
        if ("port", leaf_of(port)) in cut or ("ref", leaf_of(ref)) in cut:
            spread[port] = ref
        elif bool(leaf_of(port)) == bool(leaf_of(ref)):
            leaves.setdefault(leaf_of(port), leaf_of(ref))
    return leaves, spread


def pair_parameters(ref: ModuleState, port: ModuleState) -> dict[str, tuple[Tensor | None, Tensor | None]]:
    """Pair parameters and buffers of two modules: by name, by content, as rows of a fused one, then by order among equal shapes.

    Keys are the reference's names, or the port's where the reference has none. A parameter without a partner has None; a lone buffer (a table,
    a cache) is the side's own business and is left out.
    """
    left, right = ({**side.parameters, **side.buffers} for side in (ref, port))
    own = {*ref.parameters, *port.parameters}
    pairs: dict[str, tuple[Tensor | None, Tensor | None]] = {}
    for name in [n for n, t in left.items() if n in right and right[n].shape == t.shape]:
        pairs[name] = (left.pop(name), right.pop(name))
    for name, value in list(left.items()):
        partner = next(
            (n for n, t in right.items() if t.shape == value.shape and off(moments(t), moments(value)) <= _EQUAL), None
        )
        if partner is not None:
            pairs[name] = (left.pop(name), right.pop(partner))
    fused: dict[str, list[str]] = {}
    for name, whole in sorted(right.items(), key=lambda item: -item[1].dim()):
        siblings = [f"{leaf}.{_suffix(name)}" for leaf in fused.get(leaf_of(name), [])]  # the bias follows its matrix
        if siblings and all(n in left for n in siblings) and sum(len(left[n]) for n in siblings) == len(whole):
            found: list[str] | None = siblings
        else:
            found = _unfuse(whole, left)
        if found is not None:
            fused.setdefault(leaf_of(name), [leaf_of(n) for n in found])
            starts = [sum(left[n].shape[0] for n in found[:i]) for i in range(len(found))]
            pairs |= {
                n: (left[n], whole[start : start + left[n].shape[0]]) for n, start in zip(found, starts, strict=True)
            }
            left = {n: t for n, t in left.items() if n not in found}
            right.pop(name)
    for name, value in list(left.items()):
        partner = next((n for n, t in right.items() if t.shape == value.shape), None)
        if partner is not None:
            pairs[name] = (left.pop(name), right.pop(partner))
    pairs |= {n: (t, right.pop(n, None)) for n, t in left.items() if n in own}
    return pairs | {n: (None, t) for n, t in right.items() if n in own}


def changed_leaves(ref_root: nn.Module, port_root: nn.Module, match: WeightMatch) -> set[str]:
    """Return port leaves some weight of which holds other numbers than its partners, of the same name there, do together."""
    refs, ports = _weights(ref_root, None), _weights(port_root, None)
    pairs = {leaf: (ref,) for leaf, ref in match.leaves.items()} | {leaf: f.leaves for leaf, f in match.fused.items()}
    changed = set()
    for name, value in ports.items():
        parts = [refs.get(f"{leaf}.{_suffix(name)}") for leaf in pairs.get(leaf_of(name), ())]
        known = [part.flatten() for part in parts if part is not None]
        if known and len(known) == len(parts) and sum(map(len, known)) == value.numel():
            whole = torch.cat([part.double() for part in known])
            if off(moments(whole), moments(value)) > _EQUAL:
                changed.add(leaf_of(name))
    return changed


def leaf_of(name: str) -> str:
    """Return the module that owns the parameter `name`."""
    return name.rpartition(".")[0]


def blank(name: str) -> str:
    """Return `name` with every number replaced: the template that it shares with the same place in other blocks."""
    return re.sub(r"\d+", "#", name)


def fill(template: str, like: str) -> str:
    """Return `template` with its blanks replaced by the numbers of `like`, in order."""
    numbers = iter(re.findall(r"\d+", like))
    return re.sub("#", lambda _: next(numbers, "#"), template)


def _weights(root: nn.Module, ran: Collection[str] | None) -> dict[str, Tensor]:
    named = root.named_parameters(remove_duplicate=False)
    return {n: p.detach() for n, p in named if p.numel() > 0 and not p.is_meta and (ran is None or leaf_of(n) in ran)}


def _suffix(name: str) -> str:
    return name.rpartition(".")[2]


# -- fused projections ------------------------------------------------------------------------------------------------


def _fusions(ports: Mapping[str, Tensor], free: dict[str, Tensor], leaves: Mapping[str, str]) -> dict[str, Fusion]:
    """Find port weights that are several reference weights: by their rows, or because the same place in another block is."""
    fused: dict[str, Fusion] = {}
    templates: dict[str, list[str]] = {}
    for name, whole in ports.items():
        found = _unfuse(whole, free)
        if found is None or leaf_of(name) in leaves:
            continue
        if all(re.findall(r"\d+", n) == re.findall(r"\d+", name) for n in found):
            templates.setdefault(blank(name), [blank(n) for n in found])
        fused[leaf_of(name)] = Fusion(tuple(map(leaf_of, found)), tuple(free[n].shape[0] for n in found))
        for n in found:
            free.pop(n)
    for name, whole in ports.items():
        guess = [fill(t, name) for t in templates.get(blank(name), [])]
        if leaf_of(name) in fused or not guess or not all(n in free for n in guess):
            continue
        if sum(free[n].shape[0] for n in guess) == whole.shape[0]:
            fused[leaf_of(name)] = Fusion(tuple(map(leaf_of, guess)), tuple(free[n].shape[0] for n in guess))
            for n in guess:
                free.pop(n)
    return fused


def _unfuse(whole: Tensor, parts: Mapping[str, Tensor]) -> list[str] | None:
    """Return the reference weights whose rows, one block after the other, are the rows of `whole`.

    A block that holds other numbers (one part was changed) is taken for the only part of its size that is left beside the others.
    """
    fitting = {
        n: p
        for n, p in parts.items()
        if p.dim() == whole.dim() and p.shape[1:] == whole.shape[1:] and len(p) < len(whole)
    }
    if len(fitting) < 2 or whole.dim() == 0:
        return None
    keys = _row_keys(whole)
    placed = _place(keys, fitting)
    if 2 * sum(len(fitting[n]) for n in placed.values()) < len(keys):
        return None
    found: list[str] = []
    start = 0
    while start < len(keys):
        if start not in placed:
            end = min((s for s in placed if s > start), default=len(keys))
            family = {leaf_of(leaf_of(n)) for n in placed.values()}
            left = [
                n for n, p in fitting.items() if len(p) == end - start and n not in placed.values() and n not in found
            ]
            left = [n for n in left if leaf_of(leaf_of(n)) in family]
            if len(left) != 1:
                return None
            placed[start] = left[0]
        found.append(placed[start])
        start += len(fitting[placed[start]])
    return found if len(found) >= 2 and len(set(found)) == len(found) else None


def _place(keys: Tensor, parts: Mapping[str, Tensor]) -> dict[int, str]:
    """Return first row -> part, for parts whose rows appear in `keys` as a block."""
    placed: dict[int, str] = {}
    for name, part in parts.items():
        own = _row_keys(part)
        scale = float(own.abs().max())
        if scale == 0:
            continue
        near_first = torch.nonzero((keys - own[0]).abs() <= _EQUAL * scale).flatten().tolist()
        for start in near_first:
            block = keys[start : start + len(own)]
            if (
                start not in placed
                and len(block) == len(own)
                and bool(torch.allclose(block, own, rtol=1e-4, atol=_EQUAL * scale))
            ):
                placed[start] = name
                break
    return _without_overlaps(placed, parts)


def _without_overlaps(placed: Mapping[int, str], parts: Mapping[str, Tensor]) -> dict[int, str]:
    kept: dict[int, str] = {}
    end = 0
    for start in sorted(placed):
        if start >= end:
            kept[start] = placed[start]
            end = start + len(parts[placed[start]])
    return kept


def _row_keys(value: Tensor) -> Tensor:
    """One number a row: its product with a fixed direction."""
    flat = value.detach().double().reshape(value.shape[0], -1)
    direction = torch.cos(1.7 * torch.arange(flat.shape[1], dtype=torch.float64, device=flat.device))
    return flat @ direction


def held_leaves(leaves: Iterable[tuple[str, Iterable[str]]]) -> dict[str, set[str]]:
    """Return container path -> the leaves (by another name) that it holds."""
    held: dict[str, set[str]] = {}
    for leaf, content in leaves:
        path = leaf
        while path:
            path = leaf_of(path)
            held.setdefault(path, set()).update(content)
    return held
