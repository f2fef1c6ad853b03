"""What to run: cases, where they are found, and latents that are the same on every machine."""

from parity.case.case import (
    Bench,
    Case,
    Expectation,
    Fault,
    Golden,
    GoldenEntry,
    GoldenRun,
    Relation,
    Setting,
    Side,
    System,
    Tolerance,
    Variation,
)
from parity.case.invariants import Breach, Invariant

__all__ = [
    "Bench",
    "Breach",
    "Case",
    "Expectation",
    "Fault",
    "Golden",
    "GoldenEntry",
    "GoldenRun",
    "Invariant",
    "Relation",
    "Setting",
    "Side",
    "System",
    "Tolerance",
    "Variation",
]
