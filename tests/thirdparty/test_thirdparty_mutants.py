"""Small edits of a model that no one here wrote, none of them chosen: each that changes the output is seen, placed and explained."""

from __future__ import annotations

from functools import cache

import torch
from thirdparty_mutants import Mutant, build_ltx, ltx_inputs, mutants
from thirdparty_rebuild import renamed

import parity

SHARE = 3  # every third: enough kinds for the suite, quick enough for it


@cache
def reference() -> torch.nn.Module:
    return build_ltx()


def changes(mutant: Mutant) -> bool:
    """Whether an edit runs and changes the output."""
    with torch.no_grad():
        try:
            out = mutant.make(reference())(**ltx_inputs())[0]
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
            return False
        return not torch.equal(out, reference()(**ltx_inputs())[0])


def fails(mutant: Mutant) -> str:
    """Say what the harness missed; nothing when it saw the edit, placed it and gave a cause."""
    result = parity.check(reference(), renamed(mutant.make(reference())), ltx_inputs())
    if result.verdict != "diverged" or result.culprit is None:
        return result.verdict
    if not f"{result.culprit.module}.".startswith(f"{mutant.module}."):
        return f"placed in {result.culprit.module}"
    return "" if result.causes else "unexplained"


def test_edits_are_seen_placed_and_explained() -> None:
    judged = [mutant for mutant in list(mutants(reference()))[::SHARE] if changes(mutant)]
    assert len(judged) >= 14
    assert not {mutant.name: why for mutant in judged if (why := fails(mutant))}
