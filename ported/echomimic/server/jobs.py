"""Jobs on disk: one folder each, its state in `job.json`, written whole or not at all, so that a restart finds what was finished."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import time
import uuid
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

STATES = ("queued", "processing", "completed", "failed")
_ID = re.compile(r"[0-9a-f]{32}")
_STOPPED = "the server stopped while this job was waiting or running; send it again"


@dataclass(frozen=True)
class JobState:
    """What a client is told of a job. `progress` is 0 to 100; `nonfinite` says what was cleaned, when the request asked for cleaning."""

    job_id: str
    status: str = "queued"
    progress: int = 0
    message: str = "waiting"
    created_at: float = 0.0
    params: dict[str, Any] = field(default_factory=dict)
    video_duration: float | None = None
    total_frames: int | None = None
    video_url: str | None = None
    completed_at: float | None = None
    file_size_bytes: int | None = None
    nonfinite: str | None = None
    cleaned_values: int = 0
    error: str | None = None
    failed_at: float | None = None


class JobStore:
    """All jobs below one folder. Safe for threads; a job's files lie in its own folder alone."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.Lock()
        self._jobs: dict[str, JobState] = {}
        root.mkdir(parents=True, exist_ok=True)
        for path in sorted(root.glob("*/job.json")):
            self._restore(path)

    def create(self, params: dict[str, Any]) -> JobState:
        """Make a job with a folder of its own."""
        job = JobState(uuid.uuid4().hex, created_at=time.time(), params=params)
        (self.root / job.job_id).mkdir()
        self._put(job)
        return job

    def drop(self, job_id: str) -> None:
        """Forget a job that was refused before it was queued."""
        with self._lock:
            self._jobs.pop(job_id, None)
        shutil.rmtree(self.folder(job_id), ignore_errors=True)

    def update(self, job_id: str, **changes: Any) -> JobState:
        """Change what is known of a job, in memory and on disk."""
        with self._lock:
            job = replace(self._jobs[job_id], **changes)
            self._jobs[job_id] = job
            self._write(job)
        return job

    def get(self, job_id: str) -> JobState | None:
        with self._lock:
            return self._jobs.get(job_id)

    def newest(self, limit: int) -> list[JobState]:
        with self._lock:
            return sorted(self._jobs.values(), key=lambda job: job.created_at, reverse=True)[:limit]

    def count(self, *states: str) -> int:
        with self._lock:
            return sum(job.status in states for job in self._jobs.values())

    def folder(self, job_id: str) -> Path:
        """Return a job's folder. Errors: ValueError for what is no id of ours: no path ever comes from a client."""
        if not _ID.fullmatch(job_id):
            raise ValueError("that is no job id")
        return self.root / job_id

    def _put(self, job: JobState) -> None:
        with self._lock:
            self._jobs[job.job_id] = job
            self._write(job)

    def _write(self, job: JobState) -> None:
        path = self.root / job.job_id / "job.json"
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(job)), encoding="utf-8")
        os.replace(part, path)

    def _restore(self, path: Path) -> None:
        """Take up a job of an earlier start; what was not finished has failed, and says so."""
        try:
            job = JobState(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return  # not ours, or cut off before it was first whole: left where it is
        if not _ID.fullmatch(job.job_id) or path.parent.name != job.job_id:
            return
        if job.status not in ("completed", "failed"):
            job = replace(job, status="failed", error=_STOPPED, message=_STOPPED, failed_at=time.time())
        self._put(job)
