"""Where NaN and Inf come from: the first operation that makes a non-finite value from finite inputs, on one side alone."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from parity.boundary.callables import load_callable
from parity.boundary.failing import failing
from parity.capture import split_inputs
from parity.capture.operations import read_scalars, source_line, tensors_in
from parity.capture.probes import root_label
from parity.errors import CaseError
from parity.locate.operation import describe_values

# Operations whose output is meant to be uninitialised or infinite.
_EXCUSED = frozenset(
    {
        "empty",
        "empty_like",
        "new_empty",
        "empty_strided",
        "new_empty_strided",
        "resize_",
        "full",
        "full_like",
        "scalar_tensor",
        "lift_fresh",
        "masked_fill",
        "where",
        "fill_",
        "masked_fill_",
    }
)


@dataclass(frozen=True)
class NonFinite:
    """The first producer of a non-finite value."""

    operation: str
    module: str
    source: str
    code: str
    largest_input: float  # max|input|
    nan: int
    inf: int
    shape: tuple[int, ...]
    dtype: str
    index: tuple[int, ...]  # of the first non-finite element

    @property
    def text(self) -> str:
        limit = torch.finfo(getattr(torch, self.dtype)).max
        lines = [
            f"first non-finite value: {self.nan} NaN, {self.inf} Inf in {self.dtype}{list(self.shape)}, first at {list(self.index)}",
            f"  operation {self.operation}",
            f"  module    {self.module or '(no module)'}",
            f"  source    {self.source}: {self.code}",
            f"  max|input| {self.largest_input:.6g} (largest finite {self.dtype}: {limit:.6g})",
        ]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        return {"verdict": "diverged", "first": asdict(self)}


class _Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: NonFinite | None = None
        self.modules: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self.found is None:
            with _disable_current_modes():
                self._look(func, args, kwargs, result)
        return result

    def _look(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        name = func._schema.name.partition("::")[2]
        bad = next(
            (
                t
                for t in tensors_in(result)
                if t.is_floating_point() and not t.is_meta and not bool(torch.isfinite(t).all())
            ),
            None,
        )
        if bad is None or name in _EXCUSED:
            return
        inputs = [t for t in tensors_in((args, kwargs)) if t.is_floating_point() and not t.is_meta]
        if name.endswith("_") and inputs:
            inputs = inputs[1:]  # the changed tensor itself
        if any(bool(torch.isnan(t).any()) for t in inputs):
            return
        if not bool(torch.isnan(bad).any()) and any(not bool(torch.isfinite(t).all()) for t in inputs):
            return  # an infinity that was there before; a NaN made from one (a row that is masked entirely) is new
        where = source_line()
        source, code = where if where is not None else ("?", "")
        first = int(torch.argmin(torch.isfinite(bad).flatten().to(torch.uint8)))
        self.found = NonFinite(
            operation=describe_values(name, inputs, read_scalars(func, args, kwargs)),
            module=self.modules[-1] if self.modules else "",
            source=source.removeprefix(os.getcwd() + os.sep),
            code=code,
            largest_input=max((float(t.abs().max()) for t in inputs if t.numel()), default=math.nan),
            nan=int(torch.isnan(bad).sum()),
            inf=int(torch.isinf(bad).sum()),
            shape=tuple(bad.shape),
            dtype=str(bad.dtype).removeprefix("torch."),
            index=tuple(int(i) for i in torch.unravel_index(torch.tensor(first), bad.shape)),
        )


def find_nonfinite(model: Any, inputs: Any) -> NonFinite | None:
    """Run `model` (a module or a callable) once and return the first operation that made a non-finite value from finite inputs.

    A NaN made from infinities counts too (a mask's row without a free place), and a value that is masked again later. None when every value stayed finite.

    >>> parity.find_nonfinite(model.half(), (x.half(),))
    """
    args, kwargs = split_inputs(inputs)
    watch = _Watch()
    with ExitStack() as stack, torch.no_grad():
        label = root_label(n for n, _ in model.named_children()) if isinstance(model, nn.Module) else ""
        for path, module in model.named_modules() if isinstance(model, nn.Module) else ():
            stack.callback(
                module.register_forward_pre_hook(lambda m, a, p=path: watch.modules.append(p or label)).remove
            )
            stack.callback(module.register_forward_hook(lambda m, a, r: _pop(watch.modules), always_call=True).remove)
        with watch:
            try:
                model(*args, **kwargs)
            except Exception:
                if watch.found is None:  # what came after a non-finite value may well fail
                    raise
    return watch.found


def _pop(modules: list[str]) -> None:
    if modules:
        modules.pop()


def nonfinite_command(target: str, cases: Sequence[Path] | None) -> NonFinite | None:
    """Resolve the target of `parity nonfinite` and look."""
    name, _, attribute = target.partition(":")
    if attribute and attribute not in ("port", "reference"):
        make = load_callable(target)
        with failing(f"{target}: making the model"):
            made = make()
        if not isinstance(made, tuple) or len(made) != 2:
            raise CaseError(f"{target} must return (model, inputs), got {type(made).__name__}")
        with failing(f"{target}: running the model"):
            return find_nonfinite(*made)
    from parity.case import Setting
    from parity.case.discovery import choose_cases, find_systems

    case = choose_cases(find_systems(paths=list(cases) if cases else None, names=[name]), [name])[0]
    side = case.reference if attribute == "reference" else case.port
    setting = Setting(dtype=case.dtypes[0])
    model, given = side.build(setting), case.inputs(setting)
    return find_nonfinite(lambda: side.run(model, given), ())
