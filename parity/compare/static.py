"""Constants first: the weights of both sides as such, before any activation.

A weight that the other side holds too, in any order of its elements, or rounded once to the coarser of both dtypes, is the same. What is left over on both sides is
compared where the values themselves prove that it is the same weight: they nearly agree. Then it is another one, however little that shows in an
activation: another checkpoint, an average for the raw weights. A weight that is computed from others (a gain folded in, a merged update of low rank, a quantised
one) is recognised by what it differs by; where more than the pair is left over around it, nothing is said.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from parity.align.by_values import moments, moments_of_stats, off
from parity.align.by_weights import leaf_of
from parity.compare.floors import UNIT
from parity.result import Cause, Divergence, Result
from parity.trace import Parameter, Trace

TIER = "static"
_EQUAL = 1e-12  # of moments in float64, whatever the order of the elements
_NEAR = 0.1  # of the deviation of a weight: two weights so near are one, changed
_ROUGHLY = 0.1  # what moments of such may be off by
_FEWEST = 16  # elements that prove a role
_ARITHMETIC = 2e-6  # of the norm: computed in float32 on another way
_LOW_RANK = 1e-2  # of a difference that is an update of low rank may be left

Weight = Tensor | Parameter


@dataclass(frozen=True)
class Changed:
    """One weight that the two sides hold with other values: which, how much of it, by how much of its deviation."""

    reference: str
    port: str
    error: float
    share: float  # nan where only descriptors are there
    shape: tuple[int, ...]
    rounded: str = ""  # the dtype to which the one side is the other's rounding, although neither is deployed in it


def changed_weights(
    refs: Mapping[str, Weight], ports: Mapping[str, Weight], deployed: torch.dtype | None = None
) -> list[Changed]:
    """Return the weights of the reference that the port holds with other values, in the reference's order."""
    left, right = _left_over(refs, ports)
    pairs = _nearest(left, right)
    changed: list[Changed] = []
    known: dict[str, str] = {}
    for ref, (port, error) in pairs.items():
        known[ref] = port
        if not _is_same(left[ref], right[port], deployed):
            share = _share(left[ref], right[port])
            rounded = _rounding(left[ref], right[port])
            changed.append(Changed(ref, port, error, share, _shape(left[ref]), rounded))
    lone = [n for n in left if n not in known and _count(left[n]) >= _FEWEST]
    others = [n for n in right if n not in known.values() and _count(right[n]) >= _FEWEST]
    around = _places(lone), _places(others)
    return [c for c in changed if not (_places([c.reference]) & around[0] or _places([c.port]) & around[1])]


def _places(names: Iterable[str]) -> set[str]:
    """Return the modules that own weights, and those around them: what is computed from what lies near it."""
    return {place for name in names for place in (leaf_of(name), leaf_of(leaf_of(name)))}


def static_divergences(changed: Sequence[Changed], reference: Trace) -> list[Divergence]:
    """Return one divergence a changed weight, where the reference first uses it."""
    first: dict[str, int] = {}
    for record in reference:
        if record.role != "in":
            first.setdefault(record.module, record.order)
    return [
        Divergence(
            site=c.reference,
            coords={},
            kind="weight",
            metric="rel_l2",
            error=c.error,
            floor=0.0,
            order=first.get(leaf_of(c.reference), len(reference) - 1),
            tier=TIER,
            module=leaf_of(c.reference) or "model",
            detail=_words(c),
            shape=c.shape,
            port=c.port if c.port != c.reference else "",
        )
        for c in changed
    ]


def with_static_cause(result: Result, changed: Sequence[Changed], total: int) -> Result:
    """Add what the changed weights say: first, where nothing else diverges before, else after what was found in the activations."""
    if not changed or result.first is None:
        return result
    cause = _cause_of(changed, total)
    causes = (cause, *result.causes) if result.first.tier == TIER else (*result.causes, cause)
    return replace(result, causes=causes)


