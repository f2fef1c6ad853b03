"""Each side of a case with its own interpreter: the reference is recorded in the one, the port is judged against the recording in the other."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from parity.boundary.text import one_line
from parity.case.jobs import Job
from parity.errors import CaseError, ParityError, SideError
from parity.report.saved import read_results
from parity.result import Result

_HOME = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Interpreters:
    """The Python of each side, and the folders of cases."""

    reference: Path
    port: Path
    cases: Sequence[Path] = ()

    def __post_init__(self) -> None:
        for side in ("reference", "port"):
            path = getattr(self, side)
            if not (path.is_file() and os.access(path, os.X_OK)):
                raise CaseError(f"--{side}-python: {path} is no program")


def run_apart(job: Job, pythons: Interpreters, zoom: str = "") -> Result:
    """Run one job; the traces are thrown away. Raises SideError, one line, when a side fails."""
    dtype, label = str(job.setting.dtype).removeprefix("torch."), f"case:{job.case.label}"
    cases = [word for folder in pythons.cases for word in ("--cases", str(folder))]
    with tempfile.TemporaryDirectory(prefix="parity-") as folder:
        trace, answer = Path(folder) / "reference.trace", Path(folder) / "result.json"
        kept = ["--full", "--floors", "--precise", ".*", "--operations", ".*", "--dtype", dtype]
        kept += ["--seed", str(job.setting.seed), *cases, "-o", str(trace), label]
        _run(pythons.reference, ["-m", "parity.capture", *kept], "reference", (0,))
        words = ["-m", "parity", "against", str(trace), label, "--json", str(answer), *cases]
        for option, chosen in (("--fault", job.fault), ("--variation", job.variation)):
            words += [option, chosen.name] if chosen is not None else []
        _run(pythons.port, [*words, *(["--zoom", zoom] if zoom else [])], "port", (0, 1))
        (result,) = read_results([answer])
    return result


def _run(python: Path, words: Sequence[str], side: str, good: Sequence[int]) -> None:
    """Run one side's interpreter, with this parity on its path unless it is installed there."""
    environment = dict(os.environ)
    if _HOME.name != "site-packages":
        known = [str(_HOME), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(known)
    done = subprocess.run([str(python), *words], env=environment, capture_output=True, text=True, check=False)
    if done.returncode in good:
        return
    said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1].removeprefix("parity: ")
    kind: type[ParityError] = CaseError if done.returncode == 2 else SideError
    raise kind(f"the {side} under {python}: {one_line(said, 200)}")
