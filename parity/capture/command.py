"""`parity capture`: record a trace of a script or a callable that was never written for it."""

from __future__ import annotations

import dataclasses
import runpy
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from parity.boundary.callables import load_callable
from parity.boundary.failing import failing
from parity.boundary.patterns import own_pattern
from parity.boundary.text import one_line
from parity.capture.environment import describe_environment
from parity.capture.parameters import describe_parameters
from parity.capture.probes import Modules
from parity.capture.recorder import Recorder
from parity.capture.roots import RootCalls, RootWatch, gather_calls, prefix_of
from parity.errors import CaseError
from parity.trace import Manifest
from parity.trace.names import NameMap, load_names
from parity.trace.writer import TraceWriter, check_trace_target, load_complete

CASE = "case:"  # what the name of a case begins with, where a script or a callable may stand, too


def capture_command(
    target: str,
    args: list[str],
    out: Path,
    modules: str = ".*",
    model: str = "",
    full: bool = False,
    names: Path | None = None,
    floors: bool = False,
    noise: Mapping[str, float] | None = None,
    precise: str = "",
    operations: str = "",
    dtype: str | None = None,
    seed: int = 0,
    cases: Sequence[Path] | None = None,
) -> int:
    """Run `target` (a script, or package.module:callable) and record the root modules it calls; return the number of records.

    floors: make the calls of its root modules again in float64, with moved weights and with roundings, and store what that shows. noise: declared,
    regular expression for sites -> relative error. dtype, seed, cases: of `case:SYSTEM/NAME`, whose reference is recorded. precise, operations: of which modules values in float64 and operations are kept (they imply floors).
    """
    own_pattern(modules, "--modules")
    check_trace_target(out)
    if target.startswith(CASE):
        from parity.measured import Kept, capture_named

        wanted = Kept(full, precise, operations, noise or {})
        return len(capture_named(target.removeprefix(CASE), wanted, out, dtype, seed, cases))
    work = program_of(target, args)
    kept = "" if load_complete(out) is None else "; the earlier trace stays"
    noted = f"captured from {target}"
    if floors or precise or operations:
        from parity.measured import Kept, capture_calls

        wanted = Kept(full, precise, operations, noise or {})
        return len(capture_calls(gather_roots(target, work, model, kept), modules, wanted, out, (noted,)))
    name_map = load_names(names) if names is not None else NameMap()
    declared = {"noise": dict(noise)} if noise else {}
    manifest = Manifest(environment=describe_environment(), complete=False, notes=(noted,), floors=declared)
    end = kept or f"; the trace in {out} is incomplete"
    with TraceWriter(out, manifest) as writer, RootCapture(writer, modules, model, full, name_map) as roots:
        with failing(target, end):
            work()
        if not roots.count:
            raise CaseError(_none_called(target, model, kept))
    return roots.count


def gather_roots(target: str, work: Callable[[], object], model: str = "", end: str = "") -> RootCalls:
    """Run a program once and return the calls of its root modules. Raises CaseError when it calls none."""
    with failing(target, end):
        found = gather_calls(work, model)
    if not found.calls:
        raise CaseError(_none_called(target, model, end))
    return found


def noise_of(given: Sequence[str]) -> dict[str, float]:
    """Return declared noise from texts `REGEX=ERROR`. Raises CaseError, one line."""
    found = {}
    for text in given:
        pattern, equals, error = text.rpartition("=")
        try:
            value = float(error)
        except ValueError:
            value = -1.0
        if not equals or not 0 <= value < float("inf"):
            raise CaseError(f"--noise {one_line(text, 60)}: expected REGEX=ERROR, as in 'unet.*=0.03'")
        own_pattern(pattern, "--noise")
        found[pattern] = value
    return found


def _none_called(target: str, model: str, end: str) -> str:
    of = f" of class {one_line(model, 60)}" if model else ""
    return f"{target} called no module{of}: nothing was recorded{end}"


class RootCapture:
    """Attach a recorder to each root module when it is first called."""

    def __init__(self, writer: TraceWriter, pattern: str, model: str, full: bool, names: NameMap) -> None:
        self.writer, self.pattern, self.full, self.names = writer, pattern, full, names
        self.recorders: dict[int, tuple[nn.Module, Recorder]] = {}
        self.count = 0
        self._lock = threading.RLock()
        self._watch = RootWatch(self._attach, model)

    def __enter__(self) -> RootCapture:
        self._watch.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._watch.__exit__()
        for _, recorder in self.recorders.values():
            recorder.__exit__(kind, *rest)
            self.writer.note(recorder.trace.manifest.notes)

    def write(self, record: Any, tensor: Any) -> None:
        """Give records their place in the one order of the whole run."""
        with self._lock:
            self.writer.write(dataclasses.replace(record, order=self.count), tensor)
            self.count += 1

    def _attach(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with self._lock:
            if id(module) in self.recorders:
                return
            prefix = prefix_of(module, len(self.recorders))
            probe = Modules(module, pattern=self.pattern, prefix=prefix)
            recorder = Recorder([probe], keep=self.full, names=self.names, sink=self)
            recorder.__enter__()
            self.recorders[id(module)] = (module, recorder)
            self.writer.describe(describe_parameters(module, prefix))


def program_of(target: str, args: list[str]) -> Callable[[], object]:
    """Return what runs a script or a package.module:callable with arguments. Raises CaseError where there is none."""
    if target.endswith(".py"):
        path = Path(target)
        if not path.is_file():
            raise CaseError(f"no script at {target}")
        return lambda: _run_script(path, args)
    function = load_callable(target)
    return lambda: function(*args)


def _run_script(path: Path, args: list[str]) -> None:
    with _arguments([str(path), *args], str(path.resolve().parent)):
        runpy.run_path(str(path), run_name="__main__")


@contextmanager
def _arguments(argv: list[str], folder: str) -> Any:
    before, path = sys.argv, list(sys.path)
    sys.argv = argv
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.argv, sys.path[:] = before, path
