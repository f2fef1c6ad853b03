"""Runs of one side: as deployed, re-seated on the reference's state, upcast, or isolated (every observed value replaced by the reference's)."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from parity.align.pieces import Piece
from parity.capture import nested
from parity.capture.environment import describe_environment
from parity.capture.held import hold_back, released
from parity.capture.module_state import ModuleState, own_state, states_of
from parity.capture.operations import WindowsClosed
from parity.capture.probes import Gradients, Modules, Probe
from parity.capture.recorder import Override, Recorder
from parity.capture.returned import Watch
from parity.capture.upcast import keep_double, upcast_in_place
from parity.case import Case, Setting, Side
from parity.case.seeding import normal, seeded
from parity.errors import ParityError, SideError
from parity.result import format_key
from parity.trace import Manifest, Record, Trace
from parity.trace.names import NameMap


@dataclass(frozen=True)
class SideRun:
    """What one run left: its trace, and the model it ran."""

    trace: Trace
    model: Any
    states: Mapping[str, ModuleState] = field(default_factory=dict)  # of its modules while it ran, on request
    weights: Mapping[str, Tensor] = field(default_factory=dict)  # by name, as the run was given them, on request


@dataclass
class Runs:
    """The traces of one case, kept for the report and for tests."""

    reference: Trace
    port: Trace  # re-seated: every step from the reference's state
    precise: Trace | None = None  # the reference in float64
    isolated: Trace | None = None  # the port in float64, on the reference's values
    free: Trace | None = None  # the port left alone, for information
    pieces: Mapping[str, Piece] = field(default_factory=dict)  # calls of the port that are parts of the reference's
    recorded: Trace | None = None  # the port as it was recorded, before its calls were joined


Inject = Callable[[Any], AbstractContextManager[Any] | None]

_MOVABLE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)  # quantised payloads stay
JITTER = 2.0**-24  # one unit of roundoff of float32: what a table or weight may honestly be off by


def run_side(
    case: Case,
    which: str,
    setting: Setting,
    *,
    inject: Inject | None = None,
    upcast: bool = False,
    jitter: bool = False,
    override: Override | None = None,
    watch: Callable[[Record], None] | None = None,
    around: AbstractContextManager[Any] | None = None,
    digests: bool = False,
    sink: Any = None,
    keep: Any = True,
    states: bool = False,
    weights: bool = False,
) -> SideRun:
    """Build and run one side of a case.

    inject: a fault or variation. upcast: in float64. jitter: with every weight and buffer moved by one unit of roundoff. override: replaces
    recorded values in the run. around: entered around the run alone (operation recording). states, weights: return what the modules held.

    Raises SideError when the side fails to build or to run.
    """
    side: Side = getattr(case, which)
    if side.recorded is not None:
        answer: SideRun = side.recorded.run(which, upcast=upcast, moved=jitter, watch=watch, around=around)
        return answer
    held = {site: one.dtype for site, one in side.held.items()} if upcast else {}
    doing, model = f"{case.label}: building the {which}", None
    try:
        with ExitStack() as stack:
            stack.enter_context(seeded(setting.seed))
            inputs = _on_device((side.inputs or case.inputs)(setting), setting.device)
            model = side.build(setting)
            context = inject(model) if inject is not None else None
            stack.enter_context(context if context is not None else nullcontext())
            if upcast:
                model, inputs = (side.upcast or upcast_in_place)(model), upcast_in_place(inputs)
            if jitter:
                for prefix, module in side.modules(model).items():
                    move_weights(module, setting.seed, prefix)
            if upcast:
                stack.enter_context(keep_double())
                stack.enter_context(_eagerly())
                hold_back(side.modules(model), held)
            doing = f"{case.label}: running the {which}" + (" in float64" if upcast else "")
            probes = side.probes(model)
            trains = any(isinstance(probe, Gradients) for probe in probes)
            if trains and around is not None:  # the lines of a backward pass are those of the forward pass
                stack.enter_context(torch.autograd.set_detect_anomaly(True, check_nan=False))
                stack.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", message="Error detected in")  # the run stops at the last window
            recorder = Recorder(
                probes,
                keep=keep,
                digests=digests,
                names=case.names if which == "port" else NameMap(),
                override=override,
                watch=watch,
                sink=sink,
                manifest=Manifest(
                    system=case.system,
                    case=case.name,
                    side=which,
                    seed=setting.seed,
                    dtype=str(setting.dtype).removeprefix("torch."),
                    device=setting.device,
                    environment=describe_environment(),
                    complete=False,
                ),
            )
            kept = weights_of(side.modules(model)) if weights else {}
            kept = {name: value.clone() for name, value in kept.items()} if trains else kept  # a step changes them
            versions = {name: value._version for name, value in kept.items()}
            left = Watch(inputs, side.modules(model))
            with (
                torch.set_grad_enabled(trains),
                suppress(WindowsClosed),
                recorder,
                released(side.modules(model), held),
            ):
                with around or nullcontext():
                    result = side.run(model, inputs)
                    result = list(result) if isinstance(result, Iterator) else result
                recorder.record_end(result, left, _number(setting, upcast))
            kept = {name: value for name, value in kept.items() if value._version == versions[name]}
            return SideRun(recorder.trace, model, _states(side, model, recorder.probes) if states else {}, kept)
    except ParityError:
        raise
    except Exception as error:
        failure = SideError(f"{doing} failed: {type(error).__name__}: {_first_line(error)} ({_origin(error)})")
        failure.module = _failing(side, model, error)
        raise failure from error


def weights_of(roots: Mapping[str, torch.nn.Module]) -> dict[str, Tensor]:
    """Return the weights by site of their module and name, and the statistics that a module keeps beside its weights (not copied)."""
    found: dict[str, Tensor] = {}
    for prefix, root in roots.items():
        found |= {prefix + name: value.detach() for name, value in root.named_parameters(remove_duplicate=False)}
        for path, module in root.named_modules():
            if module._parameters:
                kept = {n: b for n, b in module._buffers.items() if n not in module._non_persistent_buffers_set}
                found |= {f"{prefix}{path}.{n}": b.detach() for n, b in kept.items() if b is not None}
    return {name: value for name, value in found.items() if value.numel() and not value.is_meta and _plain(value)}


def _plain(value: Tensor) -> bool:
    return not torch.nn.parameter.is_lazy(value) and type(value) in (Tensor, torch.nn.Parameter)


def _states(side: Side, model: Any, probes: Sequence[Probe]) -> dict[str, ModuleState]:
    """Return what the modules hold, by path; of a root that is observed under a name of its own, only what is its own."""
    roots = {p.prefix + p.root_name: own_state(p.root) for p in probes if isinstance(p, Modules)}
    return roots | states_of(side.modules(model))


def _number(setting: Setting, upcast: bool) -> torch.dtype:
    """Return the dtype that stands for a Python float in a result: it was read from a tensor of the run."""
    return torch.float64 if upcast or setting.dtype == torch.float64 else torch.float32


def _eagerly() -> AbstractContextManager[Any]:
    """In float64 the formula counts, not the kernel: what the port compiles runs as it is written (and is not compiled anew for every dtype)."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return]


