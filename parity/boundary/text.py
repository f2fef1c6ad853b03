"""Text from outside, fit for a terminal: no control character acts, no message is longer than a line."""

from __future__ import annotations

import re

from parity.boundary.limits import LINE

# Control characters (C0 without tab and newline, DEL, C1), line separators, and those that turn the direction of writing.
_ACTING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)


def visible(text: str) -> str:
    r"""Show what would act on a terminal as the escape that names it; newlines and tabs stay.

    >>> visible("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    return _ACTING.sub(lambda found: found.group().encode("unicode_escape", "surrogatepass").decode("ascii"), text)


def one_line(text: object, most: int = LINE) -> str:
    """Return text as one line of at most `most` characters; the middle is left out, because both ends say what it is about."""
    line = visible(" ".join(str(text).split(" ")).replace("\n", "\\n").replace("\t", " ").strip())
    if len(line) <= most:
        return line
    head = most * 2 // 3
    return f"{line[:head]}…{line[len(line) - (most - 1 - head) :]}"


def reason(error: BaseException, most: int = 160) -> str:
    """Return why something failed, on one line: its message, or its class when it has none."""
    text = str(error).strip() or type(error).__name__
    return one_line(" ".join(text.split()), most)
