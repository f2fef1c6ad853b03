"""Rules of a name map, and where they put a tensor: a site, a layout, a part of a fused one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

UNFIT = " (does not fit)"  # behind the layout of a record that it could not be applied to


@dataclass(frozen=True)
class Split:
    """A fused port tensor that is several reference tensors: equal parts of `axis`, or parts of `sizes`."""

    axis: int
    into: tuple[str, ...]
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Rule:
    port: str = ""
    reference: str = ""
    layout: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict)
    split: Split | None = None
    ignore: str = ""
    also: tuple[
        str, ...
    ] = ()  # further reference sites that are this same tensor (the input of each part of a fused projection)
    how: str = "map"  # the evidence, for maps that were inferred
    apart: bool = (
        False  # what is no pair: port sites that have no partner, or not this one (`reference` is a regular expression)
    )


@dataclass(frozen=True)
class Target:
    """Where a port tensor (or one part of it) belongs on the reference side."""

    site: str
    layout: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict)
    axis: int = 0
    part: int = 0
    parts: tuple[int, ...] = ()  # sizes of all parts; () with of > 1 means equal parts
    of: int = 1

    def to_reference(self, value: Tensor) -> Tensor:
        """Return the port's `value` as a view in the reference's layout."""
        if self.of > 1:
            value = self._parts(value)[self.part]
        return rearrange(value, self.layout, self.sizes) if self.layout else value

    def to_port(self, value: Tensor, old: Tensor) -> Tensor:
        """Return the reference's `value` in the port's layout and dtype, laid over `old` (the port's own tensor)."""
        if self.layout:
            value = rearrange_back(value, self.layout, self.to_reference_shape(old), self.sizes)
        value = value.to(dtype=old.dtype, device=old.device)
        if self.of == 1:
            return value.reshape(old.shape)
        fused = old.clone()
        self._parts(fused)[self.part].copy_(value)
        return fused

    def to_reference_shape(self, old: Tensor) -> Tensor:
        return self._parts(old)[self.part] if self.of > 1 else old

    def _parts(self, value: Tensor) -> Sequence[Tensor]:
        if self.parts:
            pieces: Sequence[Tensor] = value.split(list(self.parts), dim=self.axis)
            return pieces
        return value.chunk(self.of, dim=self.axis)


def rearrange(value: Tensor, pattern: str, sizes: Mapping[str, int]) -> Tensor:
    """Apply an einops pattern (einops is imported only where a map asks for a layout)."""
    import einops

    arranged: Tensor = einops.rearrange(value, pattern, **sizes)
    return arranged


def rearrange_back(value: Tensor, pattern: str, port: Tensor, sizes: Mapping[str, int]) -> Tensor:
    """Undo an einops pattern; axis lengths are read off the port's own tensor."""
    import einops

    left, right = (side.strip() for side in pattern.split("->"))
    lengths = dict(sizes) | einops.parse_shape(port, left) if "(" not in left else dict(sizes)
    lengths.pop("_", None)
    used = {k: v for k, v in lengths.items() if k in re.findall(r"\w+", right)}
    arranged: Tensor = einops.rearrange(value, f"{right} -> {left}", **used)
    return arranged
