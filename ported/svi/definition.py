"""Switch a model into SVI mode for one task, and back (spec section 8).

Two definitions describe a model: the registry's, which window accounting reads, and the loaded pipeline's own, which
sampling reads. They may be one object or two.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

Definition = dict[str, Any]

FLAG = "svi2pro"
OVERLAP = 4
SETTINGS: Mapping[str, Any] = {
    FLAG: True,
    "sliding_window": True,
    "sliding_window_defaults": {"overlap_default": OVERLAP},
    "svi_empty_frames_mode": "zeros",
}


@contextmanager
def svi_mode(*definitions: Definition | None) -> Iterator[None]:
    """Put SVI's settings into every definition; afterwards each has back what it had, also after an exception.

    Absent keys become absent again. Blocks may be nested. None stands for a definition that does not exist.
    """
    apart = list({id(d): d for d in definitions if d is not None}.values())
    before = [{key: deepcopy(d[key]) for key in SETTINGS if key in d} for d in apart]
    for d in apart:
        d.update(deepcopy(dict(SETTINGS)))
    try:
        yield
    finally:
        for d, saved in zip(apart, before, strict=True):
            for key in SETTINGS:
                d.pop(key, None)
            d.update(saved)


def take_flag(parameters: dict[str, Any]) -> bool:
    """Remove the flag from a task's generation arguments, which do not know it, and return it."""
    return bool(parameters.pop(FLAG, False))


def wanted(job: Mapping[str, Any], segment: Mapping[str, Any]) -> bool | None:
    """Whether a segment asks for SVI: its own word, else the job's; None when neither says."""
    value = segment["use_svi"] if "use_svi" in segment else job.get("use_svi")
    return None if value is None else bool(value)
