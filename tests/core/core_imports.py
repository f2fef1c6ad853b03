"""Reading the import graph of the checkout from its source: which module imports which, at the top and inside functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Import:
    """`importer` imports `imported` at `line`; lazily when it does so inside a function."""

    importer: str
    imported: str
    line: int
    lazy: bool


def imports_of(package: str, root: Path = ROOT) -> tuple[Import, ...]:
    """Return every import of a package of the checkout, but for those that only a type checker sees."""
    files = sorted((root / package).rglob("*.py"))
    known = {module_name(file, root) for file in files}
    return tuple(found for file in files for found in _imports(file, module_name(file, root), known))


def module_name(file: Path, root: Path = ROOT) -> str:
    return ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def _imports(file: Path, name: str, known: set[str]) -> Iterator[Import]:
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node, lazy in _statements(ast.parse(file.read_text(encoding="utf-8")), False):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            base = node.module or ""
            if node.level:
                base = ".".join(
                    [*package.split(".")[: len(package.split(".")) - node.level + 1], *filter(None, [base])]
                )
            # `from package import module` imports the module, `from module import name` the module before it.
            names = [f"{base}.{a.name}" if f"{base}.{a.name}" in known else base for a in node.names]
        for imported in dict.fromkeys(names):
            yield Import(name, imported, node.lineno, lazy)


def _statements(node: ast.AST, lazy: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, lazy
        elif not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)):
            inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from _statements(child, lazy or inside)
