"""Plain values from outside as typed records, by pydantic; the first thing that is wrong becomes the message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from parity.boundary.text import one_line

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")


def validated(adapter: TypeAdapter[T], value: Any) -> T:
    """Return `value` as the adapter's type. Raises ValueError, one line: the place and what is wrong there."""
    from pydantic import ValidationError

    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise ValueError(one_line(f"{place}: {first['msg'].removeprefix('Value error, ')}", 200)) from None
    except RecursionError:
        raise ValueError("it nests too deep") from None
