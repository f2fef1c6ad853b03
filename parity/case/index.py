"""What there is to run, without importing it: names of systems, cases, faults, variations and golden entries, kept from the last time.

Importing every system takes as long as its libraries do. The names are kept in `.parity_cache/` of the project, together with the size and time of
every file that was read to find them, and hold as long as none of these has changed.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from parity.errors import CaseError, ParityError
from parity.files import write_text

FOLDER = ".parity_cache"
HARNESS = Path(__file__).resolve().parents[1]
NOTHING = 'no cases found: parity init makes one; or add [tool.parity] cases = ["folder"] to pyproject.toml, or give --cases FOLDER'
DATA = {".yaml", ".yml", ".toml"}
Listing = dict[str, dict[str, Any]]


def describe_system(system: Any) -> dict[str, Any]:
    """Return the names and texts of a `parity.case.System`, as `parity list --json` prints them."""
    return {
        "text": system.text,
        "cases": [{"name": c.label, "text": c.text} for c in system.cases],
        "faults": [{"name": f.name, "text": f.text, "spec": f.spec_id, "case": f.case} for f in system.faults],
        "variations": [{"name": v.name, "text": v.text} for v in system.variations],
        "goldens": [{"entry": e.name, "sides": list(e.sides)} for e in system.goldens],
    }


def keep_listing(root: Path, files: list[Path], systems: Mapping[str, Any]) -> None:
    """Keep the names of all systems of the case files; a folder that cannot be written is left as it is."""
    read = {f.resolve() for f in files} | set(_read_files(root)) | {p for f in files for p in _data_files(f.parent)}
    listing = {
        "files": {str(path): _stamp(path) for path in sorted(read)},
        "systems": {name: describe_system(system) for name, system in systems.items()},
    }
    try:
        write_text(_place(root, files), json.dumps(listing))
    except (OSError, ParityError):
        return


def kept_listing(root: Path, files: list[Path]) -> Listing | None:
    """Return the kept names of the systems of these case files, or None when there are none or a file has changed."""
    try:
        listing = json.loads(_place(root, files).read_text(encoding="utf-8"))
        known = listing["files"]
        if any(_stamp(Path(path)) != stamp for path, stamp in known.items()):
            return None
        if any(str(path) not in known for f in files for path in (f.resolve(), *_data_files(f.parent))):
            return None
        return dict(listing["systems"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def check_names(listing: Listing, names: Iterable[str]) -> None:
    """Raise CaseError for the first `system` or `system/case` that is not in the listing."""
    for name in names:
        system, _, case = name.partition("/")
        if system not in listing:
            raise CaseError(unknown_system(name, listing))
        cases = [c["name"].partition("/")[2] for c in listing[system]["cases"]]
        if case and case not in cases:
            raise CaseError(
                f"system {system} has no case '{case}'; there are: {', '.join(cases)}{did_you_mean(case, cases)}"
            )


def unknown_system(name: str, there: Iterable[str]) -> str:
    """Return what is said of a system or a case that is not there: what there is, or how to have some."""
    known = sorted(there)
    if not known:
        return f"unknown system or case '{name}'; there are: none. {NOTHING}"
    meant = did_you_mean(name.partition("/")[0], known)
    return f"unknown system or case '{name}'; there are: {', '.join(known)}{meant} (see parity list)"


def check_switch(listing: Listing, names: Iterable[str], kind: str, wanted: str | None) -> None:
    """Raise CaseError for a fault or a variation that the one system named has not. kind: "fault" or "variation"."""
    systems = {name.partition("/")[0] for name in names}
    if wanted is None or len(systems) != 1:
        return
    (system,) = systems
    there = [item["name"] for item in listing[system][f"{kind}s"]]
    if wanted not in there:
        raise CaseError(
            f"system {system} has no {kind} '{wanted}'{did_you_mean(wanted, there)} (see parity list {system})"
        )


def did_you_mean(name: str, there: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" with the closest of the names there are, or nothing."""
    close = difflib.get_close_matches(name, list(there), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _place(root: Path, files: list[Path]) -> Path:
    key = "\n".join(sorted(str(f.resolve()) for f in files)) + sys.version
    return root / FOLDER / f"systems-{sha256(key.encode()).hexdigest()[:16]}.json"


def _stamp(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_mtime_ns, found.st_size]


def _data_files(folder: Path) -> list[Path]:
    return [path.resolve() for path in folder.iterdir() if path.suffix in DATA]


def _read_files(root: Path) -> Iterable[Path]:
    """Yield the modules below the project's root that are imported now, not those of environments in it."""
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        path = Path(file).resolve() if isinstance(file, str) else None
        if path is None or not path.is_relative_to(root) or not path.is_file():
            continue
        parts = path.relative_to(root).parts
        if path.is_relative_to(HARNESS) and not path.is_relative_to(HARNESS / "case"):
            continue  # the harness runs what is named, and names nothing
        if "site-packages" not in parts and not any(part.startswith(".") for part in parts):
            yield path
