"""Constants that differ where the operations are the same: weights, tables and other values from outside (BUGS.md C2, W2, W5, W10, W11, W13, W14)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from .evidence import Evidence
from .search import Edit
from .view import Named, describe, number

NEAR = 400  # sites that are looked at for a value, the latest before this one first
TABLES = frozenset(["rope", "schedule"])


def name_constants(edits: Sequence[Edit], ev: Evidence) -> Named:
    """Say what became of the values that the port's operations take from outside."""
    pairs = [(e.value, e.other) for e in edits]
    elsewhere = _known_elsewhere(ev, pairs)
    if elsewhere is not None:
        return elsewhere
    if edits[0].kind == "exchanged":
        other = edits[0].other
        if ev.kind == "latent" and not _is_weight(ev, other):
            return Named(
                "C1", f"two {list(other.shape)} values that were made before are exchanged: the branches of guidance"
            )
        vectors = all(n == 1 for n in other.shape[1:-1]) and not _is_weight(ev, other)
        return Named("W5" if vectors else "W3", f"two {list(other.shape)} values that were made before are exchanged")
    many = f" and {len(edits) - 1} more" if len(edits) > 1 else ""
    where = describe(edits[0].user) if edits[0].user is not None else "the operation"
    class_id, how, sure = _kind_of_change(pairs)
    if class_id == "W13" and ev.parameters and not any(_is_weight(ev, a) or _is_weight(ev, b) for a, b in pairs):
        class_id, how = "C2", "is another value than in the reference"
    if (
        class_id == "W11"
        and (ev.held or ev.parameters)
        and not any(_is_weight(ev, a) or _is_weight(ev, b) for a, b in pairs)
    ):
        class_id = "W10" if ev.kind in TABLES else "N4"  # what the run itself makes
    if class_id == "W11" and ev.kind in TABLES:
        class_id = "W10"  # a table that is kept, no weight
    if class_id == "W13" and _was_right(ev) and all(_is_weight(ev, a) for a, _ in pairs):
        class_id, how, sure = "W14", "was the reference's at earlier calls: its memory holds other values by now", True
    return Named(class_id, f"the {list(edits[0].other.shape)} operand of {where}{many} {how}", sure)


def _kind_of_change(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[str, str, bool]:
    for dtype in (torch.bfloat16, torch.float16, torch.float8_e4m3fn):
        name = str(dtype).removeprefix("torch.")
        if all(torch.equal(a.to(dtype).double(), b.double()) for a, b in pairs):
            return "W11", f"is the reference's rounded to {name}", True
        if all(torch.equal(b.to(dtype).double(), a.double()) for a, b in pairs):
            return "W11", f"is not rounded to {name}, the reference's is", True
    if all(a.numel() == b.numel() == 1 for a, b in pairs):
        return "W12", f"is {number(pairs[0][1].item())} instead of {number(pairs[0][0].item())}", False
    if all(not bool(b.any()) for _, b in pairs):
        return "W2", "is zero in the port", True
    return "W13", "has other values: another checkpoint, file or table", False


def _known_elsewhere(ev: Evidence, pairs: Sequence[tuple[Tensor, Tensor]]) -> Named | None:
    """Say which of the reference's records the port's operations took instead of the right ones (W5 for parts of one module's result, else C2)."""
    swaps = {}
    for old, new in pairs:
        right, wrong = _site_of(ev, old), _site_of(ev, new)
        if right is None or wrong is None or right == wrong:
            return None
        swaps[right] = wrong
    parts = all(a.rpartition(".")[0] == b.rpartition(".")[0] != "" for a, b in swaps.items())
    vectors = all(old.dim() < 3 or all(n == 1 for n in old.shape[1:-1]) for old, _ in pairs)
    what = "; ".join(f"{wrong} where the reference takes {right}" for right, wrong in swaps.items())
    return Named("W5" if parts and vectors else "C2", f"the port takes {what}")


def _site_of(ev: Evidence, value: Tensor) -> str | None:
    sites = list(ev.sites)
    here = sites.index(ev.site) if ev.site in sites else len(sites)
    for i in [*range(here - 1, -1, -1), *range(here + 1, len(sites))][:NEAR]:
        known = ev.ref_at(sites[i], ev.coords)
        if known is None or known.numel() != value.numel() or not known.is_floating_point():
            continue
        if torch.allclose(known.double().flatten(), value.double().flatten(), rtol=1e-9, atol=0.0):
            return str(sites[i])
    return None


def _is_weight(ev: Evidence, value: Tensor) -> bool:
    own = (t for pair in ev.parameters.values() for t in pair if t is not None)
    known = (t for t in (*own, *ev.held) if t.is_floating_point())
    return any(t.shape == value.shape and torch.equal(t.double(), value.double()) for t in known)


def _was_right(ev: Evidence) -> bool:
    """Whether this site agreed at an earlier call, and the differing values are not only read by later ones."""
    before = list(itertools.takewhile(lambda row: dict(row[1]) != dict(ev.coords), ev.table))
    return bool(before) and all(error <= floor for _, _, error, floor in before)
