"""parity: does a port of a model compute what its reference computes, and if not, where does it first depart, how far, and why?

The names below load on first use, so that `parity.capture` imports with torch, numpy and safetensors alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parity import capture
    from parity.api import assert_parity, check, compare
    from parity.capture.probes import Function, Modules, Scope, State
    from parity.case import Case, Expectation, Fault, Setting, Side, System, Variation
    from parity.errors import CaseError, ParityError, ParityFailure, SideError, TraceError
    from parity.locate.nonfinite import find_nonfinite
    from parity.result import Cause, Coverage, Culprit, Divergence, Result
    from parity.stand_in import against
    from parity.trace.store import load_trace

__version__ = "0.1.0"

_HOMES = {
    "parity.capture.probes": ("Function", "Modules", "Scope", "State"),
    "parity.case": ("Case", "Expectation", "Fault", "Setting", "Side", "System", "Variation"),
    "parity.api": ("assert_parity", "check", "compare", "find_nonfinite"),
    "parity.errors": ("CaseError", "ParityError", "ParityFailure", "SideError", "TraceError"),
    "parity.result": ("Cause", "Coverage", "Culprit", "Divergence", "Result"),
    "parity.stand_in": ("against",),
    "parity.trace.store": ("load_trace",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", "capture", *_HOME]


def __getattr__(name: str) -> Any:
    if name == "capture":
        return importlib.import_module("parity.capture")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'parity' has no attribute '{name}'")
