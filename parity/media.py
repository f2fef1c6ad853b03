"""From traces to what people would rather look at than read: frames, caches, positions and masks. Arrays only; the report draws them."""

from __future__ import annotations

from typing import Any

from parity.case import Case
from parity.execute import Runs


def collect_media(case: Case, runs: Runs) -> Any:
    """Gather the pictures of one case for its report."""
    raise NotImplementedError
