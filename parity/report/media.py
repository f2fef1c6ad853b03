"""What a report can show besides the result: frames, caches, positions and masks, as plain arrays with names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class KvView:
    """A cache over time: which frame each slot holds after each row (usually a generated frame), on each side.

    `held_reference`, `held_port` [rows, slots] integers: the frame id in the slot, -1 for an empty slot. `error`
    [rows, slots]: relative L2 between the sides' entries, nan where it was not compared. `floor` is what it may be.
    """

    layer: str
    held_reference: NDArray[np.integer[Any]]
    held_port: NDArray[np.integer[Any]]
    error: NDArray[np.floating[Any]] | None = None
    floor: float = 0.0
    row_label: str = "after frame"
    column_label: str = "slot"
    rows: tuple[str, ...] = ()  # names of the rows; their numbers without
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class RopeView:
    """A positional table, or the positions in use: `reference`, `port` [positions, channels], any real numbers."""

    name: str
    reference: NDArray[Any]
    port: NDArray[Any]
    row_label: str = "position"
    column_label: str = "channel"
    floor: float = 0.0


@dataclass(frozen=True, eq=False)
class PairView:
    """Rotated queries or keys of one head: `reference`, `port` [positions, channels], an even number of channels."""

    name: str
    reference: NDArray[Any]
    port: NDArray[Any]


@dataclass(frozen=True, eq=False)
class MaskView:
    """What may be seen: `reference`, `port` [rows, columns], true = visible. Rows are queries, or one row a frame."""

    name: str
    reference: NDArray[Any]
    port: NDArray[Any]
    row_label: str = "query"
    column_label: str = "key"


@dataclass(frozen=True, eq=False)
class ValueView:
    """Both sides' values at one record: how they are spread, where along each axis they differ, the worst elements, and one slice.

    range: of the histograms, [low, high]. axes: (axis, indices a bin, error of each bin against the whole reference's L2). worst: (index,
    reference, port). slice_name: `[1, :, 0, :]`, through the worst element; origin: its first row and column. `reference`, `port`,
    `difference` [rows, columns].
    """

    key: str
    shape: tuple[int, ...]
    range: tuple[float, float]
    reference_counts: tuple[int, ...]
    port_counts: tuple[int, ...]
    nonfinite: tuple[int, int]
    axes: tuple[tuple[int, int, tuple[float, ...]], ...]
    worst: tuple[tuple[tuple[int, ...], float, float], ...]
    slice_name: str
    origin: tuple[int, int]
    reference: NDArray[np.floating[Any]]
    port: NDArray[np.floating[Any]]
    difference: NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Source:
    """Lines of a file around number `line`, which matters: `place` is `file:line`, `first` the number of the first line."""

    place: str
    line: int
    first: int
    lines: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Media:
    """All views of one case. Frames are [F, H, W, 3] uint8; the sides may differ in count and size."""

    frames_reference: NDArray[np.uint8] | None = None
    frames_port: NDArray[np.uint8] | None = None
    fps: float | None = None
    kv: tuple[KvView, ...] = ()
    rope: tuple[RopeView, ...] = ()
    masks: tuple[MaskView, ...] = ()
    pairs: tuple[PairView, ...] = ()
    values: tuple[ValueView, ...] = ()
    sources: Mapping[str, Source] = field(default_factory=dict)  # by their places
