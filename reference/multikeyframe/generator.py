"""Segment files, progress and resume, one segment after the other (specification, sections 2.1, 2.2, 2.4, 2.6)."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .plan import SegmentConfig
from .rules import REPAIRED, Rules

ATTEMPTS, RETRY_SECONDS = 3, 5.0
MEMORY_ERRORS = ("cudaErrorECCUncorrectable", "CUDA error: uncorrectable ECC error")

RunModel = Callable[[SegmentConfig, Path], None]  # makes the segment's file; raises ModelError
Fingerprint = Callable[[SegmentConfig], str]


class ModelError(Exception):
    """What the model run wrote to its error stream."""


@dataclass
class Generator:
    """Makes the segments of one output folder and remembers which are done.

    `run_model` makes one file; `fingerprint` says what a segment depends on (None, as upstream: its id alone).
    `calls` are the ids of the model runs so far. Reading a broken progress file raises, as upstream.
    """

    output_dir: Path
    run_model: RunModel
    suffix: str = ".mp4"
    rules: Rules = REPAIRED
    fingerprint: Fingerprint | None = None
    wait: Callable[[float], None] = time.sleep
    completed: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    prints: dict[str, str] = field(default_factory=dict)
    calls: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder = self.output_dir / "segments"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.progress_file = self.folder / "progress.json"
        if self.progress_file.exists():
            stored = json.loads(self.progress_file.read_text())
            self.completed, self.failed = stored["completed_segments"], stored["failed_segments"]
            self.prints = stored.get("fingerprints", {})

    def path(self, segment_id: int) -> Path:
        """The file of a segment."""
        return self.folder / f"segment_{segment_id:03d}{self.suffix}"

    def save(self) -> None:
        """Write the progress file anew."""
        stored = {"completed_segments": self.completed, "failed_segments": self.failed}
        if self.prints:
            stored["fingerprints"] = self.prints
        partial = self.progress_file.with_suffix(".part")
        partial.write_text(json.dumps(stored, indent=2))
        os.replace(partial, self.progress_file)

    def is_done(self, segment: SegmentConfig) -> bool:
        """Whether the file of a segment can be used again."""
        key = str(segment.segment_id)
        if key not in self.completed or not self.path(segment.segment_id).exists():
            return False
        if self.fingerprint is None or not self.rules.tied_to_plan:
            return True
        return self.prints.get(key) == self.fingerprint(segment)

    def generate_segment(self, segment: SegmentConfig, force: bool = False) -> Path:
        """Make one segment, or find it made.

        Raises RuntimeError when the model fails (recorded as failed) or leaves no file (not recorded, as upstream).
        """
        output, key = self.path(segment.segment_id), str(segment.segment_id)
        if not force and self.is_done(segment):
            return output
        self.try_model(segment, output)
        if not output.exists():
            raise RuntimeError(f"Generation completed but output file not found: {output}")
        self.completed[key] = str(output)
        if self.fingerprint is not None:
            self.prints[key] = self.fingerprint(segment)
        if self.rules.clear_failed:
            self.failed.pop(key, None)
        self.save()
        return output

    def try_model(self, segment: SegmentConfig, output: Path) -> None:
        """Run the model, three times at most while the card reports an uncorrectable memory error."""
        for attempt in range(ATTEMPTS):
            try:
                self.calls.append(segment.segment_id)
                self.run_model(segment, output)
                return
            except ModelError as error:
                if attempt < ATTEMPTS - 1 and any(text in str(error) for text in MEMORY_ERRORS):
                    self.wait(RETRY_SECONDS)
                    continue
                self.failed[str(segment.segment_id)] = str(output)
                self.save()
                raise RuntimeError(f"Segment {segment.segment_id} generation failed: {error}") from error

    def generate_batch_sequential(
        self, segments: Sequence[SegmentConfig], resume_from: int | None = None, force: bool = False
    ) -> list[Path]:
        """Segments in order from index `resume_from`; the first failure is raised again.

        Upstream returns what was visited; with `whole_result` the earlier ones stand in front, made if they lack.
        """
        start = resume_from or 0
        if self.rules.whole_result:
            return [self.generate_segment(s, force and i >= start) for i, s in enumerate(segments)]
        return [self.generate_segment(s, force) for s in segments[start:]]

    def clear_progress(self) -> None:
        """Forget everything; the segment files stay."""
        self.completed.clear()
        self.failed.clear()
        self.prints.clear()
        self.progress_file.unlink(missing_ok=True)


def digest(*parts: object) -> str:
    """SHA-256 over the parts, each as text with its length in front."""
    state = hashlib.sha256()
    for part in parts:
        text = part if isinstance(part, bytes) else str(part).encode()
        state.update(f"{len(text)}:".encode())
        state.update(text)
    return state.hexdigest()