def _on_device(inputs: Any, device: str) -> Any:
    """Return the case's inputs on the device of the run (they are drawn on the CPU, so that every device gets the same)."""
    return inputs if device == "cpu" else nested.replace(inputs, lambda path, value: value.to(device))


def reseating(case: Case, reference: Trace) -> Override | None:
    """Return the override that lets a run continue from the reference's state at the case's `reseat` sites."""
    if not case.reseat:
        return None
    patterns = [re.compile(p) for p in case.reseat]

    def override(site: str, coords: Mapping[str, int], value: Tensor) -> Tensor | None:
        if not any(p.fullmatch(site) for p in patterns):
            return None
        return _fitting(reference.at(site, coords), value)

    return override


def grafting(
    reference: Trace,
    relabel: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    pieces: Mapping[str, Piece] | None = None,
) -> Override:
    """Return the override that puts the reference's value in place of everything that was recorded, so that each difference is local.

    relabel: site -> how the port orders what the reference has there (a benign permutation). pieces: key -> where a call of the port lies in the reference's.
    """

    def override(site: str, coords: Mapping[str, int], value: Tensor) -> Tensor | None:
        key = format_key(site, coords)
        wanted = pieces[key].of(reference) if pieces and key in pieces else reference.tensor(key)
        if wanted is not None and relabel and site in relabel:
            wanted = relabel[site](wanted)
        return _fitting(wanted, value)

    return override


def move_weights(module: torch.nn.Module, seed: int, prefix: str) -> None:
    """Move every floating parameter and buffer by a random relative amount of one unit of roundoff (tied ones once)."""
    seen: set[int] = set()
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if value.dtype in _MOVABLE and id(value) not in seen:
            seen.add(id(value))
            noise = normal(value.shape, seed, f"jitter/{prefix}/{name}", torch.float64).to(value.device)
            value.data.mul_(1.0 + JITTER * noise.to(value.dtype))


def _fitting(wanted: Tensor | None, value: Tensor) -> Tensor | None:
    if wanted is None or wanted.is_floating_point() != value.is_floating_point():
        return None
    if wanted.shape != value.shape:
        wanted = _shared(wanted, value)
    return None if wanted is None else wanted.clone()


def _shared(wanted: Tensor, value: Tensor) -> Tensor | None:
    """Bring the reference's value to a shape that differs in axes of size one: the same for all, or the one that all have."""
    if wanted.dim() != value.dim():
        return None
    for axis, (n, m) in enumerate(zip(wanted.shape, value.shape, strict=True)):
        if m == 1 and n > 1:
            first = wanted.narrow(axis, 0, 1)
            if not torch.equal(wanted, first.expand_as(wanted)):
                return None
            wanted = first
        elif n not in (1, m):
            return None
    return wanted.expand_as(value)


def _failing(side: Side, model: Any, error: Exception) -> str | None:
    """Return the site of the innermost module whose code was running when an error was raised."""
    if model is None:
        return None
    roots = side.modules(model).items()
    sites = {id(part): prefix + path for prefix, root in roots for path, part in root.named_modules()}
    frame, found = error.__traceback__, None
    while frame is not None:
        code = frame.tb_frame.f_code
        own = frame.tb_frame.f_locals.get(code.co_varnames[0]) if code.co_varnames else None
        found = sites.get(id(own), found)
        frame = frame.tb_next
    return found


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:300]


def _origin(error: Exception) -> str:
    """Return file:line of the innermost frame outside torch and parity."""
    skipped = (
        os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
        os.path.dirname(os.path.abspath(torch.__file__)),
        "<",
    )
    frame, found = error.__traceback__, "?"
    while frame is not None:
        name = frame.tb_frame.f_code.co_filename
        if not name.startswith(skipped):
            found = f"{name.rpartition('/')[2]}:{frame.tb_lineno}"
        frame = frame.tb_next
    return found
