"""Arrays of numpy files from outside: plain numbers alone, bounded in size, never unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity.boundary.limits import AXES, CLIP_BYTES
from parity.boundary.text import reason
from parity.errors import TraceError


def read_npy(path: Path, where: str) -> NDArray[Any]:
    """Return the array of a `.npy` file, mapped, in this machine's byte order. Raises TraceError, one line; `where` begins the message."""
    try:
        # Mapped: a header that promises more than the file holds is refused before anything is taken from memory.
        with np.errstate(all="ignore"):  # a header may name sizes whose product is no number
            values = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy reads the header as Python's own text: whatever its tokenizer and parser raise
        raise TraceError(f"{where}: truncated or not a plain .npy array ({reason(error)})") from None
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiubc" or values.ndim > AXES:
        raise TraceError(f"{where}: it does not hold one array of numbers")
    if values.nbytes > CLIP_BYTES:
        raise TraceError(f"{where}: more than {CLIP_BYTES >> 30} GiB of numbers; cut it first")
    return values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))
