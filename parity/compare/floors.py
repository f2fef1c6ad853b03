"""How large an error a right port may have: measured at each site, not guessed.

The floor of a record is FACTOR times the error that the reference itself makes there against its own run in higher precision, pooled over
the coordinates of the site (one sample may be lucky), and at least a few units of roundoff of the dtype. Foreign traces without a second run get a fixed
relative tolerance per dtype.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from parity.align.pairs import Pair
from parity.trace import Record

FACTOR = 4.0  # ANCHORS F2: c = 4..10 gave no false alarm with any of four calibrations
NOISE = 2.0  # times what roundings of its values do in the reference: the difference of two samples against one
UNIT = {
    "float64": 2.0**-53,
    "float32": 2.0**-24,
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
    "complex64": 2.0**-24,
    "complex128": 2.0**-53,
}
UNITS = {"float64": 64.0, "float32": 8.0, "float16": 2.0, "bfloat16": 2.0, "complex64": 8.0, "complex128": 64.0}
FIXED = {"float64": 1e-9, "float32": 2e-5, "float16": 4e-3, "bfloat16": 2e-2, "complex64": 2e-5, "complex128": 1e-9}
ISOLATION = 2e-6  # one threshold for every model and dtype, once rounding is out of the way (ANCHORS F4)
ROUNDOFF = (
    512 * 2.0**-24
)  # float32 values on float32 arithmetic of another order; a cast to fp16 or TF32 anywhere is larger
SAME_IN_DOUBLE = 2.0**-23  # of sites whose formula is the same, on the same inputs in float64; constants may be float32
FRAME = 2e-3  # pictures are rounded to 256 levels: a quarter of a level rms on mid grey (BUGS.md section 5: +-1 level)
_COARSE_FLOAT8 = 2.0**-4


@dataclass(frozen=True)
class Floors:
    """The floors of one comparison.

    local: key -> the reference's own error there. pooled: site -> the largest of them. ports: the same of the port, by its own sites. levels: site of pictures in bytes -> the most
    levels that a byte of the reference's own is off. fixed: a tolerance for everything (foreign
    traces, or the user's rtol); `absolute` adds an absolute one. noise: declared by the case, regular expression for sites -> relative error.
    """

    local: Mapping[str, float] = field(default_factory=dict)
    pooled: Mapping[str, float] = field(default_factory=dict)
    ports: Mapping[str, float] = field(default_factory=dict)
    levels: Mapping[str, float] = field(default_factory=dict)
    fixed: float | None = None
    absolute: float = 0.0
    measured: bool = False
    least: float = 0.0
    noise: Mapping[str, float] = field(default_factory=dict)

    def of(self, pair: Pair) -> float:
        """Return the relative L2 error that a right port may have at this record."""
        declared = max((e for p, e in self.noise.items() if re.fullmatch(p, pair.reference.site)), default=0.0)
        return max(declared, self._own(pair))

    def _own(self, pair: Pair) -> float:
        dtype = coarser(pair.reference.dtype, pair.port.dtype)
        if not self.measured:
            return self.fixed if self.fixed is not None else FIXED.get(dtype, _COARSE_FLOAT8)
        unit = UNIT.get(dtype, _COARSE_FLOAT8)
        port = pair.port.origin or pair.port.site
        own = max(self.pooled.get(pair.reference.site, 0.0), self.ports.get(port, 0.0))
        least = FRAME if pair.reference.kind == "frame" else self.least
        return max(FACTOR * own, UNITS.get(dtype, 1.0) * unit, least)


def coarser(left: str, right: str) -> str:
    """Return the dtype name with the larger unit of roundoff."""
    return left if UNIT.get(left, _COARSE_FLOAT8) >= UNIT.get(right, _COARSE_FLOAT8) else right


def measured(
    errors: Mapping[str, float],
    records: Mapping[str, Record],
    least: float = 0.0,
    levels: Mapping[str, float] | None = None,
) -> Floors:
    """Build floors from the reference's own errors (key -> relative L2 against its higher-precision run)."""
    pooled: dict[str, float] = {}
    for key, error in errors.items():
        if error == error and error != float("inf"):
            site = records[key].site
            pooled[site] = max(pooled.get(site, 0.0), error)
    return Floors(local=dict(errors), pooled=pooled, levels=levels or {}, measured=True, least=least)


def is_low_precision(dtype: torch.dtype) -> bool:
    return dtype in (torch.bfloat16, torch.float16)
