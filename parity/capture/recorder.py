"""The recorder: attaches probes, writes down what happens, and takes everything off again.

Recording changes nothing: no random numbers are drawn, tensors are copied before anyone can change them in place, and every hook and wrapper
is removed on exit, also after an exception. With `override` it can put other values in place of what it has just recorded (teacher forcing, isolation).
"""

from __future__ import annotations

import functools
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import Any, cast

import torch
from torch import Tensor, nn

from parity.capture import nested
from parity.capture.calls import argument_names, begins, bind, going_backward, is_fake, lent, untraced
from parity.capture.gradients import GradientHooks, Stand
from parity.capture.late import Late, Sink
from parity.capture.probes import Call, Function, Gradients, Modules, Probe, Scope, State
from parity.capture.returned import BUFFERS, Watch, plain, read_returned
from parity.capture.wrapping import by_target, wrap
from parity.errors import CaseError
from parity.result import format_key
from parity.trace import Manifest, Record, Trace
from parity.trace.names import NameMap, Target
from parity.trace.rules import UNFIT

Override = Callable[[str, Mapping[str, int], Tensor], Tensor | None]
_MOST_NOTES = 40
Keep = Callable[[str, Mapping[str, int]], bool]


class _OfThread(threading.local):
    """Where one thread is: coordinates, running modules, turns of tuple labels, stand-ins of open calls, and whether it records itself."""

    def __init__(self) -> None:
        self.coords: dict[str, int] = {}
        self.modules: list[str] = []
        self.turns: list[Counter[str]] = [Counter()]
        self.lent: list[list[tuple[Tensor, Tensor, int]]] = []  # argument, what stands for it, its version
        self.returned = ""  # where the code begins whose result is being recorded
        self.paused = 0


