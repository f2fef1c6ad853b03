"""Run the harness on mutants and say what it found of each: seen, placed, on the right line, named, proven."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from parity.api import check as check_models
from parity.errors import ParityError
from parity.lab.mutation.engine import Mutant, Workshop
from parity.lab.mutation.families import Family
from parity.result import Result


@dataclass(frozen=True)
class Named:
    """One cause that was named: its class, its grade of proof, the test's own score, its confidence, and whether the class is right."""

    class_id: str
    proof: str
    score: float
    confidence: float
    right: bool
    text: str


@dataclass(frozen=True)
class Outcome:
    """What the harness said of one mutant."""

    family: str
    half: str
    name: str
    kind: str
    topic: str
    function: str
    modules: tuple[str, ...]
    classes: tuple[str, ...]
    renamed: bool
    verdict: str
    detected: bool
    module: bool = False
    line: bool = False
    culprit: str = ""
    source: str = ""
    causes: tuple[Named, ...] = ()
    seconds: float = 0.0  # of processor time

    @property
    def top1(self) -> bool:
        return any(cause.right for cause in self.causes[:1])

    @property
    def top3(self) -> bool:
        return any(cause.right for cause in self.causes[:3])

    @property
    def verified(self) -> bool:
        return any(cause.proof == "verified" for cause in self.causes[:1])

    @property
    def verified_wrong(self) -> bool:
        return any(cause.proof == "verified" and not cause.right for cause in self.causes)


@dataclass(frozen=True)
class FamilyOutcome:
    """The outcomes of one family; `aside` counts the edits that were tried and are no mutants, by reason; `clean`: verdicts of its right twins."""

    family: str
    half: str
    outcomes: tuple[Outcome, ...]
    aside: dict[str, int] = field(default_factory=dict)
    clean: tuple[str, ...] = ()


def judge_family(family: Family, count: int, seed: int) -> FamilyOutcome:
    """Make `count` mutants of a family and its right twin (under other names), and run the harness on each."""
    import torch

    torch.set_num_threads(1)
    with Workshop(family) as shop:
        clean = (_verdict(shop, shop.clean(rename=True)),)
        outcomes = tuple(judge(shop, mutant) for mutant in shop.sample(count, seed))
        return FamilyOutcome(family.name, family.half, outcomes, dict(shop.counts), clean)


def check(shop: Workshop, port: Any) -> Result:
    """Run the harness on a family's model and a port of it, as a user would: no map of names, no hint."""
    if shop.family.run is None:
        return check_models(shop.reference, port, shop.family.inputs())
    return check_models((shop.family.run, shop.reference), (shop.family.run, port), shop.family.inputs())


def judge(shop: Workshop, mutant: Mutant) -> Outcome:
    """Run the harness on one mutant."""
    start, edit = time.process_time(), mutant.edit
    known = (
        shop.family.name,
        shop.family.half,
        edit.name,
        edit.kind,
        edit.topic,
        edit.function,
        edit.modules,
        edit.classes,
        mutant.renamed,
    )
    try:
        result = check(shop, mutant.port)
    except Exception as error:  # a crash of the harness is a miss, told as such
        return Outcome(*known, f"failed: {type(error).__name__}: {str(error)[:200]}", False)
    culprit = result.culprit
    return Outcome(
        *known,
        verdict=result.verdict,
        detected=result.verdict == "diverged",
        module=culprit is not None and is_one_of(culprit.module, edit.modules),
        line=culprit is not None and is_on(culprit.source or "", mutant),
        culprit=culprit.module if culprit else "",
        source=(culprit.source or "") if culprit else "",
        causes=tuple(
            Named(c.class_id, getattr(c, "proof", "") or "", c.score, c.confidence, c.class_id in edit.classes, c.text[:300])
            for c in result.causes
        ),
        seconds=time.process_time() - start,
    )  # fmt: skip


def _verdict(shop: Workshop, port: Any) -> str:
    try:
        return check(shop, port).verdict
    except ParityError as error:
        return f"failed: {error}"


def is_one_of(module: str, paths: tuple[str, ...]) -> bool:
    """Tell whether a culprit is one of the modules that ran the edited statement; the root is called "model"."""
    return module in paths or ("" in paths and module in ("", "model"))


def is_on(source: str, mutant: Mutant) -> bool:
    """Tell whether "file:line" lies on the edited statement: in the port's copy, or in the reference's file where something is missing."""
    file, _, line = source.rpartition(":")
    on = file in (mutant.file, mutant.edit.file) and line.isdecimal()
    return on and mutant.edit.first <= int(line) <= mutant.edit.last


def every_cause(outcomes: tuple[Outcome, ...]) -> Iterator[Named]:
    """Yield all causes that were named for mutants."""
    return (cause for outcome in outcomes for cause in outcome.causes)


def aside(found: tuple[FamilyOutcome, ...]) -> Counter[str]:
    """Return how many edits were set aside, by reason."""
    total: Counter[str] = Counter()
    for family in found:
        total.update({why: n for why, n in family.aside.items() if why != "kept"})
    return total