def _cause_of(changed: Sequence[Changed], total: int) -> Cause:
    rounded = [c for c in changed if c.rounded]
    worst = max(changed, key=lambda c: c.error)
    if len(rounded) == len(changed):
        text = f"{worst.reference}{f' and {len(changed) - 1} more' if len(changed) > 1 else ''}: rounded to {worst.rounded} on one side"
        names = [c.reference for c in changed[:16]]
        return Cause(
            "weights_rounded",
            "W11",
            f"{text} (keep them in full precision)",
            {"weights": names, "dtype": worst.rounded},
            0.0,
            0.9,
            worst.reference,
            0.9,
        )
    many = f"{len(changed)} of {total} weights" if len(changed) > 1 else f"the weight {worst.reference}"
    text = f"{many} differ in value, and nearly agree: another checkpoint ({worst.reference}: {_words(worst)})"
    parameters = {"weights": [c.reference for c in changed[:16]], "count": len(changed), "error": worst.error}
    return Cause("checkpoint", "W13", text, parameters, 0.0, 0.9, worst.reference, 0.9)


def _words(c: Changed) -> str:
    if c.rounded:
        return f"rounded to {c.rounded} on one side"
    share = f"{c.share:.0%} of its elements, " if c.share == c.share else ""
    return f"{share}by {c.error:.1e} of its deviation"


# -- pairs ------------------------------------------------------------------------------------------------------------


def _left_over(
    refs: Mapping[str, Weight], ports: Mapping[str, Weight], rounded: bool = False
) -> tuple[dict[str, Weight], dict[str, Weight]]:
    """Return what neither side holds an equal of on the other, in any order of the elements."""
    prints = [{n: _moments(v) for n, v in side.items() if _floats(v)} for side in (refs, ports)]
    pool: dict[int, list[str]] = {}
    for name in prints[0]:
        pool.setdefault(_count(refs[name]), []).append(name)
    held: set[str] = set()
    lone: list[str] = []
    for name, mine in prints[1].items():
        equal = [r for r in pool.get(_count(ports[name]), ()) if off(prints[0][r], mine) <= _EQUAL]
        held.update(equal)  # tied and repeated ones on either side are the same weight
        if not equal:
            lone.append(name)
    left, right = {n: refs[n] for n in prints[0] if n not in held}, {n: ports[n] for n in lone}
    kinds = {str(v.dtype) for v in left.values()}, {str(v.dtype) for v in right.values()}
    if rounded or kinds[0] == kinds[1] or not (left and right) or not all(map(_is_tensor, left.values())):
        return left, right
    return _without_rounded(left, right)


def _without_rounded(left: dict[str, Weight], right: dict[str, Weight]) -> tuple[dict[str, Weight], dict[str, Weight]]:
    """Drop what is equal once both are rounded to the coarser dtype that one side holds its weights in."""
    dtypes = [v.dtype for v in (*left.values(), *right.values()) if isinstance(v, Tensor)]
    coarse = max(dtypes, key=lambda dtype: UNIT.get(str(dtype).removeprefix("torch."), 0.0))
    small = [{n: v.to(coarse) for n, v in side.items() if isinstance(v, Tensor)} for side in (left, right)]
    rest = _left_over(dict(small[0]), dict(small[1]), rounded=True)
    return {n: left[n] for n in rest[0]}, {n: right[n] for n in rest[1]}


def _nearest(left: Mapping[str, Weight], right: Mapping[str, Weight]) -> dict[str, tuple[str, float]]:
    """Pair weights that nearly agree, element by element, the nearest first: reference name -> (port name, error)."""
    prints = [{n: _moments(v) for n, v in side.items()} for side in (left, right)]
    found = []
    for p, port in right.items():
        alike = [r for r, ref in left.items() if _count(ref) == _count(port) >= _FEWEST]
        alike = [r for r in alike if off(prints[0][r], prints[1][p]) <= _ROUGHLY]
        if p in alike and _distance(left[p], port) <= _NEAR:
            alike = [p]
        found += [(error, r, p) for r in alike if (error := _distance(left[r], port)) <= _NEAR]
    pairs: dict[str, tuple[str, float]] = {}
    used: set[str] = set()
    for error, r, p in sorted(found):
        if r not in pairs and p not in used:
            pairs[r] = (p, error)
            used.add(p)
    return {name: pairs[name] for name in left if name in pairs}


