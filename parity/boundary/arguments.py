"""Arguments of the public functions: each is checked where it is given, and refused in one line that says what is expected."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

from parity.boundary.text import one_line
from parity.errors import CaseError


def share(name: str, value: Any) -> float:
    """Return a share. Raises CaseError for what is none."""
    if not _is_number(value) or not 0.0 <= value <= 1.0:
        raise CaseError(f"{name}: {_shown(value)} is no share from 0 to 1")
    return float(value)


def limit(name: str, value: Any) -> float:
    """Return a tolerance. Raises CaseError for what limits nothing."""
    if not _is_number(value) or not 0.0 <= value < float("inf"):
        raise CaseError(f"{name}: {_shown(value)} is no tolerance: give a finite number, 0 or larger")
    return float(value)


def number(name: str, value: Any) -> float:
    """Return a number, also one given as text. Raises CaseError for what is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise CaseError(f'{name}: {_shown(value)} is neither "auto" nor a number') from None


def text(name: str, value: Any) -> str:
    """Return a text. Raises CaseError for what is none."""
    if not isinstance(value, str):
        raise CaseError(f"{name}: {_shown(value)} is no text")
    return value


def names(name: str, value: Any) -> list[str]:
    """Return several texts. Raises CaseError for one text alone (its letters would be taken one by one) and for anything else."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(v, str) for v in value):
        raise CaseError(f"{name}: {_shown(value)} is no list of names: give ['...']")
    return list(value)


def function(name: str, value: Any, of: str) -> Any:
    """Return a function, or None. Raises CaseError, which says what the function is of."""
    if value is not None and not callable(value):
        raise CaseError(f"{name}: {_shown(value)} is no function: give {of}")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    return one_line(repr(value), 60)
