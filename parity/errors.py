"""The errors a user can meet. Each message is one line: what was being done, where, what to do."""

from __future__ import annotations


class ParityError(Exception):
    """A wrong use or an unreadable input: the command line prints it as one line and exits with status 2."""


class TraceError(ParityError):
    """A trace, golden or tensor file that cannot be read or does not say what it must."""


class CaseError(ParityError):
    """A case, fault, variation or system that is unknown or wrongly declared."""


class WriteError(ParityError, OSError):
    """A file that cannot be written: a full disk, a folder in the way, no permission."""


class SideError(ParityError):
    """One side (reference or port) failed to build or to run; the command line exits with status 3."""


class ParityFailure(AssertionError):
    """Raised by `assert_parity` when the verdict is not `match`; its text is the failure message."""
