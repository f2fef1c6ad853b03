"""Writing a trace folder, so that it opens at any moment and nothing that was whole is lost.

A writer's shards carry its own token, and `manifest.json` names the shards that belong to it: two writers never mix. The manifest is written
first (incomplete), again after each shard, and last (complete): a killed run leaves a trace that opens and says that it is incomplete. Where a
complete trace lies already, it stays until the new one is whole.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from parity.boundary.text import reason
from parity.errors import CaseError, ParityError, TraceError
from parity.files import check_folder, hold, replacing, sweep, write_text
from parity.trace import Manifest, MemorySource, Parameter, Record, Trace
from parity.trace.fingerprint import fingerprint
from parity.trace.manifest import manifest_to_json, record_to_json

SHARD_BYTES = 64 << 20
SHARD_RECORDS = 2000
MANIFEST = "manifest.json"
FORMAT = "parity-trace"
SHARD = re.compile(r"records-[0-9A-Za-z_-]+\.safetensors")
_WRITTEN = re.compile(
    r"records-(?:([0-9a-f]{8})-)?\d{5}\.safetensors"
)  # by this module, now or before shards had owners
_LOCK = re.compile(r"\.writer-([0-9a-f]+)\.lock")
_OURS = re.compile(rf"\.(manifest\.json|records-.*)\.[^.]*\.part|{_LOCK.pattern}")
_JUDGING = re.compile(r"judging-[0-9a-f]{8}")


class TraceWriter:
    """Write records into a trace folder as they come. `with TraceWriter(path, manifest) as w: w.write(record, tensor)`."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = Path(path)
        self.manifest = dataclasses.replace(manifest, complete=False)
        self._token = secrets.token_hex(4)
        self._records: list[Record] = []
        self._tensors: dict[str, Tensor] = {}
        self._bytes = 0
        self._files: list[str] = []
        self._whole = False
        self.complete = True  # what the manifest says when the writer ends well

    def __enter__(self) -> TraceWriter:
        check_trace_target(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = self.path / f".writer-{self._token}.lock"
        self._handle = os.open(self._lock, os.O_CREAT | os.O_RDWR, 0o666)
        while not hold(self._handle):
            os.close(self._handle)
            self._handle = os.open(self._lock, os.O_CREAT | os.O_RDWR, 0o666)
        _clean(self.path)
        self._write_manifest()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self.flush()
            if kind is None:
                self._whole = True
                self.manifest = dataclasses.replace(self.manifest, complete=self.complete)
                self._write_manifest()
        finally:
            self._lock.unlink(missing_ok=True)
            os.close(self._handle)
            _clean(self.path)

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
        if self._bytes >= SHARD_BYTES or len(self._records) >= SHARD_RECORDS:
            self.flush()

    def describe(self, parameters: Mapping[str, Parameter]) -> None:
        """Add a model's weights to the manifest."""
        known = {**self.manifest.parameters, **parameters}
        self.manifest = dataclasses.replace(self.manifest, parameters=known)

    def note(self, notes: Iterable[str]) -> None:
        """Add notes to the manifest."""
        kept = tuple(dict.fromkeys((*self.manifest.notes, *notes)))
        self.manifest = dataclasses.replace(self.manifest, notes=kept)

    def flush(self) -> None:
        """Write what is gathered as one shard, atomically."""
        if not self._records:
            return
        name = f"records-{self._token}-{len(self._files):05d}.safetensors"
        with replacing(self.path / name) as temporary:
            try:
                save_file(self._tensors, temporary, {"records": json.dumps([record_to_json(r) for r in self._records])})
            except Exception as failure:  # safetensors has its own errors for a full disk
                raise ParityError(f"cannot write {self.path / name}: {reason(failure)}") from failure
        self._records, self._tensors, self._bytes = [], {}, 0
        self._files.append(name)
        self._write_manifest()

    def _write_manifest(self) -> None:
        """Show what there is; a trace of somebody else that is whole stays until this one is."""
        if not self._whole and load_complete(self.path) is not None:
            return
        fields = manifest_to_json(self.manifest)
        fields |= {"shards": len(self._files), "files": self._files, "format": FORMAT}
        write_text(self.path / MANIFEST, json.dumps(fields, indent=1) + "\n")


def check_trace_target(path: Path) -> None:
    """Check that a trace may be written into a folder: a new one, an empty one, or one that holds a trace. Raises CaseError."""
    path = Path(path)
    check_folder(path)
    if not path.is_dir() or _raw_manifest(path) is not None:
        return
    others = [entry.name for entry in os.scandir(path) if not _OURS.fullmatch(entry.name)]
    if others:
        raise CaseError(
            f"{path} is no trace (it holds {others[0]!r}): nothing was written; name a new or an empty folder"
        )


def write_trace(trace: Trace, path: Path) -> None:
    """Write an in-memory trace to a folder."""
    with TraceWriter(path, trace.manifest) as writer:
        for record in trace:
            writer.write(_with_digests(record, trace.tensor(record.key)), trace.tensor(record.key))
        writer.complete = trace.manifest.complete


@contextmanager
def judging_folder(path: Path) -> Iterator[Path]:
    """Make a folder for what a trace keeps besides its records; once it is full, the trace's manifest names it.

    Raises TraceError when no whole trace is there.
    """
    name = f"judging-{secrets.token_hex(4)}"
    (path / name).mkdir()
    yield path / name
    raw = load_complete(path)
    if raw is None:
        raise TraceError(f"{path} was replaced while it was written")
    write_text(path / MANIFEST, json.dumps({**raw, "judging": name}, indent=1) + "\n")
    _clean(path)


def _with_digests(record: Record, tensor: Tensor | None) -> Record:
    """Complete a record that kept its tensor alone: what is written can be compared without it."""
    if record.stats is not None or tensor is None:
        return record
    return dataclasses.replace(record, **fingerprint(tensor)._asdict())


def _raw_manifest(path: Path) -> dict[str, Any] | None:
    """Return the manifest of a trace that is there, or None."""
    try:
        raw = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return raw if isinstance(raw, dict) and raw.get("format") == FORMAT else None


def load_complete(path: Path) -> dict[str, Any] | None:
    """Return the manifest of a trace that is there and whole, or None."""
    raw = _raw_manifest(Path(path))
    return raw if raw is not None and raw.get("complete") is True else None


def _clean(path: Path) -> None:
    """Remove what no writer is writing and no manifest names: shards of a trace that was replaced, and of runs that were killed."""
    sweep(path, f".{MANIFEST}.", ".part")
    sweep(path, ".records-", ".part")
    sweep(path, ".writer-", ".lock")
    raw = _raw_manifest(path)
    if raw is None:
        return
    living = {found[1] for entry in os.scandir(path) if (found := _LOCK.fullmatch(entry.name))}
    for entry in os.scandir(path) if not living else ():
        if _JUDGING.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False) and entry.name != raw.get("judging"):
            shutil.rmtree(entry.path, ignore_errors=True)
    named = raw.get("files")
    if not isinstance(named, list):
        return
    for file in path.glob("records-*.safetensors"):
        found = _WRITTEN.fullmatch(file.name)
        if found and file.name not in named and found[1] not in living:
            file.unlink(missing_ok=True)


def sketched(trace: Trace) -> Trace:
    """Return the trace without its full tensors: statistics, hashes and sketches in their place."""
    return Trace([_with_digests(r, trace.tensor(r.key)) for r in trace], trace.manifest, MemorySource())
