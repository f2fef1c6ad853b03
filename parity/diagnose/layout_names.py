"""Give a rearrangement its name: which bug class a permutation of these axes usually is, and whether it is harmless."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .axes import LONG, kind_of, many, roles
from .evidence import Evidence
from .permutations import Structure


@dataclass(frozen=True)
class Naming:
    """The sentence, the class id, how far the class (not the permutation) is to be trusted, and whether it may be
    harmless.
    """

    text: str
    class_id: str
    trust: float = 1.0
    benign: bool = False


MODULATION_WORDS = ("mod", "ada", "scale_shift", "norm", "shift", "cond")


def name_permutation(ev: Evidence, axes: tuple[int, ...], structure: Structure) -> Naming:
    """Return sentence and class of "P is R rearranged by `structure` over `axes`"."""
    if structure.kind in {"transposed", "viewed", "unpermuted"}:
        return _name_axes(ev, axes, structure)
    where = _place(ev, axes)
    text = f"P is R with {where} {structure.text}"
    if ev.kind == "weight":
        return _name_weight(ev, axes, structure, text)
    names = [roles(ev.reference.shape, kind_of(ev))[a] for a in axes]
    if len(axes) > 1:
        if structure.kind == "inner" and names[0] == "b":
            return Naming(text, "V11", 0.97)  # the batch itself stays: what is folded into it changes places
        return Naming(text, _group_class(names), 0.97)
    return _name_single(ev, axes[0], names[0], structure, text)


def _place(ev: Evidence, axes: tuple[int, ...]) -> str:
    names = roles(ev.reference.shape, kind_of(ev))
    if len(axes) == 1:
        return f"axis {axes[0]} ({many(LONG[names[axes[0]]])})"
    listed = ", ".join(many(LONG[names[a]]) for a in axes)
    return f"axes {list(axes)} ({listed}) taken as one of {structure_length(ev, axes)} entries"


def structure_length(ev: Evidence, axes: tuple[int, ...]) -> int:
    """Number of entries of the merged axes."""
    total = 1
    for a in axes:
        total *= ev.reference.shape[a]
    return total


def _name_axes(ev: Evidence, axes: tuple[int, ...], structure: Structure) -> Naming:
    """Whole axes exchanged (equal sizes), or a view taken without the permute."""
    names = roles(ev.reference.shape, kind_of(ev))
    if structure.kind == "transposed" and _relative(ev):
        return Naming(
            "P is R transposed, and R depends on row minus column alone: relative positions have the other sign", "P7"
        )
    if structure.kind == "transposed":
        text = (
            f"P is R with axes {' and '.join(map(str, axes))} swapped"
            if len(axes) == 2
            else f"P is R with its axes in the order {list(structure.order)}"
        )
    else:
        missing = "a view without the permute" if structure.kind == "viewed" else "a view with a permute too many"
        text = f"P is R's memory read through {missing}: axes in the order {list(structure.order)}, shape kept"
    if ev.kind == "weight":
        return Naming(text, "W9")
    class_id = _group_class([names[a] for a in axes])
    # a picture whose memory was read in another order is a matter of memory format, not of packing
    return Naming(text, "V11" if class_id == "V5" and structure.kind != "transposed" else class_id)


def _relative(ev: Evidence) -> bool:
    """Whether the record is a table of relative positions: a square matrix, constant along its diagonals."""
    r = ev.reference
    return r.ndim == 2 and r.shape[0] == r.shape[1] > 2 and torch.equal(r[1:, 1:], r[:-1, :-1])


def _group_class(names: list[str]) -> str:
    """Class of a rearrangement over several axes, by their roles."""
    roles_seen = set(names)
    if "b" in roles_seen and len(names) == 2 and not roles_seen & {"d", "h", "w"}:
        return "V6"
    if roles_seen & {"a", "n"} and not roles_seen & {"h", "w", "c"}:
        return "A10"
    if roles_seen <= {"h", "w", "c", "f"}:
        return "V5"
    return "V11"


def _name_weight(ev: Evidence, axes: tuple[int, ...], structure: Structure, text: str) -> Naming:
    leaf = structure.leaf
    if len(axes) > 1:
        return Naming(text, "W9", 0.97)
    if ev.reference.ndim >= 2 and axes[0] < ev.reference.ndim - 1 and ev.reference.shape[axes[0]] in {2, 6}:
        return Naming(f"{text}: the vectors of a modulation table", "W5", 0.97)
    if (
        axes[0] == 0
        and leaf.kind in {"deinterleave", "interleave"}
        and structure.kind in {"inner", "deinterleave", "interleave"}
    ):
        heads = structure.count or 1
        return Naming(
            f"{text}: the rotary order of {heads} head(s), harmless only if the rotation changes its pairing with it",
            "W4",
            0.95,
        )
    vector = ev.reference.numel() == ev.reference.shape[0]
    if vector and structure.kind == "roll" and 2 * abs(structure.shift) != ev.reference.shape[0]:
        return Naming(f"{text}: each entry is assigned to another row", "W13", 0.97)
    if structure.kind in {"roll", "blocks"} or leaf.kind == "roll":
        count = structure.count or 2
        label = f"{ev.site} {ev.module}".lower()
        modulation = (count in {2, 6} and any(word in label for word in MODULATION_WORDS)) or count == 6
        return Naming(text, "W5" if modulation else "W3", 0.95)
    return Naming(text, "W3", 0.93)


def _name_single(ev: Evidence, axis: int, role: str, structure: Structure, text: str) -> Naming:
    """Class of a rearrangement along one axis of something that is not a weight."""
    leaf, size = structure.leaf, ev.reference.shape[axis]
    if not ev.reference.is_floating_point() and ev.reference.ndim == 1 and ev.kind != "schedule":
        return Naming(f"{text}: positions are counted from another start", "P2", 0.97)
    if role == "a" and size > 2 and torch.equal(ev.reference.select(axis, 0), ev.reference.select(axis, 1)):
        return Naming(f"{text}: shared heads are tiled instead of repeated", "A6")
    last = axis == ev.reference.ndim - 1
    if ev.kind in {"mask", "schedule"}:
        return Naming(text, "A3" if ev.kind == "mask" else "T5", 0.9)
    if ev.kind == "kv" and ev.reference.ndim == 5:
        return Naming(f"{text}: the remembered frames of a convolution", "V2")
    if ev.kind == "kv" and role in {"n", "f"}:
        return Naming(text, "K1", 0.95)
    if role == "c":
        return _name_channels(text, leaf, size)
    if last and role == "d":
        return _name_features(ev, structure, text, size)
    if role == "n" and size in {2, 3, 6, 9} and _vectors_of_a_table(ev, size):
        return Naming(f"{text}: the vectors of a modulation", "W5")
    if role == "n":
        return _name_tokens(ev, structure, text)
    if role == "b" and _guided_in_passes(ev):
        return Naming(f"{text}: what the conditions are made of is in another order", "C5", 0.95)
    if role == "b" and leaf.kind in {"digits", "interleave", "deinterleave"}:
        return Naming(f"{text}: batch and frames folded in another order", "V6", 0.97)
    if role == "f" and "chunk" in ev.coords and ev.kind != "frame":
        return Naming(f"{text}: frames of one chunk", "V2", 0.95)
    if role == "b" and structure.kind == "roll" and 2 * abs(structure.shift) != size:
        return Naming(f"{text}: a sample gets what belongs to another", "V6", 0.9)
    by_role = {"f": "V1", "b": "C1", "a": "W3", "h": "V11", "w": "V11"}
    trust = {"f": 0.85, "b": 0.9, "a": 0.9}.get(role, 0.95)
    return Naming(text, by_role.get(role, "V11"), trust)


def _vectors_of_a_table(ev: Evidence, size: int) -> bool:
    """Whether the module has a table of as many vectors of this width."""
    shape = (size, ev.reference.shape[-1])
    return any(v is not None and tuple(v.shape[-2:]) == shape for pair in ev.parameters.values() for v in pair)


def _guided_in_passes(ev: Evidence) -> bool:
    """Whether the record comes before a loop that runs the branches of guidance one after the other: its batch is none of them."""
    if "step" in ev.coords:
        return False
    return any(ev.ref_at(site, {"step": 0, axis: 1}) is not None for site in ev.sites for axis in ("branch", "cfg"))


def _name_channels(text: str, leaf: Structure, size: int) -> Naming:
    if size in {3, 4} and leaf.kind in {"flip", "swaps", "arbitrary"}:
        return Naming(f"{text}: the colours are in the wrong order (RGB and BGR)", "C7")
    if leaf.kind in {"digits", "interleave", "deinterleave"} and size > 4:
        return Naming(text, "V5", 0.95)
    return Naming(text, "C5", 0.95)


def _name_features(ev: Evidence, structure: Structure, text: str, size: int) -> Naming:
    leaf = structure.leaf
    if leaf.kind in {"deinterleave", "interleave"} and structure.kind != "blocks":
        harmless = "harmless if queries, keys and the cache use the same order"
        return Naming(f"{text}: a rotary layout, {harmless}", "W4", 0.95, ev.reference.ndim >= 3)
    if structure.kind == "roll" and 2 * abs(structure.shift) == size:
        return Naming(text, "T2" if ev.reference.ndim <= 2 else "W5", 0.9)
    square = leaf.kind in {"digits", "interleave", "deinterleave"} and len(set(leaf.sizes)) == 1
    if structure.kind == "blocks" and square:
        return Naming(f"{text}: rows and columns of a patch", "V5", 0.93)
    if structure.kind in {"roll", "blocks"}:
        return Naming(text, "W5" if structure.count in {2, 6} else "W3", 0.85)
    if leaf.kind == "digits":
        return Naming(text, "V5", 0.9)
    return Naming(text, "W3", 0.85)


def _name_tokens(ev: Evidence, structure: Structure, text: str) -> Naming:
    if structure.leaf.kind in {"digits", "interleave", "deinterleave"} and structure.kind != "blocks":
        return Naming(f"{text}: the grid is walked in another order", "V5", 0.93)
    if structure.kind == "blocks" or structure.kind == "inner":
        return Naming(f"{text}: shards or groups gathered in another order", "D3", 0.93)
    return Naming(text, "A10" if structure.leaf.kind == "arbitrary" else "D3", 0.85)
