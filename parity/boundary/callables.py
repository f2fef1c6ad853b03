"""`package.module:callable`, as a user names what is to be run."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from parity.boundary.text import one_line, reason
from parity.errors import CaseError


def load_callable(target: str) -> Callable[..., Any]:
    """Import what `package.module:callable` names; modules of the working directory count. Raises CaseError, one line."""
    name, _, attribute = target.partition(":")
    shown = one_line(target, 80)
    if not name or not attribute or name.startswith(".") or not all(part.isidentifier() for part in name.split(".")):
        raise CaseError(f"{shown!r} names nothing to run: give package.module:callable")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # a module that is imported may raise anything
        raise CaseError(f"cannot load {shown}: {reason(error)}") from None
    except SystemExit as stop:
        raise CaseError(
            f"cannot load {shown}: it stopped with status {one_line(stop.code, 40)} when it was imported"
        ) from None
    if not callable(found):
        raise CaseError(f"cannot run {shown}: it is {type(found).__name__}, nothing that can be called")
    return found  # type: ignore[no-any-return]
