"""A side that is not there: its runs are read from what a trace keeps of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from parity.capture.module_state import ModuleState
from parity.capture.operations import WindowsClosed, frames_around
from parity.capture.step_store import StoredLog, read_log
from parity.case import Held, Setting, Side
from parity.errors import SideError, TraceError
from parity.run.side import SideRun
from parity.trace import Trace
from parity.trace.store import load_trace

DEPLOYED, DOUBLE, PRECISE = "deployed", "double", "precise"  # in the folder that the manifest names


@dataclass
class Recorded:
    """What a trace keeps: the run as deployed, the values in float64, and the operations of both runs, as far as they were asked for."""

    trace: Trace
    precise: Trace | None = None
    logs: Mapping[str, StoredLog] = field(default_factory=dict)

    def run(self, which: str, *, upcast: bool, moved: bool, watch: Any, around: Any) -> SideRun:
        """Answer for a run of the side: its trace; with `around` also its operations, fed to that in their order.

        Raises SideError for a run that was not recorded.
        """
        trace, log = self.precise if upcast else self.trace, self.logs.get(DOUBLE if upcast else DEPLOYED)
        if moved or trace is None:
            how = "moved weights" if moved else "float64 (capture it with --precise)"
            raise SideError(f"the {which} was recorded, and not with {how}")
        if around is not None and log is None:
            raise SideError(f"the {which} was recorded without its operations (capture it with --operations)")
        if log is None:
            return SideRun(trace, nn.Module())
        self._replay(trace, log, watch, around)
        return SideRun(trace, self.model(upcast), log.states(), {} if upcast else log.weights())

    def _replay(self, trace: Trace, log: StoredLog, watch: Any, around: Any) -> None:
        done, here = 0, frames_around()  # who runs both sides is no code of the port's own
        try:
            for event in log.events if watch is not None or around is not None else ():
                for number in range(done, event.at) if around is not None else ():
                    around.feed(number, lambda number=number: log.step(number))
                done = event.at
                record = trace.get(event.key) or self.trace.get(event.key)
                if watch is not None and record is not None:
                    watch(record, (*event.frames, *here))
        except WindowsClosed:
            return

    def model(self, upcast: bool = False) -> nn.Module:
        """Return a module tree that holds the recorded weights and buffers under their names; it computes nothing."""
        log = self.logs.get(DOUBLE if upcast else DEPLOYED)
        root = nn.Module()
        states = log.states() if log is not None else {}
        for path, listed in log.item.modules.items() if log is not None else ():
            owner = _grown(root, path, listed)
            state = states.get(path, ModuleState({}))
            for name, value in state.parameters.items():
                if "." not in name:
                    owner.register_parameter(name, nn.Parameter(value, requires_grad=False))
            for name, value in state.buffers.items():
                if "." not in name:
                    owner.register_buffer(name, value)
        return root

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights as the side was given them; none where its operations were not kept."""
        log = self.logs.get(DEPLOYED)
        return log.weights() if log is not None else {}

    @property
    def held(self) -> dict[str, Held]:
        """The modules that refused float64."""
        log = self.logs.get(DOUBLE)
        stated = log.item.held.items() if log is not None else ()
        return {site: Held("reference", site, getattr(torch, dtype), reason) for site, (dtype, reason) in stated}

    def side(self) -> Side:
        """Return it as a side."""
        return Side(
            build=lambda setting: self.model(),
            run=lambda model, inputs: None,
            probes=lambda model: (),
            modules=lambda model: {"": model},
            inputs=lambda setting: None,
            held=self.held,
            recorded=self,
        )

    def setting(self) -> Setting:
        """Return the setting that it ran in."""
        manifest = self.trace.manifest
        return Setting(getattr(torch, manifest.dtype or "float32"), "cpu", manifest.seed or 0)


def _grown(root: nn.Module, path: str, listed: bool) -> nn.Module:
    """Return a new module at a path below `root`, those around it made before; the root itself for the empty path."""
    if not path:
        return root
    above, _, name = path.rpartition(".")
    at = root
    for part in above.split(".") if above else ():
        if part not in at._modules:
            at.add_module(part, nn.Module())
        at = at.get_submodule(part)
    at.add_module(name, nn.ModuleList() if listed else nn.Module())
    return at.get_submodule(name)


def load_recorded(path: str | Path) -> Recorded:
    """Read a trace with all that it keeps for judging. Raises TraceError, one line."""
    trace = load_trace(path)
    folder = Path(path) / trace.manifest.judging
    if not trace.manifest.judging:
        return Recorded(trace)
    precise = load_trace(folder / PRECISE) if (folder / PRECISE).is_dir() else None
    names = [name for name in (DEPLOYED, DOUBLE) if (folder / f"{name}.json").is_file()]
    if precise is None and not names:
        raise TraceError(f"{path}: its manifest names {trace.manifest.judging}, and nothing is there")
    return Recorded(trace, precise, {name: read_log(folder / name) for name in names})


def chosen_by(pattern: str) -> Callable[[str], bool]:
    """Return what tells, by its path, whether a module is chosen; "" stands for the code outside of all, which `.*` chooses, too."""
    compiled = re.compile(pattern)
    return lambda module: compiled.fullmatch(module) is not None
