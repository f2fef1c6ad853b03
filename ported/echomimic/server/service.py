"""The work behind the endpoints: networks loaded once, jobs that share nothing else, run one after the other in worker threads."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ported.echomimic import files, poses, sound
from ported.echomimic.build import Networks
from ported.echomimic.nonfinite import NonFiniteError
from ported.echomimic.pipeline import Progress, animate
from ported.echomimic.server.jobs import JobState, JobStore
from ported.echomimic.server.uploads import UploadError, UploadLimits, check_poses, read_picture, read_sound
from ported.echomimic.settings import Limits, Settings


@dataclass(frozen=True)
class ServiceLimits:
    """What the service allows at a time."""

    running: int = 1
    waiting: int = 100
    uploads: UploadLimits = field(default_factory=UploadLimits)
    request: Limits = field(default_factory=Limits)


class Service:
    """Networks, poses and jobs. `networks` None: started without models, every request is refused with 503."""

    def __init__(
        self,
        networks: Networks | None,
        pose_root: Path,
        job_root: Path,
        limits: ServiceLimits | None = None,
        missing: tuple[str, ...] = (),
    ) -> None:
        self.networks, self.pose_root, self.missing = networks, pose_root, missing
        self.limits = limits or ServiceLimits()
        self.jobs = JobStore(job_root)
        self._workers = ThreadPoolExecutor(self.limits.running, thread_name_prefix="job")
        self._admission = threading.Lock()

    def submit(self, image: bytes, audio: bytes, pose_dir_name: str, settings: Settings) -> JobState:
        """Check a request and queue it.

        Errors: UploadError with the status of the answer: 503 without models or with too many jobs, 413 for too much, 400 and 422 for what
        cannot be used.
        """
        if self.networks is None:
            raise UploadError(f"models are not loaded; missing: {', '.join(self.missing)}", 503)
        try:
            settings.check(self.limits.request)
        except ValueError as error:
            raise UploadError(str(error)) from None
        picture = read_picture(image, self.limits.uploads)
        with self._admission:  # counted and created in one go, so that a crowd does not pass together
            if self.jobs.count("queued", "processing") >= self.limits.running + self.limits.waiting:
                raise UploadError("too many jobs are waiting; try again later", 503)
            job = self.jobs.create({"pose_dir_name": pose_dir_name, **shown(settings)})
        try:
            sound_file = self.jobs.folder(job.job_id) / "audio"
            sound_file.write_bytes(audio)
            seconds = read_sound(sound_file, self.limits.uploads)
            length = int(seconds * settings.fps)
            length = min(length, settings.length or length, self.limits.request.length)
            if not length:
                raise UploadError(f"audio: {seconds:.3f} s is shorter than one frame at {settings.fps} a second")
            folder = check_poses(self.pose_root, pose_dir_name, length, settings.width, settings.height)
        except BaseException:
            self.jobs.drop(job.job_id)
            raise
        job = self.jobs.update(job.job_id, total_frames=length, video_duration=length / settings.fps)
        self._workers.submit(self._run, job.job_id, picture, folder, settings)
        return job

    def close(self) -> None:
        self._workers.shutdown(wait=True, cancel_futures=True)

    # -- in a worker ----------------------------------------------------------------------------------------------------

    def _run(self, job_id: str, picture: np.ndarray, pose_folder: Path, settings: Settings) -> None:
        try:
            self._animate(job_id, picture, pose_folder, settings)
        except NonFiniteError as error:
            self._fail(job_id, f"a value became not finite: {error}")
        except Exception as error:
            self._fail(job_id, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}")

    def _animate(self, job_id: str, picture: np.ndarray, pose_folder: Path, settings: Settings) -> None:
        job = self.jobs.update(job_id, status="processing", message="drawing poses")
        assert self.networks is not None
        assert job.total_frames is not None
        folder = self.jobs.folder(job_id)
        maps = poses.load_maps(pose_folder, job.total_frames, settings.width, settings.height)
        done = animate(self.networks, picture, folder / "audio", maps, settings, self._teller(job_id))
        self.jobs.update(job_id, progress=95, message="writing the clip")
        part, clip = folder / "clip.part.mp4", folder / "clip.mp4"
        files.write_mp4(done.frames, part, settings.fps, sound.load_waveform(folder / "audio"))
        facts = files.read_facts(part)
        if facts.frames != len(done.frames) or not facts.audio_seconds:
            raise ValueError(f"the clip has {facts.frames} frames and {facts.audio_seconds:.2f} s of sound")
        os.replace(part, clip)
        cleaned = None if done.nonfinite is None else str(done.nonfinite)
        self.jobs.update(
            job_id,
            status="completed",
            progress=100,
            message="done"
            if cleaned is None
            else f"done, after {done.cleaned} values that were not finite were replaced",
            video_url=f"/jobs/{job_id}/clip.mp4",
            video_duration=len(done.frames) / settings.fps,
            total_frames=len(done.frames),
            completed_at=time.time(),
            file_size_bytes=clip.stat().st_size,
            nonfinite=cleaned,
            cleaned_values=done.cleaned,
        )

    def _teller(self, job_id: str) -> Any:
        def tell(now: Progress) -> None:
            share = 5 + int(85 * now.done / now.total) if now.total else 5
            old = self.jobs.get(job_id)
            self.jobs.update(job_id, progress=max(share, old.progress if old else 0), message=now.stage)

        return tell

    def _fail(self, job_id: str, text: str) -> None:
        self.jobs.update(job_id, status="failed", error=text, message=text, failed_at=time.time())


def shown(settings: Settings) -> dict[str, Any]:
    """The settings as a client may see them."""
    names = (
        "width",
        "height",
        "length",
        "steps",
        "cfg",
        "fps",
        "seed",
        "context_frames",
        "context_overlap",
        "nonfinite",
    )
    return {name: getattr(settings, name) for name in names}
