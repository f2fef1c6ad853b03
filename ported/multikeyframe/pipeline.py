"""The run: plan, make what is not finished, join, smooth, write; and the Python API."""

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ported.multikeyframe import engines, film, joints, pictures, plan, store
from ported.multikeyframe.engines import Done, Engine, Failed, MakeWorker, Task
from ported.multikeyframe.errors import GenerationError, InputError
from ported.multikeyframe.plan import Segment
from ported.multikeyframe.settings import Settings, make_settings

Say = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """What a run gave: the video file, every segment's file in order, and which segments were made in this run."""

    output: Path
    segments: tuple[Path, ...]
    made: tuple[Done, ...]
    joints: tuple[int, ...]
    frames: int


@dataclass
class Run:
    """One run under way."""

    settings: Settings
    plan: list[Segment]
    prints: list[str]
    progress: store.Progress
    made: list[Done] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.settings.segments_folder

    def path(self, index: int) -> Path:
        """The file of a segment."""
        return store.segment_path(self.folder, index)

    def unfinished(self) -> list[Segment]:
        """Segments to make: all from `resume_from` on when forced, else those not finished for this request."""
        start = self.settings.resume_from or 0
        return [
            segment
            for segment in self.plan
            if (self.settings.force_regenerate and segment.index >= start)
            or not self.progress.has(segment.index, self.path(segment.index), self.prints[segment.index])
        ]

    def tasks(self, segments: Sequence[Segment]) -> list[Task]:
        """What the workers are given; segment i goes to slot i mod n."""
        s, (width, height) = self.settings, self.settings.dimensions
        return [
            Task(
                segment=segment,
                seed=plan.segment_seed(self.progress.base_seed or 0, segment.index),
                negative_prompt=s.negative_prompt,
                max_area=width * height,
                steps=s.sample_steps,
                guidance=s.sample_guide_scale,
                fps=s.fps,
                path=str(self.path(segment.index)),
                device=s.slots[segment.index % len(s.slots)],
            )
            for segment in segments
        ]

    def note(self, outcomes: Iterator[Done | Failed], say: Say) -> list[Failed]:
        """Write down what becomes of every task, at once; return the failures."""
        failures = []
        for one in outcomes:
            if isinstance(one, Done):
                self.progress.finish(one.index, Path(one.path), self.prints[one.index])
                self.made.append(one)
            else:
                self.progress.fail(one.index, self.path(one.index))
                failures.append(one)
            store.write_progress(self.folder, self.progress)
            if isinstance(one, Done):  # said when it is written down: who reads the line may rely on it
                say(f"segment {one.index} of {len(self.plan)}: {one.path} ({one.ended - one.started:.1f} s)")
        return sorted(failures, key=lambda failure: failure.index)


def run(
    settings: Settings,
    *,
    engine: Engine | None = None,
    make_worker: MakeWorker | None = None,
    say: Say = lambda line: None,
) -> Result:
    """Make the video.

    `engine` and `make_worker` stand in for those of the settings. Raises InputError before anything is written, and
    GenerationError when a segment fails; finished segments stay.
    """
    segments = plan.make_plan(settings)
    pixels = pictures.read_pictures([path for path, _ in settings.keyframes])
    if settings.resume_from is not None and not 0 <= settings.resume_from < len(segments):
        raise InputError(f"resume_from: {settings.resume_from} is no segment; there are 0 to {len(segments) - 1}")
    output = Path(settings.output).absolute()
    check_output(output)
    for line in plan.length_warnings(segments):
        say(f"warning: {line}")
    store.open_folder(settings.segments_folder)
    with store.locked(settings.segments_folder):
        current = begin(settings, segments, [pictures.digest(p) for p in pixels])
        make_segments(current, engine or engines.ENGINES[settings.engine], make_worker, say)
        return finish(current, output)


def check_output(output: Path) -> None:
    """Raise InputError when the video file could not be written."""
    if output.is_dir():
        raise InputError(f"output {output} is a folder; name a file")
    store.open_folder(output.parent)


