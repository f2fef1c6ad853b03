"""Every small edit of the functions that a model ran, as a replacement of text in their files."""

from __future__ import annotations

import ast
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from parity.lab.mutation.classes import classes_of, topic_of
from parity.lab.mutation.executed import Executed
from parity.lab.mutation.kinds import called, changes, siblings

_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Edit:
    """One replacement in one file. `first` to `last` are the lines of the edited statement, the same ones before and after the edit.

    modules: paths of the modules that ran the statement. classes: the ids that name the edit, the best first.
    """

    kind: str
    topic: str
    classes: tuple[str, ...]
    file: str
    function: str
    first: int
    last: int
    before: str
    after: str
    modules: tuple[str, ...]
    start: int  # offsets in the file, in bytes
    end: int

    @property
    def name(self) -> str:
        short = " ".join(self.before.split())[:60], " ".join(self.after.split())[:60]
        return f"{self.file.rpartition('/')[2]}:{self.first} {self.kind}: {short[0]} → {short[1]}"

    def apply(self, text: str) -> str:
        """Return the edited file; lines after the statement stay where they are."""
        raw = text.encode()
        lost = raw[self.start : self.end].count(b"\n")
        tail = raw[self.end :]
        lines = tail.split(b"\n")
        stop = self.last - (
            raw[: self.end].count(b"\n") + 1
        )  # further lines of the statement after the edited expression
        rest = b"\n".join(lines[: stop + 1]) + b"\n" * lost + b"\n" + b"\n".join(lines[stop + 1 :])
        return (raw[: self.start] + self.after.encode() + rest).decode()


def edits_of(functions: Sequence[Executed], texts: Mapping[str, str]) -> Iterator[Edit]:
    """Yield the edits of all functions that ran, in their order. texts: the files' text."""
    nodes = {file: _definitions(ast.parse(text)) for file, text in texts.items()}
    for ran in functions:
        file = ran.code.co_filename
        node = nodes.get(file, {}).get(_place(ran.code))
        if node is not None:
            yield from _edits_in(ran, node, texts[file].encode())


def _place(code: types.CodeType) -> tuple[str, int]:
    return code.co_name, code.co_firstlineno


def _definitions(tree: ast.Module) -> dict[tuple[str, int], _Function]:
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            found[(node.name, first)] = node
    return found


def _edits_in(ran: Executed, function: _Function, raw: bytes) -> Iterator[Edit]:
    starts = [0]
    for line in raw.split(b"\n"):
        starts.append(starts[-1] + len(line) + 1)
    known, file = _names_of(function), ran.code.co_filename
    for statement in _statements(function.body):
        modules = _runners(ran, statement)
        if not modules:
            continue
        topic = topic_of(f"{ran.code.co_qualname} {file.rpartition('/')[2]}", _words(statement))
        for kind, old, new in _changes_in(statement, known):
            start = starts[old.lineno - 1] + old.col_offset
            end = starts[(old.end_lineno or old.lineno) - 1] + (old.end_col_offset or 0)
            yield Edit(
                kind, topic, classes_of(kind, topic), file, ran.code.co_qualname, statement.lineno, _last(statement),
                raw[start:end].decode(), new, _to_blame(kind, old, modules), start, end,
            )  # fmt: skip


def _to_blame(kind: str, old: ast.expr, runners: tuple[str, ...]) -> tuple[str, ...]:
    """Return the modules that are a right answer: those that ran the statement, and the part whose call is left out or doubled."""
    path = ast.unparse(old.func) if isinstance(old, ast.Call) else ""
    if kind not in ("left out", "twice") or not path.startswith("self."):
        return runners
    part = path.removeprefix("self.")
    return (*runners, *(f"{runner}.{part}".lstrip(".") for runner in runners))


def _words(statement: ast.stmt) -> set[str]:
    names = {n.id for n in ast.walk(statement) if isinstance(n, ast.Name)}
    return names | {n.attr for n in ast.walk(statement) if isinstance(n, ast.Attribute)}


def _last(statement: ast.stmt) -> int:
    return statement.end_lineno or statement.lineno


def _changes_in(statement: ast.stmt, known: list[str]) -> Iterator[tuple[str, ast.expr, str]]:
    if isinstance(statement, ast.Assign):
        yield from _of_targets(statement)
    value = getattr(statement, "value", None)
    if isinstance(statement, ast.AugAssign) and isinstance(statement.op, (ast.Add, ast.Mult)):
        kind, neutral = ("term missing", "0") if isinstance(statement.op, ast.Add) else ("factor missing", "1")
        yield kind, statement.value, neutral
    for node in _expressions(value):
        for kind, new in changes(node):
            yield kind, node, _text(new)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and (other := siblings(node.id, known)):
            yield "other variable", node, other


def _of_targets(statement: ast.Assign) -> Iterator[tuple[str, ast.expr, str]]:
    """Exchange two results of a call."""
    target, value = statement.targets[0], statement.value
    if not isinstance(target, ast.Tuple) or not isinstance(value, ast.Call) or called(value) in ("size",):
        return
    names = target.elts
    for k in range(min(len(names) - 1, 5)):
        if all(isinstance(n, ast.Name) and n.id != "_" for n in names[k : k + 2]):
            moved = [*names[:k], names[k + 1], names[k], *names[k + 2 :]]
            yield "results exchanged", target, ", ".join(ast.unparse(n) for n in moved)


def _expressions(value: ast.expr | None) -> Iterator[ast.expr]:
    """Yield the parts of an expression that are computed, outermost first; not what names only a function or stands in a lambda."""
    if value is None or isinstance(value, (ast.Lambda, ast.JoinedStr)):
        return
    if isinstance(value, ast.expr) and not isinstance(value, ast.Slice):
        yield value
    for name, child in ast.iter_fields(value):
        if isinstance(value, ast.Call) and name == "func":
            if isinstance(child, ast.Attribute):
                yield from _expressions(child.value)
            continue
        for part in child if isinstance(child, list) else [child]:
            if isinstance(part, ast.keyword):
                yield from _expressions(part.value)
            elif isinstance(part, ast.expr):
                yield from _expressions(part)


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield simple statements that compute, those of branches and loops included, those of inner functions not."""
    for statement in body:
        if isinstance(statement, (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Return)):
            yield statement
        for block in ("body", "orelse", "finalbody"):
            if not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                yield from _statements(getattr(statement, block, ()))


def _runners(ran: Executed, statement: ast.stmt) -> tuple[str, ...]:
    return tuple(sorted({p for n in range(statement.lineno, _last(statement) + 1) for p in ran.lines.get(n, ())}))


def _names_of(function: _Function) -> list[str]:
    given = [a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    stored = [n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    return list(dict.fromkeys([*given, *stored]))


def _text(node: ast.expr) -> str:
    text = ast.unparse(ast.fix_missing_locations(node))
    return text if isinstance(node, (ast.Name, ast.Constant, ast.Call, ast.Attribute, ast.Subscript)) else f"({text})"
