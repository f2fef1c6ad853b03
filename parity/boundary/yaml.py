"""YAML from outside: plain values alone, no aliases (a few lines of them are gigabytes), bounded in size and depth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from parity.boundary.limits import DEPTH, MAP_BYTES
from parity.boundary.text import reason
from parity.errors import CaseError


def read_yaml(path: Path, what: str) -> Any:
    """Read a small YAML (or JSON) file. Raises CaseError, one line."""
    path = Path(path)
    try:
        if not path.is_file():
            raise CaseError(f"cannot read the {what} {path}: no such file")
        if path.stat().st_size > MAP_BYTES:
            raise CaseError(f"cannot read the {what} {path}: more than {MAP_BYTES >> 20} MiB")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise CaseError(f"cannot read the {what} {path}: {reason(error)}") from None
    return parse_yaml(text, f"cannot read the {what} {path}")


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML text; `where` begins the message. Raises CaseError."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        depth = 0
        for event in yaml.parse(text, Loader=loader):
            if isinstance(event, yaml.AliasEvent):
                raise CaseError(f"{where}: aliases (*{event.anchor}) are not read; write the value out")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEPTH:
                raise CaseError(f"{where}: it nests deeper than {DEPTH} levels")
        return yaml.load(text, Loader=loader)
    except (yaml.YAMLError, ValueError, OverflowError, TypeError, RecursionError) as error:
        raise CaseError(f"{where}: {reason(error)}") from None