def begin(settings: Settings, segments: list[Segment], digests: Sequence[str]) -> Run:
    """Read the folder's progress; a seed that nobody gave is drawn once and kept."""
    progress = store.read_progress(settings.segments_folder)
    if settings.base_seed >= 0:
        progress.base_seed = settings.base_seed
    elif progress.base_seed is None:
        progress.base_seed = secrets.randbelow(2**31)
    model = store.folder_digest(Path(settings.ckpt_dir))
    prints = [
        store.fingerprint(
            {
                "pictures": list(digests[segment.index : segment.index + 2]),
                "frames": segment.frames,
                "prompts": [segment.prompt, settings.negative_prompt],
                "seed": plan.segment_seed(progress.base_seed, segment.index),
                "size": settings.dimensions,
                "sampling": [settings.sample_steps, settings.sample_shift, settings.sample_guide_scale],
                "model": [model, settings.dtype],
                "fps": settings.fps,
            }
        )
        for segment in segments
    ]
    return Run(settings, segments, prints, progress)


def make_segments(current: Run, engine: Engine, make_worker: MakeWorker | None, say: Say) -> None:
    """Make what is not finished. Raises GenerationError for the first segment that failed."""
    todo = current.unfinished()
    store.write_progress(current.folder, current.progress)
    if not todo:
        return
    if make_worker is None:
        # Heavy, so it is imported here, before workers are forked; whoever looks for cards on import must not claim one.
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
        from ported.multikeyframe.worker import load_worker

        make_worker = partial(load_worker, current.settings)
    failures = current.note(engine(current.tasks(todo), make_worker), say)
    if failures:
        raise GenerationError(f"Segment {failures[0].index} generation failed: {failures[0].reason}")


def finish(current: Run, output: Path) -> Result:
    """Join, smooth and write the video."""
    s = current.settings
    paths = [current.path(segment.index) for segment in current.plan]
    lengths = [segment.frames for segment in current.plan]
    joined = joints.join([film.read_video(path) for path in paths], s.joint)
    places = plan.joint_frames(lengths, s.joint)
    if s.keep_intermediates:
        film.write_video(joined, output.with_name(f"{output.stem}_stitched.mp4"), s.fps)
    film.write_video(joints.smooth(joined, places, s.method), output, s.fps)
    return Result(output, tuple(paths), tuple(current.made), tuple(places), len(joined))


class MultiKeyframePipeline:
    """The generator from Python: configuration once, then a run for every set of keyframes.

    >>> MultiKeyframePipeline(ckpt_dir="Wan2.1-FLF2V-14B-720P", fps=16).run(
    ...     [("a.png", 0), ("b.png", 2)], "a fox runs", output_path="fox.mp4")  # doctest: +SKIP
    """

    def __init__(self, **options: Any) -> None:
        """Take any option of `Settings`; InputError is raised by `run`, which checks them together."""
        self.options = options
        self.settings: Settings | None = None

    def run(
        self,
        keyframes: Sequence[tuple[str | Path, float]],
        global_prompt: str,
        sub_prompts: Sequence[str] | None = None,
        output_path: str | Path = "./output_final.mp4",
        **options: Any,
    ) -> Path:
        """Make the video file; `options` stand over those of the constructor."""
        given = {**self.options, **options, "keyframes": list(keyframes), "prompt": global_prompt}
        given |= {"sub_prompts": list(sub_prompts or []), "output": str(output_path)}
        self.settings = make_settings(given)
        return run(self.settings).output

    def get_status(self) -> dict[str, Any]:
        """Configuration, segments, and which of them are finished or failed, of the last run."""
        if self.settings is None:
            return {}
        s, segments = self.settings, plan.make_plan(self.settings)
        progress = store.read_progress(s.segments_folder)
        details = [
            {"id": g.index, "frames": g.frames, "first_frame": Path(g.first).name, "last_frame": Path(g.last).name}
            for g in segments
        ]
        return {
            "config": {"ckpt_dir": s.ckpt_dir, "size": s.size, "fps": s.fps, "output_dir": s.output_dir},
            "segments": {"total": len(segments), "details": details},
            "completed_segments": sorted(int(key) for key in progress.completed),
            "failed_segments": sorted(int(key) for key in progress.failed),
        }