class Recorder:
    """Record a run: `with Recorder(probes) as recorder: model(x)`; then `recorder.trace`.

    keep: which records keep their full tensor (True, False or a predicate of site and coordinates); the others keep statistics, hash and
        sketch. digests: also take statistics, hash and sketch of records that keep their tensor.
    names: renames port sites to reference sites and layouts while they are recorded.
    override: called with site, coordinates and the recorded value (reference layout); what it returns replaces the value in the run.
    watch: called after each record (the drill-down cuts the operation log by it).
    """

    def __init__(
        self,
        probes: Sequence[Probe],
        *,
        keep: bool | Keep = True,
        digests: bool = True,
        names: NameMap | None = None,
        override: Override | None = None,
        sink: Sink | None = None,
        watch: Callable[[Record], None] | None = None,
        manifest: Manifest | None = None,
    ) -> None:
        self.probes = tuple(probes)
        self.keep: Keep = keep if callable(keep) else (lambda site, coords: bool(keep))
        self.digests = digests
        self.names = names or NameMap()
        self.override = override
        self._late = Late(sink)
        self.watch = watch
        self.trace = Trace(manifest=manifest or Manifest(complete=False))
        self._thread = _OfThread()
        self._lock = threading.RLock()
        self._threads = {threading.get_ident()}
        self._unseen: dict[str, str] = {}  # site -> why it is not recorded
        self._seen: Counter[str] = Counter()
        self._counts: Counter[tuple[str, tuple[tuple[str, int], ...]]] = Counter()
        self._stack = ExitStack()
        self._fixed: set[int] = set()  # storages that no replaced value may be written into
        self._gradients = [GradientHooks(p, self, argument_names) for p in self.probes if isinstance(p, Gradients)]

    def __enter__(self) -> Recorder:
        try:
            for probe in self.probes:
                if isinstance(probe, Modules):
                    self._attach_modules(probe)
                    if self.override is not None:
                        held = (*probe.root.parameters(), *probe.root.buffers())
                        self._fixed.update(nested.storage_of(value) for value in held)
            for gradients in self._gradients:
                self._stack.callback(gradients.close)
                gradients.attach()
            for owner, name, group in by_target(self.probes):
                self._stack.callback(wrap(owner, name, untraced(functools.partial(self._around, group))))
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            for gradients in self._gradients if kind is None else ():
                gradients.finish()
        finally:
            self._stack.close()
        with suppress(Exception) if kind is not None else nullcontext():  # a card that has failed gives nothing back
            self._late.settle(self.trace)
        notes = [f"{site} is not recorded: {why}" for site, why in self._unseen.items()]
        if len(self._threads) > 1:
            notes.append("modules ran in several threads: their calls are counted in the order in which they ended")
        self.trace = self.trace.with_manifest(
            complete=kind is None, notes=(*self.trace.manifest.notes, *notes[:_MOST_NOTES])
        )

    @property
    def coords(self) -> dict[str, int]:
        """Where in the run this thread is."""
        return self._thread.coords

    @coords.setter
    def coords(self, value: dict[str, int]) -> None:
        self._thread.coords = value

    @property
    def modules(self) -> list[str]:
        """The modules that are running in this thread, outermost first."""
        return self._thread.modules

    # -- records ------------------------------------------------------------------------------------------------------

    def record(
        self, site: str, value: Tensor, kind: str, role: str, coords: Mapping[str, int] | None = None
    ) -> Tensor | None:
        """Write one tensor down; return its replacement in the run, or None. coords: where it belongs, if not to this moment."""
        if self._thread.paused or is_fake(value) or (role in ("in", "out") and going_backward()):
            return None
        if torch._C._functorch.is_functorch_wrapped_tensor(value):
            self._unseen[site] = "it is inside a transform (vmap, grad), where values are not to be looked at"
            return None
        if value.layout is not torch.strided or value.is_quantized or value.is_nested:
            with self._pause():
                value = plain(value)
        replaced: Tensor | None = None
        for target in self.names.targets(site) or ():
            current = value if replaced is None else replaced
            with self._lock:
                new = self._record_target(target, site, current, kind, role, coords)
            replaced = replaced if new is None else new
        if replaced is not None and value.requires_grad and torch.is_grad_enabled():
            return cast(Tensor, Stand.apply(value, replaced))
        return replaced

    def record_end(self, result: Any, left: Watch | None = None, number: torch.dtype = torch.float32) -> None:
        """Write down what the run returned and what it left behind in its inputs and buffers: the last records of the order."""
        found = read_returned(result, number)
        for site, value in found.leaves.items():
            self.record(site, value, "output", "return")
        for site, value in (left.changed() if left is not None else {}).items():
            self.record(self._renamed(site), value, "output", "after")
        self._late.settle(self.trace)
        notes = tuple(f"{path} ({name}) is no value: not compared" for path, name in found.opaque.items())
        self.trace = self.trace.with_manifest(returned=True, notes=(*self.trace.manifest.notes, *notes))

    def _renamed(self, site: str) -> str:
        """Return the site of a buffer under the name that the map gives to its module."""
        path, _, name = site.removeprefix(f"{BUFFERS}.").rpartition(".")
        targets = self.names.targets(path) if site.startswith(BUFFERS) and path else None
        return f"{BUFFERS}.{targets[0].site}.{name}" if targets else site

    def _record_target(
        self, target: Target, origin: str, value: Tensor, kind: str, role: str, where: Mapping[str, int] | None
    ) -> Tensor | None:
        layout = target.layout
        try:
            seen = target.to_reference(value)
        except Exception:  # the pattern does not fit this value: record it as it is and let the shapes speak
            seen, layout = value, f"{target.layout}{UNFIT}"
        coords = self._coords(target.site) if where is None else dict(where)
        keep = self.keep(target.site, coords)
        with self._pause():
            tensor = seen.detach().clone(memory_format=torch.contiguous_format) if keep else None
            full = self.digests or not keep
            printed, batch = self._late.begin(seen, self.trace) if full else (None, None)
            record = Record(
                site=target.site,
                coords=coords,
                kind=kind,
                order=len(self.trace),
                shape=tuple(seen.shape),
                dtype=str(seen.dtype).removeprefix("torch."),
                stats=printed.stats if printed else None,
                digest=printed.digest if printed else "",
                sketch=printed.sketch if printed else None,
                module=self.modules[-1] if self.modules else "",
                role=role,
                origin=origin if origin != target.site else "",
                layout=layout,
                function=self._thread.returned,
            )
            self._late.add(self.trace, record, tensor, batch)
            if self.watch is not None:
                self.watch(record)
            new = self.override(target.site, coords, seen) if self.override is not None else None
            return None if new is None else target.to_port(new, value)

    def _coords(self, site: str) -> dict[str, int]:
        key = format_key(site, self.coords)
        call = self._seen[key]
        self._seen[key] += 1
        return self.coords | {"call": call} if call else dict(self.coords)

    @contextmanager
    def _pause(self) -> Iterator[None]:
        """Nothing the recorder itself computes is recorded, or seen by anybody's torch modes."""
        self._thread.paused += 1
        try:
            with torch.no_grad(), torch._C.DisableTorchFunction(), nested.no_modes():
                yield
        finally:
            self._thread.paused -= 1

    def _many(self, site: str, value: Any, kind: str, role: str) -> Any:
        """Record every tensor inside `value`; return `value` with replacements, which are written where the values live."""
        return nested.put(
            value, lambda path, t: self.record(f"{site}.{path}" if path else site, t, kind, role), self._fixed
        )

    # -- modules ------------------------------------------------------------------------------------------------------

    def _attach_modules(self, probe: Modules) -> None:
        wanted = re.compile(probe.pattern, re.DOTALL)  # a name may hold a newline
        skipped = re.compile(probe.skip, re.DOTALL) if probe.skip else None
        for path, module in probe.root.named_modules():
            site = probe.prefix + (path or probe.root_name).replace("@", "%40")  # what follows an @ is coordinates
            if isinstance(module, torch.jit.ScriptModule):
                self._unseen[site] = "it is compiled to TorchScript, which takes no hooks"
                continue
            observed = bool(wanted.fullmatch(path)) and not (skipped and skipped.fullmatch(path))
            before = untraced(functools.partial(self._before, probe, site, observed))
            after = untraced(functools.partial(self._after, probe, site, observed))
            self._stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            self._stack.callback(module.register_forward_hook(after, always_call=True).remove)

    def _before(self, probe: Modules, site: str, observed: bool, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if self._thread.paused:
            return None
        self._threads.add(threading.get_ident())
        changed = None
        if observed and probe.inputs:
            # Still the caller's: whoever calls this module made its inputs.
            changed = self._record_inputs(probe, site, argument_names(cast(Any, type(module))), args, kwargs)
        thread = self._thread
        thread.lent.append(lent((args, kwargs), changed) if self.override is not None and changed else [])
        thread.modules.append(site)
        thread.turns.append(Counter())
        return changed

    def _record_inputs(self, probe: Modules, site: str, names: Sequence[str], args: Any, kwargs: Any) -> Any:
        def seen(name: object, value: Any) -> Any:
            label = f"{site}.in.{name}"
            if probe.skip and re.fullmatch(probe.skip, label.removeprefix(probe.prefix)):
                return value
            return self._many(label, value, _kind(probe, label, "input"), "in")

        return tuple(seen(names[i] if i < len(names) else i, a) for i, a in enumerate(args)), {
            k: seen(k, v) for k, v in kwargs.items()
        }

    def _after(self, probe: Modules, site: str, observed: bool, module: nn.Module, args: Any, result: Any) -> Any:
        thread = self._thread
        if thread.paused:
            return None
        thread.returned = begins(module.forward)
        new = (
            self._many(site, result, _kind(probe, site, "activation"), "out") if observed and probe.outputs else result
        )
        thread.returned = ""
        if thread.modules and thread.modules[-1] == site:
            thread.modules.pop()
            thread.turns.pop()
            for old, stand_in, version in thread.lent.pop():
                if stand_in._version != version:  # the module wrote into its argument: its caller must see that
                    nested.overwrite(old, stand_in, self._fixed)
        return new if new is not result else None

    # -- functions ----------------------------------------------------------------------------------------------------

    def _around(self, group: Sequence[Probe], function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run one observed call: scopes first, then arguments, the call, results, states."""
        if self._thread.paused:
            return function(*args, **kwargs)
        bound = bind(function, args, kwargs)
        call = Call(bound.arguments if bound else dict(enumerate(args)) | kwargs, None, self.coords)
        outer = self.coords
        try:
            for probe in group:
                if isinstance(probe, Scope):
                    self._enter_scope(probe, call)
            call = Call(call.args, None, self.coords)
            self._read_states(group, call, before=True)
            changed = self._record_args(group, call)
            if changed and bound is not None:
                bound.arguments.update(changed)
                args, kwargs = bound.args, bound.kwargs
            result = function(*args, **kwargs)
            call = Call(call.args, result, self.coords)
            self._thread.returned = begins(function)
            for probe in group:
                if isinstance(probe, Function):
                    call = Call(call.args, self._record_result(probe, call), self.coords)
            self._read_states(group, call, before=False)
            return call.result
        finally:
            self.coords, self._thread.returned = outer, ""

    def _enter_scope(self, probe: Scope, call: Call) -> None:
        key = (probe.axis, tuple(self.coords.items()))
        index = probe.index(call) if probe.index else self._counts[key]
        self._counts[key] += 1
        self.coords = {**self.coords, probe.axis: index}

    def _record_args(self, group: Sequence[Probe], call: Call) -> dict[str, Any]:
        changed: dict[str, Any] = {}
        for probe in group:
            if not isinstance(probe, Function):
                continue
            for name, label in probe.args.items():
                if name not in call.args:
                    raise CaseError(f"probe on {probe.name}: no argument '{name}', there are {list(call.args)}")
                old = changed.get(name, call.args[name])
                value = torch.as_tensor(old) if isinstance(old, (int, float)) else old
                new = self._many(self._label(label, call), value, probe.arg_kinds.get(name, probe.kind), "in")
                if new is not value:
                    changed[name] = new
        return changed

    def _record_result(self, probe: Function, call: Call) -> Any:
        if not probe.site:
            return call.result
        value = probe.pick(call) if probe.pick else call.result
        if isinstance(probe.site, tuple) and probe.each:
            parts = list(value)
            labels = [self._label(label, call) for label in probe.site]
            new_parts = [
                self._many(s, v, probe.kind, "function") if s else v for s, v in zip(labels, parts, strict=True)
            ]
            changed = any(a is not b for a, b in zip(new_parts, parts, strict=True))
            return type(value)(new_parts) if changed and probe.pick is None else call.result
        if callable(probe.site):
            site = probe.site(call)
        elif isinstance(probe.site, tuple):
            turn = f"{id(probe)}"
            turns = self._thread.turns[-1]
            site = probe.site[turns[turn] % len(probe.site)]
            turns[turn] += 1
        else:
            site = probe.site
        if not site:
            return call.result
        new = self._many(self._label(site, call), value, probe.kind, "function")
        return new if probe.pick is None else call.result

    def _read_states(self, group: Sequence[Probe], call: Call, before: bool) -> None:
        for probe in group:
            if isinstance(probe, State) and probe.before == before:
                with self._pause():
                    found = dict(probe.read(call))
                for label, value in found.items():
                    self._many(self._label(label, call), value, probe.kind, "state")

    def _label(self, label: str, call: Call) -> str:
        if "{module}" not in label:
            return label
        module = self.modules[-1] if self.modules else ""
        return label.replace("{module}", module) if module else label.replace("{module}.", "").replace("{module}", "")


def _kind(probe: Modules, site: str, default: str) -> str:
    for pattern, kind in probe.kinds.items():
        if re.fullmatch(pattern, site):
            return kind
    return default
