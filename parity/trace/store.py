"""Traces on disk. Nothing is unpickled; everything appears under its name only when it is whole.

A trace folder holds `manifest.json` and shards `records-00000.safetensors`, ... . A shard carries the records as JSON in its metadata, full tensors
under `t.<order>` (complex ones as `c.<order>`, real and imaginary parts on a last axis) and sketches under `s.<order>`. The manifest is written first (incomplete), again after each shard, and last (complete): a killed run
leaves a trace that opens and says that it is incomplete.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from parity.errors import TraceError
from parity.files import replacing, write_text
from parity.result import parse_key
from parity.trace import FORMAT_VERSION, Manifest, MemorySource, Parameter, Record, Trace
from parity.trace.fingerprint import digest, sketch, stats
from parity.trace.manifest import manifest_from_json, manifest_to_json, record_from_json, record_to_json

_SHARD_BYTES = 64 << 20
_SHARD_RECORDS = 2000


class TraceWriter:
    """Write records into a trace folder as they come. `with TraceWriter(path, manifest) as w: w.write(record, tensor)`."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = Path(path)
        self.manifest = dataclasses.replace(manifest, complete=False)
        self._records: list[Record] = []
        self._tensors: dict[str, Tensor] = {}
        self._bytes = 0
        self._shards = 0

    def __enter__(self) -> TraceWriter:
        self.path.mkdir(parents=True, exist_ok=True)
        for stale in [*self.path.glob("records-*.safetensors"), *self.path.glob("manifest.json")]:
            stale.unlink()
        self._write_manifest()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.flush()
        if kind is None:
            self.manifest = dataclasses.replace(self.manifest, complete=True)
            self._write_manifest()

    def write(self, record: Record, tensor: Tensor | None) -> None:
        """Take one record; flush a shard when enough is gathered."""
        self._records.append(record)
        if record.sketch is not None:
            self._tensors[f"s.{record.order}"] = record.sketch
        if tensor is not None:
            tensor = tensor.detach().to("cpu")
            name, tensor = ("c", torch.view_as_real(tensor.resolve_conj())) if tensor.is_complex() else ("t", tensor)
            self._tensors[f"{name}.{record.order}"] = tensor.contiguous()
            self._bytes += tensor.numel() * tensor.element_size()
        if self._bytes >= _SHARD_BYTES or len(self._records) >= _SHARD_RECORDS:
            self.flush()

    def describe(self, parameters: Mapping[str, Parameter]) -> None:
        """Add a model's weights to the manifest."""
        known = {**self.manifest.parameters, **parameters}
        self.manifest = dataclasses.replace(self.manifest, parameters=known)

    def flush(self) -> None:
        """Write what is gathered as one shard, atomically."""
        if not self._records:
            return
        target = self.path / f"records-{self._shards:05d}.safetensors"
        with replacing(target) as temporary:
            save_file(self._tensors, temporary, {"records": json.dumps([record_to_json(r) for r in self._records])})
        self._records, self._tensors, self._bytes = [], {}, 0
        self._shards += 1
        self._write_manifest()

    def _write_manifest(self) -> None:
        fields = manifest_to_json(self.manifest) | {"shards": self._shards, "format": "parity-trace"}
        write_text(self.path / "manifest.json", json.dumps(fields, indent=1) + "\n")


def write_trace(trace: Trace, path: Path) -> None:
    """Write an in-memory trace to a folder."""
    with TraceWriter(path, trace.manifest) as writer:
        for record in trace:
            writer.write(_with_digests(record, trace.tensor(record.key)), trace.tensor(record.key))
    if not trace.manifest.complete:
        writer.manifest = trace.manifest
        writer._write_manifest()


def _with_digests(record: Record, tensor: Tensor | None) -> Record:
    """Complete a record that kept its tensor alone: what is written can be compared without it."""
    if record.stats is not None or tensor is None:
        return record
    return dataclasses.replace(record, stats=stats(tensor), digest=digest(tensor), sketch=sketch(tensor))


