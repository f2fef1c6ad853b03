"""How far two aligned values are apart, and how far a right port may be: numbers and floors, no reasons.

`parity.compare(reference, port)` of the public interface has the name of this room: the module itself is callable.
"""

from __future__ import annotations

import sys
import types
from typing import Any


class _CallableModule(types.ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compare two traces: see `parity.api.compare`."""
        from parity.api import compare

        return compare(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
