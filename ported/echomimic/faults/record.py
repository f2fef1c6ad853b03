"""What a fault is, and the tools by which faults are put in and taken out again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ported.echomimic.build import Networks


@dataclass(frozen=True)
class PortFault:
    """A real bug as a switch: inside `with fault.inject(networks):` the port computes with the bug.

    spec_id: the row of spec 12; bug_class: id of the bug taxonomy; needs: what the run must have for the fault to show.
    """

    name: str
    spec_id: str
    bug_class: str
    text: str
    inject: Callable[[Networks], AbstractContextManager[None]]
    needs: Mapping[str, Any] = field(default_factory=dict)


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


def patch(owner: Any, name: str, value: Any) -> Callable[[Networks], AbstractContextManager[None]]:
    """A fault that is one function replaced by another."""
    return lambda networks: patched(owner, name, value)


@contextmanager
def recast(objects: Iterable[Any], cls: type) -> Iterator[None]:
    """Make live objects instances of `cls`, which overrides a method of their own class, while the block runs."""
    before = [(item, type(item)) for item in objects]
    if not before:
        raise ValueError(f"nothing to recast to {cls.__name__}: the run does not have what the fault needs")
    for item, _ in before:
        item.__class__ = cls
    try:
        yield
    finally:
        for item, old in before:
            item.__class__ = old


def modules_of(network: nn.Module, kind: type) -> list[Any]:
    """All modules of exactly this class."""
    return [module for module in network.modules() if type(module) is kind]


@contextmanager
def together(*parts: AbstractContextManager[None]) -> Iterator[None]:
    """Several changes at once."""
    with ExitStack() as stack:
        for part in parts:
            stack.enter_context(part)
        yield
