"""Traces on disk, read. Nothing is unpickled; what does not fit together is refused in one line.

A trace folder holds `manifest.json` and the shards that it names, `records-<writer>-00000.safetensors`, ... . A shard carries the records as JSON in its metadata, full tensors
under `t.<order>` (complex ones as `c.<order>`, real and imaginary parts on a last axis) and sketches under `s.<order>`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from parity.boundary.json import parse_json, read_json
from parity.boundary.limits import AXES, NAME
from parity.boundary.text import one_line, reason
from parity.errors import TraceError
from parity.result import parse_key
from parity.trace import FORMAT_VERSION, Manifest, MemorySource, Record, Trace
from parity.trace.fingerprint import BUCKETS
from parity.trace.manifest import manifest_from_json, record_from_json
from parity.trace.writer import FORMAT, MANIFEST, SHARD, TraceWriter, write_trace

__all__ = [
    "FileSource",
    "TraceWriter",
    "in_memory",
    "load_trace",
    "natural_key",
    "open_safetensors",
    "read_metadata",
    "write_trace",
]


def load_trace(path: str | Path) -> Trace:
    """Read a trace: a folder written by parity, or any plain `.safetensors` file whose keys are sites.

    Raises TraceError with one line when the file cannot be read.
    """
    path = Path(path)
    try:
        there, folder = path.exists(), path.is_dir()
    except (OSError, ValueError) as error:
        raise TraceError(f"cannot read the trace {path}: {reason(error)}") from None
    if not there:
        raise TraceError(f"cannot read the trace {path}: no such file or folder")
    return _load_folder(path) if folder else _load_plain(path)


class FileSource:
    """Full tensors in safetensors files, read when asked for. `pairs`: keys of complex ones that are kept as pairs of numbers."""

    def __init__(self, where: Mapping[str, tuple[Path, str]], pairs: Collection[str] = ()) -> None:
        self.where = where
        self.pairs = pairs
        self._open: dict[Path, Any] = {}

    def get(self, key: str) -> Tensor | None:
        found = self.where.get(key)
        if found is None:
            return None
        path, name = found
        if path not in self._open:
            self._open[path] = open_safetensors(path)
        tensor: Tensor = self._open[path].get_tensor(name)
        return torch.view_as_complex(tensor) if key in self.pairs else tensor


def open_safetensors(path: Path) -> Any:
    """Open a safetensors file; one clear line when it is missing, truncated or no such file."""
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError, ValueError, OverflowError, MemoryError) as error:
        raise TraceError(f"cannot read {path}: no whole safetensors file ({reason(error)})") from None


def read_metadata(path: Path) -> dict[str, str]:
    """Return the string metadata of a safetensors file."""
    return dict(open_safetensors(Path(path)).metadata() or {})


def _load_folder(path: Path) -> Trace:
    manifest, files = _read_manifest(path)
    records: list[Record] = []
    where: dict[str, tuple[Path, str]] = {}
    pairs: set[str] = set()
    for file in files:
        handle = open_safetensors(file)
        names = set(handle.keys())
        listed = parse_json((handle.metadata() or {}).get("records", "null"), f"{file}: its record list")
        try:
            for record, name in _records(listed, handle, names):
                if record.key in where:
                    raise ValueError(f"two records named {record.key}")
                where[record.key] = (file, name)
                records.append(record)
                if name.startswith("c."):
                    pairs.add(record.key)
        except (KeyError, TypeError, ValueError, SafetensorError) as error:
            raise TraceError(f"{file}: its record list is malformed ({reason(error)})") from None
    return Trace(records, manifest, FileSource({key: found for key, found in where.items() if found[1]}, pairs))


def _records(listed: Any, handle: Any, names: Collection[str]) -> Iterator[tuple[Record, str]]:
    """Yield each record of a shard and the name of its tensor ("" without one); what the file holds must be what the record says."""
    if not isinstance(listed, list):
        raise ValueError("it is no list")
    for item in listed:
        order = item["order"] if isinstance(item, dict) else None
        sketch = handle.get_tensor(f"s.{order}") if f"s.{order}" in names else None
        record = record_from_json(item, sketch)
        if sketch is not None and sketch.numel() not in BUCKETS:
            raise ValueError(f"the sketch of {one_line(record.site, 60)!r} has {sketch.numel()} buckets")
        name = next((f"{kind}.{order}" for kind in "tc" if f"{kind}.{order}" in names), "")
        if name:
            held = tuple(handle.get_slice(name).get_shape())
            if held != ((*record.shape, 2) if name.startswith("c.") else record.shape):
                raise ValueError(f"{one_line(record.site, 60)!r} is {list(record.shape)}, its tensor {list(held)}")
        yield record, name


def _read_manifest(path: Path) -> tuple[Manifest, list[Path]]:
    """Return the manifest and the shards that it names."""
    file = path / MANIFEST
    if not file.is_file():
        raise TraceError(f"{path} is no trace: it has no {MANIFEST}")
    raw = read_json(file)
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise TraceError(f"{file} is no parity manifest")
    if raw.get("version") != FORMAT_VERSION:
        raise TraceError(f"{file}: trace format {one_line(raw.get('version'), 40)}, this parity reads {FORMAT_VERSION}")
    shards, named = raw.get("shards", 0), raw.get("files")
    if not isinstance(shards, int) or isinstance(shards, bool) or shards < 0:
        raise TraceError(f"{file}: 'shards' must be a number")
    if named is None:  # written before manifests named their shards
        named = sorted(f.name for f in path.glob("records-*.safetensors") if re.fullmatch(r"records-\d+\.\w+", f.name))
    elif not isinstance(named, list) or not all(isinstance(n, str) and SHARD.fullmatch(n) for n in named):
        raise TraceError(f"{file}: 'files' must list shards, named records-*.safetensors")
    files = [path / name for name in named]
    there = sum(f.is_file() for f in files)
    if there < max(shards, len(files)):
        raise TraceError(f"{path}: the manifest lists {max(shards, len(files))} shards, {there} are there")
    try:
        return manifest_from_json(raw), files
    except ValueError as error:
        raise TraceError(f"{file}: {error}") from None


def _load_plain(path: Path) -> Trace:
    handle = open_safetensors(path)
    metadata = handle.metadata() or {}
    keys = [k for k in handle.keys() if not k.startswith(("weights.", "inputs."))]  # noqa: SIM118 (safe_open is no mapping)
    if not keys:
        raise TraceError(f"{path} holds no record: its keys are weights or inputs only")
    order, assumed = _order(path, keys, metadata)
    records, where = [], {}
    for i, key in enumerate(order):
        if len(key) > NAME:
            raise TraceError(f"{path}: the key {one_line(key, 60)!r} has more than {NAME} characters")
        site, coords = parse_key(_plain_name(key))
        view = handle.get_slice(key)
        record = Record(
            site=site,
            coords=coords,
            kind=_guess_kind(site, key),
            order=i,
            shape=tuple(view.get_shape()),
            dtype=_dtype(path, key, view.get_dtype()),
        )
        if record.key in where:
            raise TraceError(f"{path}: two keys name the record {record.key}")
        records.append(record)
        where[record.key] = (path, key)
    if any(len(r.shape) > AXES for r in records):
        raise TraceError(f"{path}: a tensor of more than {AXES} axes")
    manifest = Manifest(
        system=metadata.get("system", ""),
        case=metadata.get("case", ""),
        side=metadata.get("side", ""),
        order_assumed=assumed,
    )
    return Trace(records, manifest, FileSource(where))


_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32", "I16": "int16",
    "I8": "int8", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64", "BOOL": "bool", "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip


def _dtype(path: Path, key: str, name: str) -> str:
    """Return torch's name of a dtype of the file. Raises TraceError for one that torch cannot hold."""
    found = _DTYPES.get(name, "")
    if not hasattr(torch, found or "-"):
        raise TraceError(f"{path}: {one_line(key, 80)!r} is {name}, which this torch cannot read")
    return found


