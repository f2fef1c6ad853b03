"""Recording a trace. Imports with torch, numpy and safetensors alone, so that it works inside somebody else's environment.

`parity.capture(model, inputs)` is the short way: the module itself is callable.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from parity.capture.probes import Call, Function, Modules, Probe, Scope, State
from parity.capture.recorder import Recorder
from parity.trace import Trace

__all__ = ["Call", "Function", "Modules", "Recorder", "Scope", "State", "capture"]


def capture(
    model: nn.Module | tuple[Callable[..., Any], nn.Module],
    inputs: Any,
    *,
    probes: list[Probe] | None = None,
    keep: bool = True,
    path: Path | None = None,
    floors: bool = False,
    noise: Mapping[str, float] | None = None,
    precise: str = "",
    operations: str = "",
) -> Trace:
    """Run `model` on `inputs` (a tuple or a dict of arguments) once and return its trace; write it to `path` when given.

    model: a module, or a pair (function, module) where `function(module, *inputs)` runs it.
    floors: run it in float64, too, and store what it is off by at each site; `parity.compare` uses that. The model is copied, and stays as it is.
    precise, operations: regular expressions for the paths of modules whose values in float64, and whose operations with their source lines, are kept, too:
        what `parity against` needs of a reference that is not there. They imply `floors`, and need `path`.
    noise: declared, regular expression for sites -> relative L2 error that is no divergence there (`Case.noise`).

    >>> trace = parity.capture(model, (x,), path="reference.trace")
    """
    import torch

    from parity.capture.environment import describe_environment
    from parity.capture.parameters import describe_parameters
    from parity.trace import Manifest
    from parity.trace.store import TraceWriter

    if floors or precise or operations:
        from parity.measured import Kept, capture_model

        kept = Kept(keep, precise, operations, noise or {})
        return capture_model(model, inputs, kept, probes=probes, path=None if path is None else Path(path))
    function, model = model if isinstance(model, tuple) else (None, model)
    declared = {"noise": dict(noise)} if noise else {}
    described = describe_parameters(model)
    manifest = Manifest(environment=describe_environment(), complete=False, parameters=described, floors=declared)
    args, kwargs = split_inputs(inputs)
    run = model if function is None else functools.partial(function, model)
    with torch.no_grad():
        if path is None:
            with Recorder(probes or [Modules(model)], keep=keep, manifest=manifest) as recorder:
                recorder.record_end(run(*args, **kwargs))
            return recorder.trace
        with TraceWriter(Path(path), manifest) as writer:
            with Recorder(probes or [Modules(model)], keep=keep, sink=writer, manifest=manifest) as recorder:
                recorder.record_end(run(*args, **kwargs))
            writer.manifest = dataclasses.replace(writer.manifest, returned=True)
            writer.note(recorder.trace.manifest.notes)
    from parity.trace.store import load_trace

    return load_trace(Path(path))


def split_inputs(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword arguments: a mapping is keywords, a tuple or list is positional, anything else is the one argument."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs), {}
    return (inputs,), {}


class _CallableModule(types.ModuleType):
    """`parity.capture` is both a package (importable alone) and the function of the public interface."""

    __call__ = staticmethod(capture)


sys.modules[__name__].__class__ = _CallableModule
