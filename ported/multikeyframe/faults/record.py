"""What a fault of the multi-keyframe port is, and how it is switched on."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

from ported.wan.faults.record import Port, patched

__all__ = ["Part", "Port", "PortFault", "patched"]
Part = Literal["plan", "segment", "joints", "runs"]


@dataclass(frozen=True)
class PortFault:
    """A real bug as a switch: inside `with fault.inject(port):` the generator has the bug.

    spec_id: row of section 10 of the specification, "+" for a bug of the same family without a row. bug_class: id of the
    bug taxonomy, "" where it has none. part: the plan, one segment, the joints, or running and resuming.
    """

    name: str
    spec_id: str
    bug_class: str
    text: str
    inject: Callable[[Port], AbstractContextManager[None]]
    part: Part