def _order(path: Path, keys: list[str], metadata: Mapping[str, str]) -> tuple[list[str], bool]:
    """Return the keys in the order that the metadata gives, or in natural order (assumed)."""
    if "order" not in metadata:
        return sorted(keys, key=natural_key), True
    listed = parse_json(metadata["order"], f"{path}: its 'order' metadata")
    if not isinstance(listed, list) or not all(isinstance(k, str) for k in listed):
        raise TraceError(f"{path}: its 'order' metadata is no JSON list of keys")
    known = set(keys)
    by_name = {_plain_name(k): k for k in keys}
    chosen = [k if k in known else by_name.get(k, "") for k in listed]
    missing = [k for k, c in zip(listed, chosen, strict=True) if not c]
    if missing:
        raise TraceError(f"{path}: its 'order' lists {one_line(missing[0], 80)!r}, which the file does not hold")
    rest = sorted(known - set(chosen), key=natural_key)
    return list(dict.fromkeys(chosen)) + rest, bool(rest)


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sort key that puts `blocks.2` before `blocks.10`."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]


def _plain_name(key: str) -> str:
    return key.removeprefix("acts.")


def _guess_kind(site: str, key: str) -> str:
    if key.startswith("outputs."):
        return "output"
    last = site.rpartition(".")[2].lower()
    for kind, words in _KIND_WORDS.items():
        if any(word in last for word in words):
            return kind
    return "activation"


_KIND_WORDS = {
    "mask": ("mask", "keep"),
    "schedule": ("sigma", "timestep"),
    "rope": ("rope_table", "freqs", "cos", "sin", "position"),
    "latent": ("latent",),
    "frame": ("frame",),
    "weight": ("weight", "bias"),
}


def in_memory(trace: Trace) -> Trace:
    """Return the trace with its full tensors loaded."""
    found = {r.key: t for r in trace if (t := trace.tensor(r.key)) is not None}
    return Trace(trace.records, trace.manifest, MemorySource(found))
