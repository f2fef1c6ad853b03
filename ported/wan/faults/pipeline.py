"""Faults of the sampling loop: which prompt goes into which guidance branch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ported.wan.faults.record import Port, PortFault, patched

Features = tuple[Tensor, Tensor]


@contextmanager
def guidance_swapped(port: Port) -> Iterator[None]:
    """Positive and negative prompt features change places."""
    cls = type(port.pipe)
    encode = cls.encode_prompt

    def swapped(self: Any, *args: Any, **kwargs: Any) -> Features:
        positive, negative = encode(self, *args, **kwargs)
        return negative, positive

    with patched(cls, "encode_prompt", swapped):
        yield


@contextmanager
def guidance_one_prompt(port: Port) -> Iterator[None]:
    """Both branches get the positive features, so guidance cancels."""
    cls = type(port.pipe)
    encode = cls.encode_prompt

    def positive_twice(self: Any, *args: Any, **kwargs: Any) -> Features:
        positive, _ = encode(self, *args, **kwargs)
        return positive, positive

    with patched(cls, "encode_prompt", positive_twice):
        yield


FAULTS: tuple[PortFault, ...] = (
    PortFault(
        "guidance_swapped",
        "B",
        "C1",
        "positive and negative features exchanged",
        guidance_swapped,
        "pipeline",
        {"guidance": 5.0},
    ),
    PortFault(
        "guidance_one_prompt",
        "B",
        "C1",
        "both guidance branches get the positive prompt",
        guidance_one_prompt,
        "pipeline",
        {"guidance": 5.0},
    ),
)
