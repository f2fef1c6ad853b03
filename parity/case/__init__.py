"""What to run: cases, where they are found, and latents that are the same on every machine."""

from parity.case.case import (
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

__all__ = [
    "Case",
    "Expectation",
    "Fault",
    "Golden",
    "GoldenEntry",
    "GoldenRun",
    "Relation",
    "Setting",
    "Side",
    "System",
    "Tolerance",
    "Variation",
]
