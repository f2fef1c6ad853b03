"""Causes from the fewest edits: both logs as graphs, the search, and what the edits are called."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from parity.capture.operations import Op
from parity.diagnose import hypotheses
from parity.diagnose.congruence import explain
from parity.diagnose.constants import name_constants
from parity.diagnose.evidence import Evidence
from parity.diagnose.expand import written_out
from parity.diagnose.fits import cached
from parity.diagnose.graph import Graph, build, unmade
from parity.diagnose.patch import patch_of
from parity.diagnose.prints import CLOSE, COARSE, Prints, near, print_of
from parity.diagnose.proposals import unknown_values
from parity.diagnose.search import Edit, Explanation, Search
from parity.diagnose.table import name_edit
from parity.diagnose.verify import Verified
from parity.diagnose.view import Named, parameters_of, point_of, told_ops
from parity.result import Cause

SECONDS = 4.0  # for the search at one divergence
MOST_OPS = 4000
EXACT = 1e-5  # of the difference: what a fact about two float64 values may leave
MOST_OF_A_FACT = 1 << 18  # numbers
FACTS = frozenset(
    [
        "rearranged",
        "rotary pairing",
        "rotation sign",
        "band order",
        "position axes",
        "position offset",
        "positions frozen",
        "rounded",
    ]
)
LAYOUTS = frozenset(
    ["A10", "V5", "V6", "V11", "D3", "W3", "W4", "W9"]
)  # what a rearranged value was meant to be is not in its numbers
TABLES = frozenset(["sigma shift", "table ends"])
PROOFS = ("verified", "replayed", "congruent", "identity", "hint")  # the strongest first
LARGE = 10  # operations in all regions: more say where, not what
# The share of right classes, by how sure the name is (200 edits of mutants of the tuning half and of pairs of two authors).
CONFIDENCE = {"sure": 0.77, "general": 0.45, "open": 0.2, "large": 0.2}  # replayed
VERIFIED = {"sure": 0.92, "general": 0.62, "open": 0.42, "large": 0.42}
GENERAL = ("N5", "W13", "V11", "C2")  # classes that say that something differs: the place is proven, the kind is not


@dataclass(frozen=True)
class Found:
    """An explanation with its edits' names."""

    explanation: Explanation
    names: tuple[Named, ...]
    late: bool


def find_edits(ev: Evidence) -> Found | None:
    """Return the fewest edits that explain a divergence; None where no log reaches or nothing closes."""
    if not 0 < len(ev.ref_ops) + len(ev.port_ops) <= 2 * MOST_OPS:
        return None
    if ev.reference.numel() != ev.port.numel() or not ev.error > 0:
        return None
    ref, port = graphs_of(ev)
    if ref is None or port is None:
        return None
    if near(print_of(ev.r), print_of(ev.p)):
        return None  # the same numbers in another order: a fact, not an edit
    limit = min(0.02, max(1e-6, 20 * CLOSE / ev.error))
    found, late = explain(ref, port, ev.r, ev.p, limit, SECONDS)
    if late:
        how = "the best so far is told" if found is not None else "nothing was found until then"
        ev.said.append(f"the search for edits at {ev.site} ended with its budget of {SECONDS:g} s: {how}")
    if found is None:
        return None
    if any(_from_python(e) for e in found.edits):
        return None
    bare = [e for e in found.edits if not e.reference.ops and not e.port.ops]
    if len(bare) == len(found.edits):
        if any(e.which in ref.made for e in bare):
            return None  # other values on equal ways, and no way to say what is done to them
        return Found(found, (name_constants(bare, ev),) * len(bare), late)
    return Found(found, tuple(_named(e, port, ev) for e in found.edits), late)


def _from_python(edit: Edit) -> bool:
    """Tell whether the values of an edit come from Python on both sides: what made them is not in the log."""
    ops = (*edit.reference.ops, *edit.port.ops)
    return bool(ops) and all(op.name == "lift_fresh" for op in ops)


def _named(edit: Edit, port: Graph, ev: Evidence) -> Named:
    """Name an edit by the table; where that has a general name only, by what relates its two values, if that is exact."""
    named = name_edit(edit, port, ev.kind)
    if named.sure and named.class_id not in GENERAL:
        return named
    pairs = [(edit.value, edit.other)]
    ref, own = told_ops(edit.reference), told_ops(edit.port)
    if len(ref) == len(own) == 1 and ref[0].name == own[0].name and len(ref[0].inputs) == len(own[0].inputs):
        given = list(zip(ref[0].inputs, own[0].inputs, strict=True))
        apart = [pair for pair in given if not near(print_of(pair[0]), print_of(pair[1]))]
        pairs += apart if len(apart) == 1 else given if not apart else []  # one operand says it where it alone differs
    for value, other in pairs:
        fact = fact_about(value, other)
        if fact is not None:
            return Named(fact[0], f"{fact[1]}: {named.text}", exact=True)
    return named


