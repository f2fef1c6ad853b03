"""Code of a user that fails while it runs: one line, and status 3."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from parity.boundary.text import one_line, reason
from parity.errors import ParityError, SideError


@contextmanager
def failing(what: str, end: str = "") -> Iterator[None]:
    """Turn whatever the block raises into SideError: what was being done, the error's class and message, and `end`."""
    try:
        yield
    except ParityError:
        raise
    except SystemExit as stop:
        if stop.code not in (None, 0):
            raise SideError(f"{what} stopped with status {one_line(stop.code, 60)}{end}") from stop
    except Exception as error:
        raise SideError(f"{what} failed: {type(error).__name__}: {reason(error)}{end}") from error
