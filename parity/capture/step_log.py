"""Every operation of a run, and at which of them each record was made: what a window of it can be cut from later."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from parity.capture.operations import Frame, Step, calls_around, frames_around, log_step, source_line
from parity.trace import Record


@dataclass(frozen=True)
class Event:
    """A record was made after so many steps, with these calls around it, innermost first."""

    key: str
    at: int
    frames: tuple[Frame, ...]


class StepLog(TorchDispatchMode):
    """Log the operations of the modules that are wanted. `watch` is given to the recorder.

    wanted: tells by its path whether a module's operations are kept ("" outside of all). An operation is that of the module whose code made the next record.
    """

    def __init__(self, wanted: Callable[[str], bool]) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.events: list[Event] = []
        self.functions: set[str] = set()
        self._wanted = wanted
        self._makers: dict[int, int] = {}
        self._alive: list[Tensor] = []
        self._last = 0  # steps that were kept when the last record was made

    def watch(self, record: Record) -> None:
        """Note a record; forget what led to it where that is not wanted."""
        frames = calls_around(record)
        self.functions.update(frame.function for frame in frames)
        if not self._wanted(record.module):
            self._forget()
        self._last = len(self.steps)
        self.events.append(Event(record.key, self._last, frames))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        source = source_line()
        if source is None:  # the recorder itself is at work
            return func(*args, **kwargs)
        result = log_step(self.steps, self._makers, self._alive, func, args, kwargs, source, frames_around())
        self.functions.update(frame.function for frame in self.steps[-1].op.frames)
        return result

    def _forget(self) -> None:
        if len(self.steps) == self._last:
            return
        made = sum(len(step.op.outputs) for step in self.steps[self._last :])
        del self.steps[self._last :], self._alive[len(self._alive) - made :]
        self._makers = {of: at for of, at in self._makers.items() if at < self._last}
