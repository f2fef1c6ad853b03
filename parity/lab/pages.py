"""Pages that are partly made by a command and partly written by people: a command replaces its own section, everything else stays."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from parity.errors import ParityError
from parity.files import write_text


def with_section(page: str, name: str, text: str) -> str:
    """Return the page with the section `name` replaced, or put at its end where it has none.

    A section stands between `<!-- made: NAME -->` and `<!-- end: NAME -->`. Raises ParityError when one of the two marks is missing.
    """
    begin, end = marks(name)
    if page.count(begin) != page.count(end) or page.count(begin) > 1:
        raise ParityError(
            f"the section '{name}' needs one '{begin}' and one '{end}' after it: restore them and run again"
        )
    made = f"{begin}\n{text.strip()}\n{end}"
    if begin not in page:
        return f"{page.rstrip()}\n\n{made}\n".lstrip()
    head, _, rest = page.partition(begin)
    _, found, tail = rest.partition(end)
    if not found:
        raise ParityError(f"'{end}' stands before '{begin}': put it after it and run again")
    return f"{head}{made}{tail}"


def marks(name: str) -> tuple[str, str]:
    """Return the lines around a section."""
    return f"<!-- made: {name} -->", f"<!-- end: {name} -->"


def section(page: str, name: str) -> str:
    """Return the text of a section, empty where there is none."""
    begin, end = marks(name)
    _, _, rest = page.partition(begin)
    return rest.partition(end)[0].strip() if end in rest else ""


def write_sections(path: Path, sections: Mapping[str, str], title: str) -> None:
    """Write sections into a page, which is made with this title where it does not exist."""
    page = path.read_text(encoding="utf-8") if path.exists() else f"# {title}\n"
    for name, text in sections.items():
        page = with_section(page, name, text)
    write_text(path, page)


def merged_table(old: str, new: str) -> str:
    """Return a Markdown table whose rows of `old` stay where `new` has none of the same first cell; another header begins anew."""
    before, after = _rows(old), _rows(new)
    if not before or before[:1] != after[:1]:
        return new
    kept = {_first(row): row for row in before[2:]} | {_first(row): row for row in after[2:]}
    return "\n".join([*after[:2], *kept.values()])


def _rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


def _first(row: str) -> str:
    return re.split(r"(?<!\\)\|", row)[1].strip()
