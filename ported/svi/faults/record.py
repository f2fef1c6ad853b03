"""What a fault is, and the tools by which faults are put in and taken out again."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from ported.svi.task import Server
from ported.svi.versions import RIGHT, Version


@dataclass
class Port:
    """What a run of the port holds that a fault may change: the snapshot it behaves like, and the server of a task."""

    version: Version = RIGHT
    server: Server | None = None


@dataclass(frozen=True)
class PortFault:
    """A real bug as a switch: inside `with fault.inject(port):` the port computes with the bug.

    spec_id: row of spec section 12; "C5" and the like for bugs of the taxonomy without a row. bug_class: id of the bug
    taxonomy. outcome: the fault changes values, changes a shape, or makes the run raise.
    """

    name: str
    spec_id: str
    bug_class: str
    text: str
    inject: Callable[[Port], AbstractContextManager[Any]]
    outcome: Literal["values", "shape", "error"] = "values"


@contextmanager
def replaced(*changes: tuple[Any, str, Any]) -> Iterator[None]:
    """Put other values in place of attributes, and the old ones back: (owner, name, value) each."""
    with ExitStack() as stack:
        for owner, name, value in changes:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        yield


def swap(owner: Any, name: str, value: Any) -> Callable[[Port], AbstractContextManager[Any]]:
    """An inject that replaces one attribute."""
    return lambda port: replaced((owner, name, value))


def swap_all(*changes: tuple[Any, str, Any]) -> Callable[[Port], AbstractContextManager[Any]]:
    """An inject that replaces several attributes."""
    return lambda port: replaced(*changes)


def version(**fields: Any) -> Callable[[Port], AbstractContextManager[Any]]:
    """An inject that makes the port behave like another snapshot in these fields."""

    def inject(port: Port) -> AbstractContextManager[Any]:
        changed = replace(port.version, **fields)
        changes: list[tuple[Any, str, Any]] = [(port, "version", changed)]
        if port.server is not None:
            changes.append((port.server, "version", changed))
        return replaced(*changes)

    return inject