def tiled(value: Tensor, other: Tensor) -> bool:
    """Tell whether both hold a few groups several times along one axis (or a part of one), one side in turn and one side in a row."""
    for axis, n in enumerate(value.shape):
        for size in (k for k in range(4, n + 1) if n % k == 0):
            places = torch.arange(n)
            start, within = places - places % size, places % size
            for groups in (g for g in range(2, size) if size % g == 0):
                row, turn = (start + of * (size // groups) for of in (within // (size // groups), within % groups))
                for a, b in ((value, other), (other, value)):
                    if torch.allclose(a.index_select(axis, row), a) and torch.allclose(a.index_select(axis, turn), b):
                        return True
    return False


def fact_about(value: Tensor, other: Tensor) -> tuple[str, str] | None:
    """Return the class and the sentence of an exact relation of two values: a rearrangement, a rotation, a schedule, a rounding."""
    if value.shape != other.shape or not value.is_floating_point() or not 3 <= value.numel() <= MOST_OF_A_FACT:
        return None
    table = value.dim() == 1 and bool((value.diff() <= 0).all())
    if torch.equal(value, other) or (not table and value.numel() < 8):
        return None
    if tiled(value, other):
        return "A6", "what is shared is tiled (h % n) by one side and repeated (h // n) by the other"
    pair = Evidence(value, other, kind="schedule" if table else "activation")
    tests = [h for h in hypotheses() if h.name in (TABLES if table else FACTS)]
    for hypothesis in tests:
        for found in hypothesis.test(pair):
            if found.residual <= EXACT and not found.parameters.get("benign"):
                class_id = found.class_id or hypothesis.class_id
                return "V11" if class_id in LAYOUTS else class_id, found.text
    return None


def graphs_of(ev: Evidence) -> tuple[Graph | None, Graph | None]:
    """Return both sides' logs as graphs, built once."""
    return cached(ev, "graphs", lambda: _graphs(ev))


def _graphs(ev: Evidence) -> tuple[Graph | None, Graph | None]:
    ref_ops, port_ops = written_out(ev.ref_ops), written_out(ev.port_ops)
    ref, port = build(ref_ops, ev.r), build(port_ops, ev.p)
    if ref is None and port is not None and _has(port, ev.r):
        ref = unmade(ref_ops, ev.r)
    elif port is None and ref is not None and _has(ref, ev.p):
        port = unmade(port_ops, ev.p)
    return ref, port


def _has(graph: Graph, value: Tensor) -> bool:
    """Tell whether a side has a value that the other side goes on with as it is."""
    mine = print_of(value)
    return any(near(mine, graph.print(v), ordered=True) for v in range(len(graph.values)))


def open_ends(ev: Evidence, held: Iterable[Tensor]) -> bool:
    """Tell whether a value from before the window, no weight, differs between the sides: what made it has to be looked at.

    held: what the modules of both sides hold.
    """
    ref, port = graphs_of(ev)
    if ref is None or port is None or ev.reference.numel() != ev.port.numel():
        return False
    search = Search(ref, port, ev.r, ev.p, 1.0, 1.0, float("inf"), COARSE)
    weights = Prints((print_of(t) for t in {id(t): t for t in held}.values()), COARSE)
    return any(
        v not in graph.made and graph.values[v].numel() > 1 and not weights.has(graph.print(v))
        for graph, known in zip((ref, port), search.known(), strict=True)
        for v in unknown_values(graph, known)
    )


def causes_of(found: Found, ev: Evidence, verified: Verified | None = None) -> list[Cause]:
    """Return one cause: the first edit that has a name for sure, else the first.

    verified: what the whole port says with the edits undone.
    """
    edits, names = found.explanation.edits, found.names
    told = [n for n in range(len(names)) if edits[n].reference.ops or edits[n].port.ops] or list(range(len(names)))
    best = next((n for n in told if names[n].sure), told[0])
    named, edit = names[best], edits[best]
    both = any(e.reference.told and e.port.told for e in edits) and not named.exact
    grade = "large" if both and found.explanation.size > LARGE + 2 * len(edits) else "sure" if named.sure else "open"
    grade = "general" if grade == "sure" and named.class_id in GENERAL else grade
    text = named.text + (f" ({_count(edits)})" if len(edits) > 1 or edit.times > 1 else "")
    if verified is not None:
        many = "this one edit" if len(edits) == 1 else f"these {len(edits)} edits"
        text = f"verified: with {many} undone the port matches at all {verified.sites} sites: {text}"
    confidence = (VERIFIED if verified is not None else CONFIDENCE)[grade]
    return [
        Cause(
            name="edit",
            class_id=named.class_id,
            text=text,
            parameters=dict(parameters_of(edit)),
            residual=found.explanation.share,
            confidence=confidence,
            site=ev.site,
            score=confidence,
            patch=patch_of(edit) if len(edits) == 1 else None,
            proof="verified" if verified is not None else "replayed",
        )
    ]


def line_of(found: Found) -> Op | None:
    """Return the operation that the first edit with a sure name is about; None where the regions are too large to say."""
    edits, names = found.explanation.edits, found.names
    best = next((n for n in range(len(names)) if names[n].sure), None)
    both = any(e.reference.told and e.port.told for e in edits)
    large = both and found.explanation.size > LARGE + 2 * len(edits)
    return None if best is None or large else point_of(edits[best])


def merged(own: list[Cause], facts: Sequence[Cause], most: int = 5) -> tuple[Cause, ...]:
    """Return edits and facts as one list, the surest first; of one class only the first.

    An edit proves where and how much; where it has no name of its own, a fact that fits the values may say better what. Confidences that
    are equal to one decimal are equal: then the proof decides.
    """
    sure = {f.class_id: f.confidence for f in reversed(facts)}
    proven = [c for c in own if c.proof == "verified"]  # of two ways to one answer, the proof is shown
    own = [replace(c, confidence=max(c.confidence, sure.get(c.class_id, 0.0))) if c in proven else c for c in own]
    kept: dict[str, Cause] = {}
    for cause in sorted([*own, *facts], key=lambda c: (-round(c.confidence, 1), PROOFS.index(c.proof), -c.confidence)):
        kept.setdefault(cause.class_id, cause)
    return tuple(kept.values())[:most]


def _count(edits: tuple[Edit, ...]) -> str:
    times = sum(e.times for e in edits)
    many = f"{len(edits)} edits, " if len(edits) > 1 else ""
    return f"{many}{times} times in all" if times > len(edits) else f"{len(edits)} edits"
