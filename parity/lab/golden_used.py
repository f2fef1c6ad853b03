"""What an entry reads of a golden: what it leaves alone was recorded for a reason, and a file that is half understood verifies nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from parity.boundary.text import one_line
from parity.case import Golden

V = TypeVar("V")
_SHOWN = 4  # names in a message


class Used(Mapping[str, V]):
    """A mapping that remembers which of its values were read."""

    def __init__(self, values: Mapping[str, V]) -> None:
        self.values_ = values
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> V:
        value = self.values_[name]
        self.read.add(name)
        return value

    def __contains__(self, name: object) -> bool:
        return name in self.values_

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_)

    def __len__(self) -> int:
        return len(self.values_)

    def unread(self) -> list[str]:
        return [name for name in self.values_ if name not in self.read]


def watched(golden: Golden) -> Golden:
    """Return the golden with inputs, weights and configuration that remember what was read."""
    config: Mapping[str, Any] = Used(golden.config)
    return replace(golden, inputs=Used(golden.inputs), weights=Used(golden.weights), config=config)


def unused(golden: Golden, describes: Collection[str] = ()) -> str:
    """Return the inputs and weights that an entry has not read, as `inputs.a, inputs.b and 3 more`; empty when it has read everything.

    A field of the configuration that is not read is no reason to refuse: recorders write down sizes that the tensors have anyway.
    """
    groups = (("inputs", golden.inputs), ("weights", golden.weights))
    return _listed([f"{group}.{name}" for group, held in groups for name in _unread(held, describes)])


def unread_fields(golden: Golden, describes: Collection[str] = ()) -> str:
    """Return the fields of the configuration that an entry has not read and does not know as mere descriptions."""
    return _listed([f"config.{name}" for name in _unread(golden.config, describes)])


def _unread(held: Mapping[str, Any], describes: Collection[str]) -> list[str]:
    names = held.unread() if isinstance(held, Used) else []
    return [name for name in names if not any(fnmatchcase(name, d) for d in describes)]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(one_line(name, 60) for name in names[:_SHOWN]) + more
