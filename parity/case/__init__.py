"""What to run: cases, where they are found, and latents that are the same on every machine.

The names below load on first use, so that a list of what there is needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parity.case.case import (
        Bench,
        Case,
        Expectation,
        Fault,
        Golden,
        GoldenEntry,
        GoldenRun,
        Relation,
        Rounded,
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
    "Rounded",
    "Setting",
    "Side",
    "System",
    "Tolerance",
    "Variation",
]


def __getattr__(name: str) -> Any:
    if name in ("Breach", "Invariant"):
        return getattr(importlib.import_module("parity.case.invariants"), name)
    if name in __all__:
        return getattr(importlib.import_module("parity.case.case"), name)
    raise AttributeError(f"module 'parity.case' has no attribute '{name}'")
