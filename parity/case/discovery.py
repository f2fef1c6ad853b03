"""Finding cases: `[tool.parity] cases = [...]` of the nearest pyproject.toml, or a path given by hand.

A cases folder holds one folder a system with a `case.py` that defines `SYSTEM: parity.case.System`. Folders are imported as packages under the project's root, so
that a case may import its own modules and the implementations beside it.
"""

from __future__ import annotations

import importlib
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity.case.index import (
    Listing,
    check_names,
    check_switch,
    describe_system,
    keep_listing,
    kept_listing,
    unknown_system,
)
from parity.errors import CaseError

if TYPE_CHECKING:
    from parity.case import Case, System


def find_project(start: Path | None = None) -> Path:
    """Return the closest folder upward with a pyproject.toml that has a `[tool.parity]` table; the start folder when there is none."""
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        file = folder / "pyproject.toml"
        if file.is_file() and "parity" in _tools(file):
            return folder
    return start


def find_systems(
    project: Path | None = None, paths: list[Path] | None = None, names: list[str] | None = None
) -> dict[str, System]:
    """Load the systems of a project (or of the given cases folders), by name.

    names: `system` or `system/case` that are wanted; only their folders are imported, where a system is named like its folder.
    Raises CaseError for an unknown name.
    """
    root, files = case_files(project, paths)
    wanted = {name.partition("/")[0] for name in names or []}
    if wanted:
        refuse_unknown(names or [], project, paths)
    chosen = [file for file in files if file.parent.name in wanted]
    if wanted and len(chosen) == len(wanted):
        found = _load_all(chosen, root)
        if found.keys() == wanted:
            return found
    found = _load_all(files, root)
    keep_listing(root, files, found)
    return found


def refuse_unknown(
    names: list[str],
    project: Path | None = None,
    paths: list[Path] | None = None,
    fault: str | None = None,
    variation: str | None = None,
) -> None:
    """Raise CaseError for a `system`, `system/case`, fault or variation that is unknown, where what there is was kept; imports nothing."""
    listing = kept_listing(*case_files(project, paths))
    if listing is not None:
        check_names(listing, names)
        check_switch(listing, names, "fault", fault)
        check_switch(listing, names, "variation", variation)


def list_systems(project: Path | None = None, paths: list[Path] | None = None) -> Listing:
    """Return what there is, by system: as kept from last time, else by importing every case."""
    root, files = case_files(project, paths)
    listing = kept_listing(root, files)
    if listing is not None:
        return listing
    return {name: describe_system(system) for name, system in find_systems(project, paths).items()}


def case_files(project: Path | None = None, paths: list[Path] | None = None) -> tuple[Path, list[Path]]:
    """Return the project's root and every `case.py` of its cases folders (or of the given ones)."""
    root = find_project(project)
    files: list[Path] = []
    for folder in [_cases_folder(Path(p)) for p in paths] if paths else [root / p for p in _configured(root)]:
        if not folder.is_dir():
            raise CaseError(
                f"cases folder {folder} does not exist (see [tool.parity] cases in {root / 'pyproject.toml'})"
            )
        files += [folder / "case.py"] if (folder / "case.py").is_file() else sorted(folder.glob("*/case.py"))
    return root, files


def _cases_folder(folder: Path) -> Path:
    """Return a folder that was given by hand; a relative one that is not here is meant in the checkout that this parity runs from."""
    shipped = Path(__file__).parents[2] / folder
    return shipped if not folder.is_dir() and shipped.is_dir() else folder


def _load_all(files: list[Path], root: Path) -> dict[str, System]:
    found: dict[str, System] = {}
    for file in files:
        system = load_system(file, root)
        if system.name in found:
            raise CaseError(f"{file}: system '{system.name}' is defined twice")
        found[system.name] = system
    return found


def load_system(file: Path, root: Path) -> System:
    """Import one `case.py` and return its SYSTEM."""
    from parity.case.case import System

    file = file.resolve()
    own = (
        root if file.is_relative_to(root) else find_project(file.parent)
    )  # the folder itself, where it is in no project
    base = file.parent.parent if own == file.parent else own
    name = ".".join(file.relative_to(base).with_suffix("").parts)
    if str(base) not in sys.path:
        sys.path.insert(0, str(base))
    try:
        module = importlib.import_module(name)
    except CaseError:
        raise
    except Exception as error:
        raise CaseError(
            f"cannot load {file}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        ) from error
    if Path(str(module.__file__)).resolve() != file:
        raise CaseError(f"cannot load {file}: another module is already imported as {name} ({module.__file__})")
    system = getattr(module, "SYSTEM", None)
    if not isinstance(system, System):
        raise CaseError(f"{file}: no SYSTEM of type parity.case.System")
    return system


def choose_cases(systems: dict[str, System], names: list[str]) -> list[Case]:
    """Return the cases that `names` ask for: `system`, `system/case`, or everything when empty."""
    if not names:
        return [case for system in systems.values() for case in system.cases]
    chosen: list[Case] = []
    for name in names:
        system_name, _, case_name = name.partition("/")
        system = get_system(systems, system_name)
        chosen += [system.case(case_name)] if case_name else list(system.cases)
    return chosen


def get_system(systems: dict[str, System], name: str) -> System:
    """Return a system by name, or raise CaseError with the names there are."""
    if name not in systems:
        raise CaseError(unknown_system(name, systems))
    return systems[name]


def _configured(root: Path) -> list[str]:
    file = root / "pyproject.toml"
    table = _tools(file).get("parity", {}) if file.is_file() else {}
    value = table.get("cases", []) if isinstance(table, dict) else None
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise CaseError(f"{file}: [tool.parity] cases must be a list of folders")
    return value


def _tools(file: Path) -> dict[str, Any]:
    tools = _read_toml(file).get("tool", {})
    return tools if isinstance(tools, dict) else {}


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CaseError(f"cannot read {file}: {error}") from None
