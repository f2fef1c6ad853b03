"""`parity capture`: record a trace of a script or a callable that was never written for it."""

from __future__ import annotations

import dataclasses
import runpy
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from parity.boundary.callables import load_callable
from parity.boundary.failing import failing
from parity.boundary.patterns import Pattern
from parity.boundary.text import one_line
from parity.capture.environment import describe_environment
from parity.capture.parameters import describe_parameters
from parity.capture.probes import Modules
from parity.capture.recorder import Recorder
from parity.errors import CaseError
from parity.trace import Manifest
from parity.trace.names import NameMap, load_names
from parity.trace.writer import TraceWriter, check_trace_target, load_complete


def capture_command(
    target: str, args: list[str], out: Path, modules: str, model: str, full: bool, names: Path | None
) -> int:
    """Run `target` (a script, or package.module:callable) and record the root modules it calls; return the number of records."""
    Pattern(modules, "--modules")
    check_trace_target(out)
    work = _resolve(target, args)
    name_map = load_names(names) if names is not None else NameMap()
    manifest = Manifest(environment=describe_environment(), complete=False, notes=(f"captured from {target}",))
    kept = "" if load_complete(out) is None else "; the earlier trace stays"
    end = kept or f"; the trace in {out} is incomplete"
    with TraceWriter(out, manifest) as writer, RootCapture(writer, modules, model, full, name_map) as roots:
        with failing(target, end):
            work()
        if not roots.count:
            of = f" of class {one_line(model, 60)}" if model else ""
            raise CaseError(f"{target} called no module{of}: nothing was recorded{kept}")
    return roots.count


class RootCapture:
    """Attach a recorder to each root module when it is first called (a root is called while no other module runs)."""

    def __init__(self, writer: TraceWriter, pattern: str, model: str, full: bool, names: NameMap) -> None:
        self.writer, self.pattern, self.model, self.full, self.names = writer, pattern, model, full, names
        self.recorders: dict[int, tuple[nn.Module, Recorder]] = {}
        self.count = 0
        self._lock = threading.RLock()
        self._depths = threading.local()  # of running modules, in each thread

    def __enter__(self) -> RootCapture:
        self._handles = [
            nn.modules.module.register_module_forward_pre_hook(self._before),
            nn.modules.module.register_module_forward_hook(self._after, always_call=True),
        ]
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        for handle in self._handles:
            handle.remove()
        for _, recorder in self.recorders.values():
            recorder.__exit__(kind, *rest)
            self.writer.note(recorder.trace.manifest.notes)

    def write(self, record: Any, tensor: Any) -> None:
        """Give records their place in the one order of the whole run."""
        with self._lock:
            self.writer.write(dataclasses.replace(record, order=self.count), tensor)
            self.count += 1

    def _before(self, module: nn.Module, args: Any) -> None:
        depth = getattr(self._depths, "now", 0)
        self._depths.now = depth + 1
        if depth == 0 and (not self.model or type(module).__name__ == self.model):
            self._attach(module, args)

    def _attach(self, module: nn.Module, args: Any) -> None:
        with self._lock:
            if id(module) in self.recorders:
                return
            index = len(self.recorders)
            prefix = "" if index == 0 else f"{type(module).__name__}.{index}."
            probe = Modules(module, pattern=self.pattern, prefix=prefix)
            recorder = Recorder([probe], keep=self.full, names=self.names, sink=self)
            recorder.__enter__()
            self.recorders[id(module)] = (module, recorder)
            self.writer.describe(describe_parameters(module, prefix))
            # The root's own hook was attached too late for the call that has just begun: begin it by hand.
            if not isinstance(module, torch.jit.ScriptModule):
                list(module._forward_pre_hooks.values())[-1](module, args, {})

    def _after(self, module: nn.Module, args: Any, result: Any) -> None:
        self._depths.now = max(0, getattr(self._depths, "now", 0) - 1)


def _resolve(target: str, args: list[str]) -> Any:
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
