"""Records and manifests as plain JSON values: written, read back, and checked, because a trace may come from anybody."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from parity.boundary.limits import AXES, INTEGER, NAME
from parity.boundary.text import one_line
from parity.trace import KINDS, Manifest, Parameter, Record, Stats

_NUMBER = (int, float)
_STATS: Mapping[str, Any] = {f.name: _NUMBER for f in dataclasses.fields(Stats)} | {
    "first_nonfinite": (int, type(None)),
    "where": str,
}
_RECORD: Mapping[str, Any] = {
    "site": str,
    "coords": dict,
    "kind": str,
    "order": int,
    "shape": list,
    "dtype": str,
    "stats": (dict, type(None)),
    "digest": str,
    "module": str,
    "role": str,
    "origin": str,
    "layout": str,
}
_NEEDED = ("site", "coords", "kind", "order", "shape", "dtype")
_MANIFEST: Mapping[str, Any] = {
    "system": str,
    "case": str,
    "side": str,
    "seed": (int, type(None)),
    "dtype": str,
    "device": str,
    "weights": str,
    "environment": dict,
    "complete": bool,
    "order_assumed": bool,
    "notes": list,
    "axes": dict,
    "parameters": dict,
    "buffers": dict,
    "floors": dict,
    "rules": dict,
    "judging": str,
    "returned": bool,
    "version": int,
}
_PARAMETER: Mapping[str, Any] = {"shape": list, "dtype": str, "stats": dict, "digests": dict, "sketch": list}


def record_to_json(record: Record) -> dict[str, Any]:
    """Return a record as JSON values, without its sketch."""
    item = dataclasses.asdict(dataclasses.replace(record, sketch=None))
    item.pop("sketch"), item.pop("function")  # a path of this machine
    return item


def record_from_json(item: Any, sketch: Tensor | None) -> Record:
    """Return the record that `item` describes. Raises ValueError with what is wrong."""
    fields = _checked(item, _RECORD, "record", _NEEDED)
    if fields["kind"] not in KINDS:
        raise ValueError(f"unknown kind {one_line(fields['kind'], 40)!r}")
    if not isinstance(getattr(torch, fields["dtype"], None), torch.dtype):
        raise ValueError(f"unknown dtype {one_line(fields['dtype'], 40)!r}")
    for name in ("site", "module", "origin", "layout", "role", "digest"):
        if len(fields.get(name, "")) > NAME:
            raise ValueError(f"{name!r} of a record has more than {NAME} characters")
    if any(len(axis) > NAME for axis in fields["coords"]):
        raise ValueError(f"an axis has more than {NAME} characters")
    if not 0 <= fields["order"] <= INTEGER:
        raise ValueError("'order' of a record is negative")
    size = _shape(fields["shape"])
    _all_integers(fields["coords"].values(), "coords")
    if sketch is not None and (sketch.dim() != 1 or not sketch.is_floating_point()):
        raise ValueError(f"the sketch of {fields['site']!r} is no row of numbers")
    if fields.get("stats") is not None:
        fields["stats"] = _stats(fields["stats"])
        if fields["stats"].count not in (size, 2 * size):  # complex ones count both parts
            raise ValueError(
                f"{one_line(fields['site'], 60)!r} has {size} elements, its statistics {fields['stats'].count}"
            )
    fields["shape"] = tuple(fields["shape"])
    return Record(**fields, sketch=sketch)


def manifest_to_json(manifest: Manifest) -> dict[str, Any]:
    """Return a manifest as JSON values."""
    return dataclasses.asdict(manifest)


def manifest_from_json(raw: Mapping[str, Any]) -> Manifest:
    """Return the manifest; entries that this version does not know are left alone. Raises ValueError with what is wrong."""
    fields = _checked({k: v for k, v in raw.items() if k in _MANIFEST}, _MANIFEST, "manifest")
    if not all(isinstance(note, str) for note in fields.get("notes", ())):
        raise ValueError("notes must be text")
    _all_integers(fields.get("axes", {}).values(), "axes")
    floors = fields.get("floors", {})
    _all_of(floors, _NUMBER, "floors")
    if not all(0 <= number < math.inf for group in floors.values() for number in group.values()):
        raise ValueError("floors must be finite numbers, 0 or larger")
    _all_of(fields.get("rules", {}), str, "rules")
    if not re.fullmatch(r"(judging-[0-9a-f]{8})?", fields.get("judging", "")):
        raise ValueError(f"'judging' names no folder of a trace: {one_line(fields['judging'], 60)!r}")
    described = {
        kind: {name: _parameter(item) for name, item in fields.get(kind, {}).items()}
        for kind in ("parameters", "buffers")
    }
    whole = fields.get("complete", False)  # who does not say that it is whole may have been killed
    return Manifest(**fields | {"notes": tuple(fields.get("notes", ())), "complete": whole} | described)


def _parameter(item: Any) -> Parameter:
    fields = _checked(item, _PARAMETER, "parameter", ("shape", "dtype", "stats"))
    _shape(fields["shape"])
    digests, sketch = fields.get("digests", {}), fields.get("sketch", [])
    _all_of({"digests": digests}, str, "parameter")
    _all_of({"sketch": dict(enumerate(sketch))}, _NUMBER, "parameter")
    return Parameter(tuple(fields["shape"]), fields["dtype"], _stats(fields["stats"]), digests, tuple(sketch))


def _stats(item: Any) -> Stats:
    found = Stats(**_checked(item, _STATS, "stats", ("count",)))
    counts = (found.count, found.nan, found.posinf, found.neginf, found.zeros)
    if not all(isinstance(n, int) and 0 <= n <= INTEGER for n in counts) or max(counts) > found.count:
        raise ValueError("counts of stats must be whole numbers, none above the count of elements")
    return found


def _shape(shape: list[Any]) -> int:
    """Check a shape; return its number of elements."""
    _all_integers(shape, "shape")
    size = int(math.prod(shape))
    if len(shape) > AXES or any(n < 0 for n in shape) or size > INTEGER:
        raise ValueError(f"no tensor has the shape {one_line(shape, 60)}")
    return size


def _checked(item: Any, types: Mapping[str, Any], what: str, needed: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return `item` as keyword arguments; every entry is known and of its type."""
    if not isinstance(item, dict):
        raise ValueError(f"a {what} is a JSON object, not {type(item).__name__}")
    for name in needed:
        if name not in item:
            raise ValueError(f"a {what} has no {name!r}")
    for name, value in item.items():
        if name not in types:
            raise ValueError(f"unknown entry {one_line(name, 40)!r} in a {what}")
        if not isinstance(value, types[name]) or (isinstance(value, bool) and types[name] is not bool):
            raise ValueError(f"{name!r} of a {what} cannot be {type(value).__name__}")
        if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
            raise ValueError(f"the names in {name!r} of a {what} must be text")
    return dict(item)


def _all_integers(values: Any, what: str) -> None:
    for value in values:
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"{what} must be whole numbers, not {value!r}"[:200])


def _all_of(groups: Mapping[str, Any], wanted: Any, what: str) -> None:
    for name, group in groups.items():
        if not isinstance(group, dict) or any(isinstance(v, bool) or not isinstance(v, wanted) for v in group.values()):
            raise ValueError(f"{what}: {name!r} must map names to {'text' if wanted is str else 'numbers'}")
