"""The errors a user can meet. Each message is one line: what was being done, where, what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_CAUGHT: ContextVar[list[str] | None] = ContextVar("caught", default=None)


class ParityError(Exception):
    """A wrong use or an unreadable input: the command line prints it as one line and exits with status 2."""


class TraceError(ParityError):
    """A trace, golden or tensor file that cannot be read or does not say what it must."""


class CaseError(ParityError):
    """A case, fault, variation or system that is unknown or wrongly declared."""


class WriteError(ParityError, OSError):
    """A file that cannot be written: a full disk, a folder in the way, no permission."""


class SideError(ParityError):
    """One side (reference or port) failed to build or to run; the command line exits with status 3.

    module: the innermost module that was running, by site; None outside of all.
    """

    module: str | None = None


class ParityFailure(AssertionError):
    """Raised by `assert_parity` when the verdict is not `match`; its text is the failure message."""


@contextmanager
def collecting() -> Iterator[list[str]]:
    """Collect what goes wrong on the way and is caught, so that no exception is lost without a trace."""
    found: list[str] = []
    token = _CAUGHT.set(found)
    try:
        yield found
    finally:
        _CAUGHT.reset(token)


def caught(doing: str, error: BaseException) -> None:
    """Note an exception that was caught: what was being done, and what was raised."""
    found = _CAUGHT.get()
    text = (str(error).strip().splitlines() or ["no message"])[0][:200]
    line = f"{doing}: {type(error).__name__}: {text}"
    if found is not None and line not in found:
        found.append(line)
