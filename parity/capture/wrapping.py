"""Functions and methods that are observed: replaced by a wrapper while a capture lasts, and put back exactly as they were."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from parity.capture.probes import Gradients, Modules, Probe
from parity.errors import CaseError


def by_target(probes: Sequence[Probe]) -> Iterator[tuple[Any, str, list[Probe]]]:
    """Group the probes on functions by what they wrap, so that one wrapper serves all of them."""
    groups: dict[tuple[int, str], tuple[Any, str, list[Probe]]] = {}
    for probe in probes:
        if not isinstance(probe, (Modules, Gradients)):
            groups.setdefault((id(probe.owner), probe.name), (probe.owner, probe.name, []))[2].append(probe)
    yield from groups.values()


def wrap(owner: Any, name: str, around: Callable[..., Any]) -> Callable[[], None]:
    """Replace `owner.name` by a wrapper; return the function that puts it back exactly as it was."""
    try:
        static = inspect.getattr_static(owner, name)
        function = getattr(owner, name)
    except AttributeError:
        raise CaseError(f"probe: {owner!r} has no function '{name}'") from None
    own = name in getattr(owner, "__dict__", {})
    bound_to_class = isinstance(owner, type) and isinstance(static, classmethod)
    if bound_to_class:
        function = static.__func__  # the class that is called decides, not the one that the probe names
    elif isinstance(owner, type) and not isinstance(static, staticmethod):
        function = static  # keep `self` among the arguments

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return around(function, args, kwargs)

    kind = classmethod if bound_to_class else staticmethod if isinstance(static, (staticmethod, classmethod)) else None
    setattr(owner, name, kind(wrapper) if kind is not None else wrapper)

    def undo() -> None:
        if own:
            setattr(owner, name, static)
        else:
            delattr(owner, name)

    return undo
