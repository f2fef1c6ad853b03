"""What is seen of a running model, declared beside the case. The model has no line for it.

Five kinds: `Modules` (inputs and outputs of modules), `Gradients` (of the same, in the backward pass), `Function` (a free function or method), `State` (something read at a moment) and `Scope` (a
function whose calls count an axis).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Call:
    """One call of an observed function: its arguments by name (`self` included for methods patched on a class), and its result."""

    args: Mapping[str, Any]
    result: Any = None
    coords: Mapping[str, int] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.args[name]


def root_label(names: Iterable[str]) -> str:
    """Return what the root of a model is called among its modules (or weights): "model", or "root" where a child has that name."""
    return "root" if any(name.partition(".")[0] == "model" for name in names) else "model"


@dataclass(frozen=True)
class Modules:
    """Inputs and outputs of the modules under `root` whose path matches `pattern` (a regular expression for the whole path).

    Sites: `prefix + path` for an output, `<path>.in.<argument>` for inputs; the root itself is called `name` ("model" if it is not given, "root" where a child is called so). `skip` leaves
    modules out (by their path), or single arguments (`<path>.in.<argument>`).
    """

    root: nn.Module
    pattern: str = ".*"
    skip: str = ""
    name: str = ""
    prefix: str = ""
    inputs: bool = True
    outputs: bool = True
    kinds: Mapping[str, str] = field(default_factory=dict)  # site pattern -> kind; default "activation" / "input"

    @property
    def root_name(self) -> str:
        return self.name or root_label(child for child, _ in self.root.named_children())


@dataclass(frozen=True)
class Gradients:
    """Gradients of the modules below `root` and of their parameters, and what training steps change. List it behind `Modules` of the same root.

    The run must call backward itself. Sites are those of `Modules` with `.grad` behind them: see `parity.capture.gradients`.
    """

    root: nn.Module
    name: str = ""
    prefix: str = ""

    @property
    def root_name(self) -> str:
        return self.name or root_label(child for child, _ in self.root.named_children())


@dataclass(frozen=True)
class Function:
    """Arguments and results of `getattr(owner, name)`, wrapped while the capture lasts.

    `site` labels the result ("" = not recorded): `{module}` becomes the path of the module that is running. A tuple of labels is used in turn
    by the calls within one module call (rotary applied to q, then to k) when the result is one tensor, `each=True` names the parts of a tuple result. A
    callable gets the `Call` and returns the label. `args` maps argument names to labels (None for an argument that is no tensor, or that is the
    label's own business). `pick` extracts what to record from the result.
    """

    owner: Any
    name: str
    site: str | tuple[str, ...] | Callable[[Call], str] = ""
    kind: str = "activation"
    args: Mapping[str, str] = field(default_factory=dict)
    arg_kinds: Mapping[str, str] = field(default_factory=dict)
    each: bool = False
    pick: Callable[[Call], Any] | None = None


@dataclass(frozen=True)
class State:
    """Something read when a call of `getattr(owner, name)` has ended, e.g. a cache in canonical form.

    `read` gets the call and returns {label: tensor}. `before=True` reads when the call begins.
    """

    owner: Any
    name: str
    read: Callable[[Call], Mapping[str, Tensor]]
    kind: str = "kv"
    before: bool = False


@dataclass(frozen=True)
class Scope:
    """Calls of `getattr(owner, name)` count `axis`; the count starts again whenever an outer axis moves. `index` may compute it from the call."""

    owner: Any
    name: str
    axis: str
    index: Callable[[Call], int] | None = None


Probe = Modules | Gradients | Function | State | Scope


def describe(probes: Sequence[Probe]) -> list[str]:
    """Return one line a probe, for manifests and `parity list -v`."""
    lines = []
    for probe in probes:
        if isinstance(probe, Modules):
            lines.append(f"modules {probe.prefix}{probe.pattern}")
        elif isinstance(probe, Gradients):
            lines.append(f"gradients {probe.prefix}")
        else:
            owner = getattr(probe.owner, "__name__", type(probe.owner).__name__)
            lines.append(f"{type(probe).__name__.lower()} {owner}.{probe.name}")
    return lines