def _distance(ref: Weight, port: Weight) -> float:
    """Return ‖p − r‖ over the deviation of r; of two matrices the nearer of both orientations."""
    if isinstance(ref, Tensor) and isinstance(port, Tensor):
        if _is_far(ref, port):
            return math.inf
        r, p = _wide(ref), _fitted(ref, port)
        spread = float((r - r.mean()).norm()) or float(r.norm())
        return math.inf if p is None or not spread > 0 else float((p - r).norm()) / spread
    a, b = (v if isinstance(v, Parameter) else None for v in (ref, port))
    if a is None or b is None or a.shape != b.shape or len(a.sketch) != len(b.sketch) or not a.sketch:
        return math.inf
    mean = a.stats.sum / a.stats.count
    spread = math.sqrt(max(a.stats.sumsq - a.stats.count * mean * mean, 0.0)) or a.stats.norm
    apart = math.sqrt(sum((x - y) ** 2 for x, y in zip(a.sketch, b.sketch, strict=True)))
    return apart / spread if spread > 0 else math.inf


def _is_far(ref: Tensor, port: Tensor) -> bool:
    """Tell cheaply, from a few elements, that two weights of one shape have nothing in common."""
    if ref.numel() < 8192 or ref.shape != port.shape or (ref.dim() == 2 and ref.shape[0] == ref.shape[1]):
        return False
    r, p = (_wide(v.reshape(-1)[:: v.numel() // 2048]) for v in (ref, port))
    return float((p - r).norm()) > 5 * _NEAR * float((r - r.mean()).norm())


def _is_tensor(value: Weight) -> bool:
    return isinstance(value, Tensor)


def _fitted(ref: Tensor, port: Tensor) -> Tensor | None:
    """Return the port's weight in the reference's shape: as it is, viewed, or transposed where that is nearer."""
    r, p = _wide(ref), _wide(port)
    ways = [p.reshape(r.shape)]
    if p.dim() == 2 and r.dim() == 2 and p.T.shape == r.shape:
        ways.append(p.T)
    return min(ways, key=lambda way: float((way - r).norm()))


# -- what is the same -------------------------------------------------------------------------------------------------


def _is_same(ref: Weight, port: Weight, deployed: torch.dtype | None) -> bool:
    """Tell whether two near weights are one: rounded once, or one of them computed from what makes up the other."""
    if isinstance(ref, Parameter) and isinstance(port, Parameter):
        kinds = (ref.dtype, port.dtype, *([str(deployed).removeprefix("torch.")] if deployed is not None else []))
        coarse = max(kinds, key=lambda name: UNIT.get(name, 1.0))
        digests = ref.digests.get(coarse), port.digests.get(coarse)
        fine = coarse not in ("bfloat16", "float16") and _distance(ref, port) <= _ARITHMETIC
        return None in digests or digests[0] == digests[1] or fine
    assert isinstance(ref, Tensor)
    assert isinstance(port, Tensor)
    r, p = _wide(ref), _fitted(ref, port)
    if p is None:
        return True
    names = {ref.dtype, port.dtype} | ({deployed} if deployed is not None else set())
    coarse_dtype = max(names, key=lambda dtype: UNIT.get(str(dtype).removeprefix("torch."), 1.0))
    if torch.equal(r.to(coarse_dtype), p.to(coarse_dtype)):
        return True
    if float((p - r).norm()) <= _ARITHMETIC * float(r.norm()):
        return True
    unit = UNIT.get(str(coarse_dtype).removeprefix("torch."), 2.0**-4)
    return any(_is_scaled(a, b, unit) for a, b in _orientations(r, p)) or _is_low_rank(p - r) or _is_quantised(r, p)


def _rounding(ref: Weight, port: Weight) -> str:
    """Return the half-precision dtype to which one weight is the other, rounded; nothing where there is none."""
    for name in ("bfloat16", "float16"):
        if isinstance(ref, Tensor) and isinstance(port, Tensor):
            p = _fitted(ref, port)
            same = p is not None and torch.equal(*(v.to(getattr(torch, name)) for v in (_wide(ref), p)))
        else:
            digests = [v.digests.get(name) for v in (ref, port) if isinstance(v, Parameter)]
            same = len(digests) == 2 and digests[0] is not None and digests[0] == digests[1]
        if same:
            return name
    return ""


def _orientations(r: Tensor, p: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return both weights as rows that one factor may have scaled: of the first axis, of the last, of all."""
    if r.dim() < 2:
        return [(r.reshape(1, -1), p.reshape(1, -1))]
    rows = r.reshape(r.shape[0], -1), p.reshape(p.shape[0], -1)
    last = r.movedim(1, 0).reshape(r.shape[1], -1), p.movedim(1, 0).reshape(p.shape[1], -1)
    return [rows, last]


def _is_scaled(r: Tensor, p: Tensor, unit: float) -> bool:
    """Tell whether each row of p is that of r times one number, rounded once: a gain that was folded in, a norm that was taken out."""
    used = (r.abs() > 0) & (p.abs() > 0)
    if bool(((r != 0) != (p != 0)).any()) or r.shape[1] < 4:
        return False
    exponent = torch.exp2(torch.floor(torch.log2(p.abs().clamp_min(1e-300))))
    half = 2 * unit * exponent / 2 * 1.01 + 5e-7 * p.abs()
    low = torch.where(used, (p - half.copysign(p)) / torch.where(used, r, 1.0), -math.inf)
    high = torch.where(used, (p + half.copysign(p)) / torch.where(used, r, 1.0), math.inf)
    return bool((low.amax(1) <= high.amin(1)).all())


def _is_low_rank(d: Tensor) -> bool:
    """Tell whether a difference is an update of low rank: merged into one side, kept beside the weight by the other."""
    d = d.reshape(d.shape[0], -1) if d.dim() > 1 else d.reshape(1, -1)
    if min(d.shape) < 8:
        return False
    values = torch.linalg.svdvals(d)
    rank = min(d.shape) // 4
    return float(values[rank:].norm()) <= _LOW_RANK * float(values.norm())


def _is_quantised(r: Tensor, p: Tensor) -> bool:
    """Tell whether the rows of one weight lie on an even grid of few levels, and each element is the level nearest to the other's."""
    rows = [v.reshape(v.shape[0], -1) if v.dim() > 1 else v.reshape(1, -1) for v in (r, p)]
    if rows[0].shape[1] < 8:
        return False
    for coarse, fine in (rows, rows[::-1]):
        largest = coarse.abs().amax(1, keepdim=True)
        for levels in (127, 7):
            step = largest / levels
            level = coarse / step.clamp_min(1e-300)
            even = float((level - level.round()).abs().max()) <= 0.02
            if even and bool(((coarse - fine).abs() <= 0.502 * step).all()):
                return True
    return False


# -- either kind ------------------------------------------------------------------------------------------------------


def _share(ref: Weight, port: Weight) -> float:
    if isinstance(ref, Tensor) and isinstance(port, Tensor):
        p = _fitted(ref, port)
        return float((p != _wide(ref)).double().mean()) if p is not None else math.nan
    return math.nan


def _moments(value: Weight) -> tuple[float, ...]:
    return moments_of_stats(value.stats) if isinstance(value, Parameter) else moments(value)


def _floats(value: Weight) -> bool:
    if isinstance(value, Parameter):
        return value.dtype in UNIT and value.stats.count > 0
    return value.is_floating_point() and value.element_size() > 1 and value.numel() > 0


def _shape(value: Weight) -> tuple[int, ...]:
    return tuple(value.shape)


def _count(value: Weight) -> int:
    return math.prod(value.shape)


def _wide(value: Tensor) -> Tensor:
    return value.detach().to("cpu", torch.float64)
