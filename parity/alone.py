"""The port without a reference: the invariants that its case declares."""

from __future__ import annotations

from parity.case import Case, Fault, Setting, Variation
from parity.compare.invariants import broken, checked
from parity.pipeline import dtype_of_case
from parity.result import Coverage, Culprit, Result
from parity.run.side import run_side


def run_alone(
    case: Case, setting: Setting | None = None, *, fault: Fault | None = None, variation: Variation | None = None
) -> Result:
    """Run the port without a reference and judge the case's invariants alone. Raises SideError when it fails to build or run."""
    setting = setting or Setting(dtype=dtype_of_case(case, fault, variation))
    inject = (fault.inject if fault else None) or (variation.inject if variation else None)
    port = run_side(case, "port", setting, inject=inject).trace
    found, _ = broken(case.invariants, port)
    count = checked(case.invariants, port)
    verdict = "incomparable" if not count else "diverged" if found else "match"
    first = found[0] if found else None
    culprit = Culprit(first.module or first.site, site=first.site, coords=dict(first.coords)) if first else None
    names = ", ".join(law.name for law in case.invariants) or "none"
    return Result(
        verdict=verdict,  # type: ignore[arg-type]
        first=first,
        culprit=culprit,
        causes=(),
        coverage=Coverage(compared=count, reference=0, port=len(port)),
        divergences=tuple(found),
        culprits=(culprit,) if culprit else (),
        notes=(f"the port alone, no reference: {count} records under the invariants {names}",),
        environment={
            "reference": {},
            "port": dict(port.manifest.environment),
            "differences": [],
            "dtype": port.manifest.dtype,
            "seed": setting.seed,
        },
        case=case.label,
        system=case.system,
        command=f"parity run {case.label} --alone",
        fault=fault.name if fault else None,
        variation=variation.name if variation else None,
    )
