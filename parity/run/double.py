"""A run in float64 that goes on where a module refuses it: its own code computes in float32, or else in the dtype of the deployed run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from parity.case import Case, Held, Setting, Side
from parity.errors import SideError
from parity.run.side import SideRun, run_side

_MOST = 64  # modules that are held back before the attempt is given up


def run_double(case: Case, which: str, setting: Setting, **options: Any) -> tuple[Case, SideRun]:
    """Run one side in float64. Returns the case, with the modules that refuse it held back from now on, and the run.

    Raises SideError when the side fails for another reason, or all the same.
    """
    first: SideError | None = None
    for _ in range(_MOST):
        try:
            return case, run_side(case, which, setting, upcast=True, **options)
        except SideError as error:
            first = first or error
            side: Side = getattr(case, which)
            known = None if error.module is None else side.held.get(error.module)
            dtype = _next_dtype(known.dtype if known else None, setting.dtype)
            if error.module is None or dtype is None:
                raise first from error
            held = Held(which, error.module, dtype, known.reason if known else _reason(error))
            case = with_held(case, which, {**side.held, error.module: held})
    assert first is not None
    raise first


def with_held(case: Case, which: str, held: Mapping[str, Held]) -> Case:
    """Return the case with modules of one side held back in every run in float64."""
    return replace(case, **{which: replace(getattr(case, which), held=dict(held))}) if held else case


def _next_dtype(tried: torch.dtype | None, deployed: torch.dtype) -> torch.dtype | None:
    """Return what a module tries next: float32, then the deployed dtype; None when it has tried both."""
    if tried is None:
        return torch.float32
    return deployed if tried == torch.float32 and deployed not in (torch.float32, torch.float64) else None


def _reason(error: SideError) -> str:
    text = str(error.__cause__ or error).strip().splitlines()
    return (text[0] if text else type(error.__cause__).__name__)[:160]
