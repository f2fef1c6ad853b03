"""A port that lives in files of its own: the functions that a model runs, compiled again from copies of their files, one of which may be edited."""

from __future__ import annotations

import builtins
import copy
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from parity.lab.mutation.executed import is_model_code

_LIBRARIES = ("diffusers", "transformers")


class Files:
    """Compiled copies of library files. `edited`: file -> its edited text; every other file is copied as it is, once, into `folder`."""

    def __init__(self, folder: Path, edited: Mapping[str, str] | None = None, base: Files | None = None) -> None:
        self.folder, self.edited, self.base = folder, dict(edited or {}), base
        self._codes: dict[str, dict[tuple[str, int], types.CodeType]] = {}

    def code(self, original: types.CodeType) -> types.CodeType:
        """Return the code of the same function in the copy of its file; the original where the copy has none."""
        return self._of(original.co_filename).get((original.co_qualname, original.co_firstlineno), original)

    def path(self, file: str) -> Path:
        """Return where the copy of a file is."""
        if self.base is not None and file not in self.edited:
            return self.base.path(file)
        start = max(file.rfind(f"/{name}/") for name in _LIBRARIES)
        return self.folder / file[start + 1 :]

    def _of(self, file: str) -> dict[tuple[str, int], types.CodeType]:
        if self.base is not None and file not in self.edited:
            return self.base._of(file)
        if file not in self._codes:
            text = self.edited.get(file) or Path(file).read_text(encoding="utf-8")
            copied = self.path(file)
            copied.parent.mkdir(parents=True, exist_ok=True)
            copied.write_text(text, encoding="utf-8")
            found = compile(text, str(copied), "exec", dont_inherit=True)
            self._codes[file] = {(c.co_qualname, c.co_firstlineno): c for c in _nested(found)}
        return self._codes[file]


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from _nested(constant)


class Rebinding:
    """Builds functions and classes that run the copies: globals, closures and methods lead to copies, never back to the originals."""

    def __init__(self, files: Files, ran: Iterable[types.CodeType]) -> None:
        self.files, self.ran = files, frozenset(ran)
        self._functions: dict[int, Any] = {}
        self._classes: dict[type, type] = {}
        self._globals: dict[str, dict[str, Any]] = {}

    def model(self, model: nn.Module) -> nn.Module:
        """Return a copy of a model (the same weights) that runs the copied functions."""
        port = copy.deepcopy(model)
        for module in port.modules():
            module.__class__ = self.of_class(type(module))
            for name, value in list(vars(module).items()):
                if isinstance(value, types.FunctionType):
                    vars(module)[name] = self.function(value)
                elif type(value).__module__.partition(".")[0] in _LIBRARIES:
                    self._rebind(value)
        return port

    def _rebind(self, value: Any) -> None:
        own = self.of_class(type(value))
        if own is not type(value):
            value.__class__ = own

    def function(self, function: Any) -> Any:
        """Return a function's copy, decorators included; itself when nothing of the library is in it."""
        if not isinstance(function, types.FunctionType):
            return function
        if id(function) in self._functions:
            return self._functions[id(function)][0]
        within = is_model_code(function.__code__.co_filename)
        if not within and not self._leads_to_copies(function):
            return function
        code = self.files.code(function.__code__) if within else function.__code__
        if code.co_freevars != function.__code__.co_freevars:
            code = function.__code__  # the edit changed what it closes over: no copy of this one
        cells = tuple(types.CellType() for _ in code.co_freevars)
        spaces = self._namespace(function.__module__, code) if within else function.__globals__
        made = types.FunctionType(code, spaces, function.__name__, function.__defaults__, cells or None)
        self._functions[id(function)] = (made, function)  # the original is kept: its id stays its own
        for cell, old in zip(cells, function.__closure__ or (), strict=True):
            try:
                cell.cell_contents = self.function(old.cell_contents)
            except ValueError:
                continue  # an empty cell stays empty
        made.__kwdefaults__ = function.__kwdefaults__
        made.__dict__.update({k: self.function(v) for k, v in vars(function).items()})
        made.__qualname__, made.__module__, made.__doc__ = (
            function.__qualname__,
            function.__module__,
            function.__doc__,
        )
        made.__annotations__ = function.__annotations__
        return made

    def _leads_to_copies(self, function: types.FunctionType) -> bool:
        """Tell whether a decorator's wrapper closes over a function of the library."""
        inner = getattr(function, "__wrapped__", None)
        return isinstance(inner, types.FunctionType) and (
            is_model_code(inner.__code__.co_filename) or self._leads_to_copies(inner)
        )

    def _namespace(self, module: str, code: types.CodeType) -> dict[str, Any]:
        space = self._globals.setdefault(module, dict(vars(sys.modules[module])))
        space["__builtins__"] = {**vars(builtins), "__import__": self._import}
        for name in {n for c in (code, *_nested(code)) for n in c.co_names}:
            value = vars(sys.modules[module]).get(name)
            if isinstance(value, types.FunctionType):
                space[name] = self.function(value)
            elif isinstance(value, type) and not issubclass(value, nn.Module):
                space[name] = self.of_class(value)
            elif type(value) is dict:  # a table of functions or classes
                space[name] = {k: self._entry(v) for k, v in value.items()}
        return space

    def _entry(self, value: Any) -> Any:
        of_its_own = isinstance(value, type) and not issubclass(value, nn.Module)
        return self.of_class(value) if of_its_own else self.function(value)

    def _import(self, name: str, *rest: Any) -> Any:
        """Import inside a function: the names that are taken from a module of the library are copies."""
        module = __import__(name, *rest)
        taken = rest[2] if len(rest) > 2 else ()
        if not taken or module.__name__.partition(".")[0] not in _LIBRARIES:
            return module
        return types.SimpleNamespace(**{n: self.function(getattr(module, n)) for n in taken if hasattr(module, n)})

    def of_class(self, cls: type) -> type:
        """Return a subclass whose methods that ran are copies; the class itself when it has none."""
        if cls in self._classes:
            return self._classes[cls]
        self._classes[cls] = cls  # while its methods are made
        own = {name: made for name, value in _methods(cls) if (made := self._method(value)) is not None}
        if own:
            own |= {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
            kind = type(cls) if issubclass(cls, nn.Module) else _alike(cls)
            self._classes[cls] = kind(cls.__name__, (cls,), own)
        return self._classes[cls]

    def _method(self, value: Any) -> Any:
        if isinstance(value, (classmethod, staticmethod)):
            inner = self._method(value.__func__)
            return None if inner is None else type(value)(inner)
        if isinstance(value, property):
            inner = self._method(value.fget)
            return None if inner is None else property(inner, value.fset, value.fdel)
        return self.function(value) if isinstance(value, types.FunctionType) and self._ran(value) else None

    def _ran(self, function: Callable[..., Any]) -> bool:
        while isinstance(function, types.FunctionType):
            if function.__code__ in self.ran:
                return True
            function = getattr(function, "__wrapped__", None)  # type: ignore[assignment]
        return False


def _alike(cls: type) -> type:
    """Return a metaclass whose classes take an instance of the original for one of theirs."""
    kind = type(cls)

    def check(self: type, instance: object) -> bool:
        return isinstance(instance, cls)

    return type(f"Like{cls.__name__}", (kind,), {"__instancecheck__": check})


def _methods(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield the library's methods of a class as attribute lookup finds them."""
    seen: set[str] = set()
    for owner in cls.__mro__:
        for name, value in vars(owner).items():
            if name not in seen:
                seen.add(name)
                if owner.__module__.partition(".")[0] in _LIBRARIES:
                    yield name, value
