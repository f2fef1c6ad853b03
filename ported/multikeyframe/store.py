"""The folder of segments: who works in it, what is finished, and for which request.

`progress.json` is `{"completed_segments": {"0": path}, "failed_segments": {}, "fingerprints": {"0": sha256}, "base_seed": n}`;
it is replaced as a whole, by the parent process only. A segment counts as finished when its fingerprint is that of the
request and its file is there.
"""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ported.multikeyframe.errors import InputError

LOCK_SECONDS = 3.0  # workers of a killed run notice within a second


@dataclass
class Progress:
    """What a folder's progress file says."""

    completed: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    base_seed: int | None = None

    def finish(self, index: int, path: Path, fingerprint: str) -> None:
        """Note a finished segment; an earlier failure is over."""
        self.completed[str(index)], self.fingerprints[str(index)] = str(path), fingerprint
        self.failed.pop(str(index), None)

    def fail(self, index: int, path: Path) -> None:
        """Note a failed segment."""
        self.failed[str(index)] = str(path)
        self.completed.pop(str(index), None)

    def has(self, index: int, path: Path, fingerprint: str) -> bool:
        """Whether a segment is finished for this very request."""
        key = str(index)
        return key in self.completed and self.fingerprints.get(key) == fingerprint and path.is_file()


def segment_path(folder: Path, index: int) -> Path:
    """The file of a segment."""
    return folder / f"segment_{index:03d}.mp4"


def open_folder(folder: Path) -> None:
    """Make the folder. Raises InputError when it cannot be made or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write_{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"output folder {folder} cannot be written: {error.strerror or error}") from None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for one run. Raises InputError when another run works in it."""
    with (folder / ".lock").open("w") as handle:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise InputError(
                        f"another run is working in {folder}; wait for it or choose another output_dir"
                    ) from None
                time.sleep(0.1)
        yield


def read_progress(folder: Path) -> Progress:
    """Read the progress file; an empty one when there is none. Raises InputError when it is damaged."""
    path = folder / "progress.json"
    if not path.exists():
        return Progress()
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        tables = [stored.get(name, {}) for name in ("completed_segments", "failed_segments", "fingerprints")]
        if not all(isinstance(table, dict) for table in tables):
            raise ValueError("a table of segments is no mapping")
        seed = stored.get("base_seed")
        if seed is not None and not isinstance(seed, int):
            raise ValueError("base_seed is no number")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} is damaged ({' '.join(str(error).split())[:80]}); the segments are untouched: "
            "repair it, or delete it to make them again"
        ) from None
    return Progress(*tables, base_seed=seed)


def write_progress(folder: Path, progress: Progress) -> None:
    """Replace the progress file as a whole."""
    stored = {
        "completed_segments": progress.completed,
        "failed_segments": progress.failed,
        "fingerprints": progress.fingerprints,
        "base_seed": progress.base_seed,
    }
    partial = folder / "progress.json.part"
    partial.write_text(json.dumps(stored, indent=2), encoding="utf-8")
    os.replace(partial, folder / "progress.json")


def fingerprint(request: Mapping[str, Any]) -> str:
    """SHA-256 of everything that a segment's frames depend on, as canonical JSON."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def folder_digest(folder: Path, sample: int = 2**20) -> str:
    """A digest of a checkpoint folder: names and sizes of its files, and the first and last megabyte of each."""
    state = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".json", ".safetensors")):
        size = path.stat().st_size
        state.update(f"{path.relative_to(folder)}:{size}:".encode())
        with path.open("rb") as handle:
            state.update(handle.read(sample))
            if size > sample:
                handle.seek(max(sample, size - sample))
                state.update(handle.read(sample))
    return state.hexdigest()
