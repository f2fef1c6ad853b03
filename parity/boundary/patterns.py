"""Regular expressions from outside: short, compiled or refused in one line, and stopped when they take too long."""

from __future__ import annotations

import re
import time
from typing import Any

from parity.boundary.limits import MAP_SECONDS, MATCH_SECONDS, NAME, PATTERN
from parity.boundary.text import one_line, reason
from parity.errors import CaseError

_QUICK = 0.01  # seconds of a match that are not counted


class Patience:
    """The time that the slow matches of several patterns may take together, in seconds."""

    def __init__(self, seconds: float = MAP_SECONDS) -> None:
        self.left = seconds


class Pattern:
    """A regular expression that answers within a second, or says that it does not; those that share a `patience` within that altogether."""

    def __init__(self, text: str, where: str, patience: Patience | None = None) -> None:
        self.text, self.where, self.patience = text, where, patience or Patience()
        self._compiled = _compile(text, where)
        self.groups: int = self._compiled.groups
        self.names: dict[str, int] = dict(self._compiled.groupindex)

    def fullmatch(self, name: str) -> Any:
        """Return the match of the whole name, or None. Raises CaseError when it takes longer than the limit."""
        return self._match("fullmatch", name)

    def search(self, name: str) -> Any:
        """Return the first match in the name, or None."""
        return self._match("search", name)

    def _match(self, how: str, name: str) -> Any:
        most, start = min(MATCH_SECONDS, self.patience.left), time.perf_counter()
        try:
            found = getattr(self._compiled, how)(name, timeout=most)
        except TimeoutError:
            on = "one name" if most == MATCH_SECONDS else "these names"
            raise CaseError(
                f"{self.where}: {one_line(self.text, 60)!r} takes too long on {on}: avoid repeats inside repeats"
            ) from None
        elapsed = time.perf_counter() - start
        if elapsed > _QUICK:
            self.patience.left = max(_QUICK, self.patience.left - elapsed)
        return found

    def check_template(self, template: str) -> None:
        """Raise CaseError for a template that names a group which the pattern does not have, or an unknown escape."""
        if len(template) > PATTERN:
            raise CaseError(f"{self.where}: a template has more than {PATTERN} characters")
        for escape in re.findall(r"\\(\d{1,2}|g<[^>]*>|.|$)", template, re.DOTALL):
            name = escape[2:-1] if escape.startswith("g<") else escape
            if name.isdecimal() and name.isascii():
                if int(name) > self.groups:
                    raise CaseError(
                        f"{self.where}: {one_line(self.text, 60)!r} has {self.groups} groups, its target names group {int(name)}"
                    )
            elif not (escape == "\\" or (escape.startswith("g<") and name in self.names)):
                raise CaseError(
                    f"{self.where}: {one_line(template, 60)!r} has the unknown escape \\{one_line(escape, 20)}"
                )


def own_pattern(text: str, where: str) -> re.Pattern[str]:
    """Compile what the user of this process wrote: it needs no limit of time, and no package. Raises CaseError, one line."""
    try:
        return re.compile(text)
    except re.error as error:
        raise CaseError(f"{where}: {one_line(text, 60)!r} is no regular expression: {reason(error)}") from None


def _compile(text: str, where: str) -> Any:
    import regex

    if len(text) > PATTERN:
        raise CaseError(f"{where}: a regular expression has more than {PATTERN} characters")
    try:
        return regex.compile(text)
    except (regex.error, OverflowError, RecursionError, MemoryError, ValueError, IndexError, KeyError) as error:
        raise CaseError(f"{where}: {one_line(text, 80)!r} is no regular expression: {reason(error, 80)}") from None


def expanded(found: Any, template: str) -> str:
    """Return `template` with the groups of a match put in. Raises CaseError when the name becomes too long."""
    text = str(found.expand(template))
    if len(text) > NAME:
        raise CaseError(f"{one_line(template, 60)!r} makes a name of more than {NAME} characters")
    return text
