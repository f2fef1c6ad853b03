"""What a fault is, and the tools by which faults are put in and taken out again."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

Part = Literal["masks", "corruption", "flow", "sinkhorn", "networks", "wan", "sampling", "training", "loading"]


@dataclass(frozen=True)
class Port:
    """The live modules of one run, and the checkpoints that were loaded into them."""

    modules: tuple[nn.Module, ...] = ()
    checkpoints: Mapping[nn.Module, Mapping[str, Any]] = field(default_factory=dict)

    def all(self, kind: type | tuple[type, ...]) -> list[Any]:
        """All modules of a class."""
        return [m for root in self.modules for m in root.modules() if isinstance(m, kind)]


@dataclass(frozen=True)
class PortFault:
    """A real bug as a switch: inside `with fault.inject(port):` the port computes with the bug.

    spec_id: row of section 14, "X" for the list below it. outcome: changes numbers, or makes the run raise.
    """

    name: str
    spec_id: str
    bug_class: str
    text: str
    inject: Callable[[Port], AbstractContextManager[None]]
    part: Part
    outcome: Literal["values", "error"] = "values"


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set `owner.name` while the block runs, then put back what was there, or remove what was not."""
    own = vars(owner)
    had, old = name in own, own.get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if had:
            setattr(owner, name, old)
        else:
            delattr(owner, name)


@contextmanager
def child(owner: nn.Module, name: str, value: nn.Module) -> Iterator[None]:
    """Put a module in place of a child while the block runs."""
    old = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, old)


def swap(owner: Any, name: str, value: Any) -> Callable[[Port], AbstractContextManager[None]]:
    """A fault that is one function in place of another."""
    return lambda port: patched(owner, name, value)