def load_trace(path: str | Path) -> Trace:
    """Read a trace: a folder written by parity, or any plain `.safetensors` file whose keys are sites.

    Raises TraceError with one line when the file cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return _load_folder(path)
    if not path.exists():
        raise TraceError(f"cannot read the trace {path}: no such file or folder")
    return _load_plain(path)


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
    except (SafetensorError, OSError) as error:
        raise TraceError(f"cannot read {path}: no whole safetensors file ({str(error).splitlines()[0]})") from None


def read_metadata(path: Path) -> dict[str, str]:
    """Return the string metadata of a safetensors file."""
    return dict(open_safetensors(Path(path)).metadata() or {})


def _load_folder(path: Path) -> Trace:
    manifest, shards = _read_manifest(path)
    records: list[Record] = []
    where: dict[str, tuple[Path, str]] = {}
    seen: set[str] = set()
    pairs: set[str] = set()
    files = sorted(path.glob("records-*.safetensors"))
    if len(files) < shards:
        raise TraceError(f"{path}: the manifest lists {shards} shards, {len(files)} are there")
    for file in files:
        handle = open_safetensors(file)
        names = set(handle.keys())
        try:
            for item in json.loads((handle.metadata() or {})["records"]):
                sketch = handle.get_tensor(f"s.{item['order']}") if f"s.{item['order']}" in names else None
                record = record_from_json(item, sketch)
                if record.key in seen:
                    raise ValueError(f"two records named {record.key}")
                seen.add(record.key)
                records.append(record)
                if f"t.{record.order}" in names:
                    where[record.key] = (file, f"t.{record.order}")
                elif f"c.{record.order}" in names:
                    where[record.key] = (file, f"c.{record.order}")
                    pairs.add(record.key)
        except (KeyError, TypeError, ValueError) as error:
            raise TraceError(f"{file}: its record list is malformed ({type(error).__name__}: {error})") from None
    return Trace(records, manifest, FileSource(where, pairs))


def _read_manifest(path: Path) -> tuple[Manifest, int]:
    file = path / "manifest.json"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise TraceError(f"{path} is no trace: it has no manifest.json") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise TraceError(f"{file} is no JSON: {error}") from None
    if not isinstance(raw, dict) or raw.get("format") != "parity-trace":
        raise TraceError(f"{file} is no parity manifest")
    if raw.get("version") != FORMAT_VERSION:
        raise TraceError(f"{file}: trace format {raw.get('version')}, this parity reads {FORMAT_VERSION}")
    shards = raw.get("shards", 0)
    if not isinstance(shards, int):
        raise TraceError(f"{file}: 'shards' must be a number")
    try:
        return manifest_from_json(raw), shards
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
        site, coords = parse_key(_plain_name(key))
        view = handle.get_slice(key)
        record = Record(
            site=site,
            coords=coords,
            kind=_guess_kind(site, key),
            order=i,
            shape=tuple(view.get_shape()),
            dtype=_DTYPES.get(view.get_dtype()) or str(handle.get_tensor(key).dtype).removeprefix("torch."),
        )
        if record.key in where:
            raise TraceError(f"{path}: two keys name the record {record.key}")
        records.append(record)
        where[record.key] = (path, key)
    manifest = Manifest(
        system=metadata.get("system", ""),
        case=metadata.get("case", ""),
        side=metadata.get("side", ""),
        order_assumed=assumed,
    )
    return Trace(records, manifest, FileSource(where))


_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32", "I16": "int16",
    "I8": "int8", "U8": "uint8", "BOOL": "bool", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "C64": "complex64",
}  # fmt: skip


def _order(path: Path, keys: list[str], metadata: Mapping[str, str]) -> tuple[list[str], bool]:
    """Return the keys in the order that the metadata gives, or in natural order (assumed)."""
    if "order" not in metadata:
        return sorted(keys, key=natural_key), True
    try:
        listed = json.loads(metadata["order"])
    except ValueError:
        raise TraceError(f"{path}: its 'order' metadata is no JSON list of keys") from None
    if not isinstance(listed, list) or not all(isinstance(k, str) for k in listed):
        raise TraceError(f"{path}: its 'order' metadata is no JSON list of keys")
    known = set(keys)
    by_name = {_plain_name(k): k for k in keys}
    chosen = [k if k in known else by_name.get(k, "") for k in listed]
    missing = [k for k, c in zip(listed, chosen, strict=True) if not c]
    if missing:
        raise TraceError(f"{path}: its 'order' lists {missing[0]!r}, which the file does not hold")
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


def sketched(trace: Trace) -> Trace:
    """Return the trace without its full tensors: statistics, hashes and sketches in their place."""
    return Trace([_with_digests(r, trace.tensor(r.key)) for r in trace], trace.manifest, MemorySource())


def in_memory(trace: Trace) -> Trace:
    """Return the trace with its full tensors loaded."""
    found = {r.key: t for r in trace if (t := trace.tensor(r.key)) is not None}
    return Trace(trace.records, trace.manifest, MemorySource(found))
