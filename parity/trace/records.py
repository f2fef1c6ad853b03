"""What happened: records in the order in which they happened, and a manifest. No opinion, no model.

Needs torch and numpy only, so that a trace can be made and read anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from parity.result import format_key

if TYPE_CHECKING:
    import pandas

FORMAT_VERSION = 1
KINDS = ("input", "activation", "rope", "kv", "mask", "schedule", "latent", "frame", "weight", "gradient", "output")
ENDS = ("return", "after")  # roles of what a run returned and of what it left behind: the last of the order


@dataclass(frozen=True)
class Stats:
    """Statistics of one tensor over its finite elements, and a census of the others."""

    count: int
    nan: int = 0
    posinf: int = 0
    neginf: int = 0
    zeros: int = 0
    first_nonfinite: int | None = None  # flat index
    min: float = 0.0
    max: float = 0.0
    sum: float = 0.0
    sumsq: float = 0.0
    where: str = ""  # hash of the places and classes of what is not finite

    @property
    def nonfinite(self) -> int:
        return self.nan + self.posinf + self.neginf

    @property
    def norm(self) -> float:
        """L2 norm of the finite part."""
        return float(self.sumsq**0.5)


@dataclass(frozen=True)
class Parameter:
    """What tells one weight from the others, without its values.

    digests: exact hashes, by the dtype to which the values were rounded before (its own, and the halves that are narrower). sketch: a small linear one.
    """

    shape: tuple[int, ...]
    dtype: str
    stats: Stats
    digests: Mapping[str, str] = field(default_factory=dict)
    sketch: tuple[float, ...] = ()


@dataclass(frozen=True)
class Record:
    """One tensor seen at one site and coordinates.

    site: the point of the computation (in the reference's names when the capture had a name map). coords: axis -> index, in nesting
    order. module: path of the innermost module that was running, whose code made the value (for an input: the caller). role: "in", "out", "function", "state",
    "return" (what the run returned) or "after" (what it left behind). origin: the
    site's own name before a name map renamed it. layout: the einops pattern that was applied, if any. function: where the code that returned the
    value begins ("file:line"; not stored).
    """

    site: str
    coords: Mapping[str, int]
    kind: str
    order: int
    shape: tuple[int, ...]
    dtype: str
    stats: Stats | None = None
    digest: str = ""
    sketch: Tensor | None = None  # float64 [K]
    module: str = ""
    role: str = "out"
    origin: str = ""
    layout: str = ""
    function: str = field(default="", compare=False)

    @cached_property
    def key(self) -> str:
        return format_key(self.site, self.coords)

    @cached_property
    def is_float(self) -> bool:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype.is_floating_point or dtype.is_complex

    @property
    def nbytes(self) -> int:
        """Bytes of the full tensor."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return math.prod(self.shape) * dtype.itemsize


class TensorSource(Protocol):
    """Where the full tensors of a trace are: in memory or in files."""

    def get(self, key: str) -> Tensor | None: ...


@dataclass(frozen=True)
class Manifest:
    """What a trace says about itself."""

    system: str = ""
    case: str = ""
    side: str = ""
    seed: int | None = None
    dtype: str = ""
    device: str = ""
    weights: str = ""  # digest of the weights
    environment: Mapping[str, Any] = field(default_factory=dict)
    complete: bool = True
    order_assumed: bool = False
    notes: tuple[str, ...] = ()
    axes: Mapping[str, int] = field(default_factory=dict)
    parameters: Mapping[str, Parameter] = field(default_factory=dict)  # weights by name; none where nobody looked
    buffers: Mapping[str, Parameter] = field(default_factory=dict)  # tables, statistics and caches before the run
    # Relative L2 by site: "own" errors against a float64 run, "levels" of pictures in bytes, "isolation": what moved weights do, "rounding": what roundings of
    # the values do. By patterns of sites: "noise" that is declared.
    floors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    rules: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # of its case: "unaligned", "relax" -> reasons
    judging: str = ""  # folder beside the manifest: values in float64 and operations, on request
    returned: bool = False  # what the run returned is among the records, also where it returned nothing
    version: int = FORMAT_VERSION


class MemorySource:
    """Full tensors held in memory."""

    def __init__(self, tensors: dict[str, Tensor] | None = None) -> None:
        self.tensors: dict[str, Tensor] = tensors if tensors is not None else {}

    def get(self, key: str) -> Tensor | None:
        return self.tensors.get(key)


@dataclass
class Trace:
    """The records of one run in order, and where their tensors are."""

    records: list[Record] = field(default_factory=list)
    manifest: Manifest = field(default_factory=Manifest)
    source: TensorSource = field(default_factory=MemorySource)

    def __post_init__(self) -> None:
        self._by_key: dict[str, Record] = {record.key: record for record in self.records}

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __contains__(self, key: str) -> bool:
        return key in self._by_key

    def get(self, key: str) -> Record | None:
        """Return the record named `site@axis=i`, or None."""
        return self._by_key.get(key)

    def tensor(self, key: str) -> Tensor | None:
        """Return the full tensor of a record, or None when only its sketch was kept."""
        return self.source.get(key)

    def at(self, site: str, coords: Mapping[str, int]) -> Tensor | None:
        """Return the full tensor at a site and coordinates, or None."""
        return self.tensor(format_key(site, coords))

    def add(self, record: Record, tensor: Tensor | None = None) -> None:
        """Append a record (in-memory traces only keep `tensor` when given)."""
        self.records.append(record)
        self._by_key[record.key] = record
        if tensor is not None and isinstance(self.source, MemorySource):
            self.source.tensors[record.key] = tensor

    def put(self, place: int, record: Record) -> None:
        """Put a record that was completed in the place of the one that was added."""
        self.records[place] = record
        self._by_key[record.key] = record

    def to_pandas(self) -> pandas.DataFrame:
        """Return one line a record: site, coordinates, kind, module, dtype, shape, statistics."""
        from parity.report.tables import records_table

        return records_table(self)

    def _repr_html_(self) -> str:
        """Show the first records in a notebook."""
        from parity.report.notebook import trace_html

        return trace_html(self)

    def sites(self) -> list[str]:
        """Return every site once, in order of first appearance."""
        return list(dict.fromkeys(record.site for record in self.records))

    def with_manifest(self, **changes: Any) -> Trace:
        """Return the same trace under a changed manifest."""
        return Trace(self.records, replace(self.manifest, **changes), self.source)
