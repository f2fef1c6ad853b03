"""Other values and other functions in the same places: proven by replay (BUGS.md C2, N1, N2, N3, N7, V3, W2, W5, W10, W11, W12, W13, W14)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from parity.capture.operations import Op

from .evidence import Evidence, Explanation, Hypothesis
from .fits import comparable, sure
from .replay import (
    ACTIVATIONS,
    MOST_EDITS,
    MOVES,
    NORMS,
    Chain,
    Edit,
    attempt,
    chain,
    describe,
    parameters_of,
    residual_of,
)

NEAR = 400  # sites that are looked at for a value, the latest before this one first
TABLES = frozenset(["rope", "schedule"])


def other_constants(ev: Evidence) -> Iterator[Explanation]:
    """P is what the reference's operations give with the weights and tables that the port's operations used (W2, W11, W13)."""
    ours, theirs = (chain(ev, side) for side in ("ref", "port")) if comparable(ev, 4) else (None, None)
    if ours is None or theirs is None:
        return
    moved = _moved_constants(ours, theirs)
    if not moved:
        return
    edits: dict[int, Edit] = {}
    for i in {i for i, _, _, _ in moved}:
        again = ours.ops[i].again
        if again is not None:
            edits[i] = partial(_with_constants, again, {k: new for j, k, _, new in moved if j == i})
    residual = residual_of(ev, attempt(ours, edits), "ref")
    if residual is None:
        return
    op, old, _new = ours.ops[moved[0][0]], moved[0][2], moved[0][3]
    many = f" and {len(moved) - 1} more" if len(moved) > 1 else ""
    what = f"the {list(old.shape)} operand of {describe(op)}{many}"
    class_id, how, trust = _kind_of_change([(a, b) for _, _, a, b in moved])
    other = _known_elsewhere(ev, moved) if class_id == "W13" else None
    if other is not None:
        yield Explanation(
            other[0], residual, sure(ev, residual, 0.95), {"operands": len(moved), "source": op.source}, other[1]
        )
        return
    if class_id == "W11" and ev.kind in TABLES:
        class_id = "W10"  # a table that is kept, no weight
    if class_id == "W13" and _was_right(ev) and all(_is_weight(ev, a) for _, _, a, _ in moved):
        class_id, how, trust = "W14", "was the reference's at earlier calls: its memory holds other values by now", 0.93
    yield Explanation(
        f"{what} {how}", residual, sure(ev, residual, trust), {"operands": len(moved), "source": op.source}, class_id
    )


def _known_elsewhere(ev: Evidence, moved: Sequence[tuple[int, int, Tensor, Tensor]]) -> tuple[str, str] | None:
    """Say which of the reference's records the port's operations took instead of the right ones (W5 for parts of one module's result, else C2)."""
    swaps = {}
    for _, _, old, new in moved:
        right, wrong = _site_of(ev, old), _site_of(ev, new)
        if right is None or wrong is None or right == wrong:
            return None
        swaps[right] = wrong
    parts = all(a.rpartition(".")[0] == b.rpartition(".")[0] != "" for a, b in swaps.items())
    vectors = all(old.dim() < 3 or all(n == 1 for n in old.shape[1:-1]) for _, _, old, _ in moved)
    what = "; ".join(f"{wrong} where the reference takes {right}" for right, wrong in swaps.items())
    return f"the port takes {what}", "W5" if parts and vectors else "C2"


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
    return any(t.shape == value.shape and torch.equal(t.double(), value.double()) for t in parameters_of(ev))


def _was_right(ev: Evidence) -> bool:
    """Whether this site agreed at an earlier call, and the differing values are not only read by later ones."""
    before = list(itertools.takewhile(lambda row: dict(row[1]) != dict(ev.coords), ev.table))
    return bool(before) and all(error <= floor for _, _, error, floor in before)


def _moved_constants(ours: Chain, theirs: Chain) -> list[tuple[int, int, Tensor, Tensor]]:
    """Pair the outside values of equal shape that differ, in order; nothing when the two sides have other numbers of them."""
    left, right = ours.constants(), theirs.constants()
    lone = [(i, k, x) for i, k, x in left if not any(x.shape == y.shape and torch.equal(x, y) for _, _, y in right)]
    rest = [y for _, _, y in right if not any(x.shape == y.shape and torch.equal(x, y) for _, _, x in left)]
    found = []
    for i, k, x in lone:
        at = next((n for n, y in enumerate(rest) if y.shape == x.shape), None)
        if at is None:
            return []
        found.append((i, k, x, rest.pop(at)))
    return found if not rest else []


def _with_constants(again: Edit, constants: Mapping[int, Tensor], given: Sequence[Tensor]) -> list[Tensor]:
    return again([constants.get(k, x) for k, x in enumerate(given)])


def _kind_of_change(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[str, str, float]:
    """Say what became of the values: rounded, zero, or other ones."""
    for dtype in (torch.bfloat16, torch.float16, torch.float8_e4m3fn):
        name = str(dtype).removeprefix("torch.")
        if all(torch.equal(a.to(dtype).double(), b.double()) for a, b in pairs):
            return "W11", f"is the reference's rounded to {name}", 0.95
        if all(torch.equal(b.to(dtype).double(), a.double()) for a, b in pairs):
            return "W11", f"is not rounded to {name}, the reference's is", 0.95
    if all(not bool(b.any()) for _, b in pairs):
        return "W2", "is zero: never loaded or filled", 0.95
    return "W13", "has other values: another checkpoint, file or table", 0.6


def substituted(ev: Evidence) -> Iterator[Explanation]:
    """P is what the reference's operations give with one of them replaced by the port's own: another function, or another constant."""
    ours, theirs = (chain(ev, side) for side in ("ref", "port")) if comparable(ev, 4) else (None, None)
    if ours is None or theirs is None:
        return
    for i, j in islice(_counterparts(ours, theirs), MOST_EDITS):
        again = theirs.ops[j].again
        if again is None:
            continue
        residual = residual_of(ev, attempt(ours, {i: again}), "ref")
        if residual is None:
            continue
        a, b = ours.ops[i], theirs.ops[j]
        changed = (
            {k: (v, b.scalars.get(k)) for k, v in a.scalars.items() if b.scalars.get(k) != v}
            if a.name == b.name
            else {}
        )
        class_id, trust = _class_of_change(a, b, changed)
        what = (
            ", ".join(f"{k} {new} instead of {old}" for k, (old, new) in changed.items())
            or f"{b.name} instead of {a.name}"
        )
        text = (
            f"the port runs {describe(b)} with {what}"
            if changed
            else f"the port runs {describe(b)} where the reference runs {a.name}"
        )
        yield Explanation(
            text,
            residual,
            sure(ev, residual, trust),
            {"reference": a.name, "port": b.name, "changed": changed, "source": b.source},
            class_id,
        )
        return


def _counterparts(ours: Chain, theirs: Chain) -> Iterator[tuple[int, int]]:
    """Pair operations that take the same values and give others of the same shape."""
    for i in ours.cone:
        a = ours.ops[i]
        for j in theirs.cone if a.name not in MOVES else ():
            b = theirs.ops[j]
            if (
                b.name in MOVES
                or len(a.inputs) != len(b.inputs)
                or not a.outputs
                or not b.outputs
                or a.outputs[0].shape != b.outputs[0].shape
            ):
                continue
            same = all(
                x.shape == y.shape and x.dtype == y.dtype and torch.equal(x, y)
                for x, y in zip(a.inputs, b.inputs, strict=True)
            )
            if same and not torch.equal(a.outputs[0], b.outputs[0]):
                yield i, j


def _class_of_change(a: Op, b: Op, changed: Mapping[str, object]) -> tuple[str, float]:
    if {a.name, b.name} <= ACTIVATIONS:
        return "N2", 0.93
    if "eps" in changed:
        return "N1", 0.93
    if {"padding", "stride", "dilation", "padding_mode"} & set(changed):
        return "V3", 0.9
    if a.name == b.name and a.name in NORMS:
        return "N7", 0.8  # other axes or groups
    if a.name in NORMS or b.name in NORMS:
        return "N3", 0.7
    if changed:
        return "W12", 0.7  # a constant of the code or of the configuration
    return "N5", 0.5


HYPOTHESES = (
    Hypothesis("other constants", "W13", other_constants, 0.5),
    Hypothesis("operation replaced", "W12", substituted, 0.5),
)
