"""Where the code of a fault is: the functions and classes that it puts into the port, as "file:first-last" for each."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from parity.case import Expectation


def modules_of(expect: Expectation) -> tuple[str, ...]:
    """Return the modules that are a right answer: those that the fault names; else what owns the first diverging site.

    That is the function outside every module whose value the site is, the module that is handed it as an input, or that keeps the cache.
    """
    if expect.modules:
        return expect.modules
    owners = (re.sub(r"\\\.in\\\..*$", "", part) for part in alternatives(expect.site))
    return tuple(dict.fromkeys(re.sub(r"\\\.cache\\\.\\d\+$", r"(\\.cache\\.\\d+)?", owner) for owner in owners))


def alternatives(pattern: str) -> list[str]:
    """Split a regular expression at the bars that are in no group.

    >>> alternatives("a|b(c|d)")
    ['a', 'b(c|d)']
    """
    parts, depth = [""], 0
    for i, letter in enumerate(pattern):
        plain = i == 0 or pattern[i - 1] != "\\"
        depth += plain * ((letter == "(") - (letter == ")"))
        if letter == "|" and depth == 0 and plain:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def defect_code(inject: Callable[..., Any]) -> str:
    """Return the places of the code that a fault's switch puts in, separated by spaces; empty when it changes values only.

    These are the functions defined inside the switch, and the functions and classes of its file that it hands over, or that a tool made it
    with. What it calls is followed (a switch may share a tool with others), but is no defect itself.
    """
    held = [*_held(inject)]
    found = held or [*_places(inspect.unwrap(inject), set())]
    return " ".join(dict.fromkeys(found))


def _held(inject: Callable[..., Any]) -> Iterator[str]:
    """Yield the places of the code that a switch was made with: `swap(owner, "name", code)` keeps it in its closure."""
    package = getattr(inject, "__module__", "").rpartition(".")[0]
    todo = [cell.cell_contents for cell in getattr(inject, "__closure__", None) or ()]
    while todo:
        value = todo.pop(0)
        value = inspect.unwrap(value) if inspect.isfunction(value) else value
        if isinstance(value, (tuple, list)):
            todo = [*value, *todo]
        elif isinstance(value, partial):
            todo.insert(0, value.func)
        elif (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__.startswith(f"{package}."):
            yield _source(value, Path(str(inspect.getsourcefile(value))).resolve())


def _places(function: Callable[..., Any], seen: set[str]) -> Iterator[str]:
    if function.__qualname__ in seen:
        return
    seen.add(function.__qualname__)
    file = Path(str(inspect.getsourcefile(function))).resolve()
    lines, first = inspect.getsourcelines(function)
    tree = ast.parse(textwrap.dedent("".join(lines)))
    own = vars(sys.modules[function.__module__])
    called = {id(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
    switch = (
        next((n for n in ast.walk(tree) if isinstance(n, ast.Lambda)), None)
        if function.__name__ == "<lambda>"
        else None
    )
    for node in _without_annotations(tree.body[0]):
        if node is switch:
            continue
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Lambda)) and node is not tree.body[0]:
            yield _span(file, first + node.lineno - 1, first + (node.end_lineno or node.lineno) - 1)
        elif isinstance(node, ast.Name) and _is_of(own.get(node.id), function.__module__):
            found = own[node.id]
            if isinstance(found, type):
                yield from _class(found, file)
            elif id(node) in called:
                yield from _places(inspect.unwrap(found), seen)
            else:
                yield _source(found, file)


def _without_annotations(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes below one, itself first, except what only states types."""
    yield node
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and name not in ("annotation", "returns"):
                yield from _without_annotations(child)


def _is_of(value: Any, module: str) -> bool:
    code = inspect.isfunction(value) or inspect.isclass(value)
    return code and getattr(value, "__module__", "") == module


def _class(cls: type, file: Path) -> Iterator[str]:
    """Yield the places of a class and of its bases in the same file."""
    yield _source(cls, file)
    for base in cls.__bases__:
        if base.__module__ == cls.__module__:
            yield from _class(base, file)


def _source(value: Any, file: Path) -> str:
    lines, first = inspect.getsourcelines(inspect.unwrap(value) if inspect.isfunction(value) else value)
    return _span(file, first, first + len(lines) - 1)


def _span(file: Path, first: int, last: int) -> str:
    root = Path.cwd().resolve()
    short = file.relative_to(root) if file.is_relative_to(root) else file
    return f"{short}:{first}-{last}"
