"""Faults of running: progress, resuming, forcing, devices, order. None of them changes what one segment looks like."""

import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ported.multikeyframe import engines, pipeline, plan, store
from ported.multikeyframe.engines import Done, Failed, Task
from ported.multikeyframe.faults.joints import head_lost
from ported.multikeyframe.faults.record import Port, PortFault, patched

Switch = AbstractContextManager[None]


def force_ignored(port: Port) -> Switch:
    """`force_regenerate` is accepted and never passed on."""
    original = pipeline.begin
    return patched(
        pipeline, "begin", lambda settings, *rest: original(replace(settings, force_regenerate=False), *rest)
    )


def resume_from_ignored(port: Port) -> Switch:
    """`resume_from` is accepted and never passed on."""
    original = pipeline.begin
    return patched(pipeline, "begin", lambda settings, *rest: original(replace(settings, resume_from=None), *rest))


def progress_overwritten(port: Port) -> Switch:
    """Every worker writes the progress file from its own copy: the last one to finish survives alone."""
    original = store.write_progress

    def write_progress(folder: Path, progress: store.Progress) -> None:
        last = list(progress.completed)[-1:]
        kept = replace(progress, completed={k: progress.completed[k] for k in last})
        original(folder, kept)

    return patched(store, "write_progress", write_progress)


def progress_not_tied(port: Port) -> Switch:
    """A finished segment is used again by its id alone, whatever is asked for now."""

    def has(self: store.Progress, index: int, path: Path, fingerprint: str) -> bool:
        return str(index) in self.completed and path.is_file()

    return patched(store.Progress, "has", has)


def fingerprint_without_seed(port: Port) -> Switch:
    """The fingerprint leaves out the seed."""
    return _fingerprint_without("seed")


def fingerprint_without_pictures(port: Port) -> Switch:
    """The fingerprint leaves out what the keyframes show."""
    return _fingerprint_without("pictures")


def fingerprint_without_prompt(port: Port) -> Switch:
    """The fingerprint leaves out the prompts."""
    return _fingerprint_without("prompts")


def _fingerprint_without(name: str) -> Switch:
    original = store.fingerprint
    return patched(store, "fingerprint", lambda request: original({k: v for k, v in request.items() if k != name}))


def failure_kept(port: Port) -> Switch:
    """Success does not clear an earlier failure."""

    def finish(self: store.Progress, index: int, path: Path, fingerprint: str) -> None:
        self.completed[str(index)], self.fingerprints[str(index)] = str(path), fingerprint

    return patched(store.Progress, "finish", finish)


def failure_not_noted(port: Port) -> Switch:
    """A failed segment is not written down."""
    return patched(store.Progress, "fail", lambda self, index, path: None)


@contextmanager
def slots_shared(port: Port) -> Iterator[None]:
    """Tasks go to one common pool, slot by slot: several run on one device while others idle."""

    def run_pool(tasks: Sequence[Task], make_worker: engines.MakeWorker) -> Iterator[Done | Failed]:
        devices = sorted({task.device for task in tasks})
        by_slot = [task for device in devices for task in tasks if task.device == device]
        # what a common pool does: worker k takes task k of the list, whatever device that is for
        moved = [replace(task, device=devices[k % len(devices)]) for k, task in enumerate(by_slot)]
        real = {task.segment.index: task.device for task in by_slot}
        for done in original(moved, make_worker):
            yield replace(done, device=real[done.index]) if isinstance(done, Done) else done

    original = engines.ENGINES["process"]
    with patched(engines, "ENGINES", {**engines.ENGINES, "process": run_pool}):
        yield


def seed_by_position(port: Port) -> Switch:
    """Seeds count the segments of this run instead of the whole plan."""
    original = pipeline.Run.tasks

    def tasks(self: pipeline.Run, segments: Sequence[plan.Segment]) -> list[Task]:
        made = original(self, segments)
        base = self.progress.base_seed or 0
        return [replace(task, seed=plan.segment_seed(base, position)) for position, task in enumerate(made)]

    return patched(pipeline.Run, "tasks", tasks)


def seed_of_worker(port: Port) -> Switch:
    """A device that makes segments in parallel adds its own number to the seed."""
    original = pipeline.Run.tasks

    def tasks(self: pipeline.Run, segments: Sequence[plan.Segment]) -> list[Task]:
        return [replace(task, seed=task.seed + 1000 * task.device) for task in original(self, segments)]

    return patched(pipeline.Run, "tasks", tasks)


def seed_drawn_again(port: Port) -> Switch:
    """A seed that nobody gave is drawn anew by every run instead of kept with the folder."""
    original = pipeline.begin

    def begin(settings: Any, *rest: Any) -> pipeline.Run:
        drawn = settings.base_seed if settings.base_seed >= 0 else secrets.randbelow(2**31)
        return original(replace(settings, base_seed=drawn), *rest)

    return patched(pipeline, "begin", begin)


def progress_left_torn(port: Port) -> Switch:
    """The progress file is written in place; a failing run leaves half of it behind, which is read as empty."""
    original, read = store.write_progress, store.read_progress

    def write_progress(folder: Path, progress: store.Progress) -> None:
        original(folder, progress)
        if progress.failed:
            path = folder / "progress.json"
            path.write_text(path.read_text()[: path.stat().st_size // 2])

    def read_progress(folder: Path) -> store.Progress:
        try:
            json.loads((folder / "progress.json").read_text())
        except (OSError, ValueError):
            return store.Progress()
        return read(folder)

    return _both(patched(store, "write_progress", write_progress), patched(store, "read_progress", read_progress))


@contextmanager
def _both(first: Switch, second: Switch) -> Iterator[None]:
    with first, second:
        yield


FAULTS: tuple[PortFault, ...] = (
    PortFault("force_ignored", "M2", "", "force_regenerate ignored", force_ignored, "runs"),
    PortFault("head_lost", "M3", "", "a resumed run joins its own segments only", head_lost, "runs"),
    PortFault("resume_from_ignored", "M4", "", "resume_from ignored", resume_from_ignored, "runs"),
    PortFault("progress_overwritten", "M5", "", "progress: the last finisher survives", progress_overwritten, "runs"),
    PortFault("progress_not_tied", "M6", "", "old segments used for another request", progress_not_tied, "runs"),
    PortFault("fingerprint_without_seed", "M6", "", "another seed is no other request", fingerprint_without_seed, "runs"),
    PortFault("fingerprint_without_pictures", "M6", "", "another keyframe is no other request", fingerprint_without_pictures, "runs"),
    PortFault("fingerprint_without_prompt", "M6", "", "another prompt is no other request", fingerprint_without_prompt, "runs"),
    PortFault("failure_kept", "M7", "", "completed and failed at once", failure_kept, "runs"),
    PortFault("failure_not_noted", "M27", "", "failure not written down", failure_not_noted, "runs"),
    PortFault("slots_shared", "M8", "", "several tasks on one device", slots_shared, "runs"),
    PortFault("seed_by_position", "M31", "", "seeds by position in the run", seed_by_position, "runs"),
    PortFault("seed_of_worker", "M31", "", "seed depends on the device", seed_of_worker, "runs"),
    PortFault("seed_drawn_again", "M24", "", "a new random seed every run", seed_drawn_again, "runs"),
    PortFault("progress_left_torn", "M28", "", "torn progress file taken for an empty one", progress_left_torn, "runs"),
)  # fmt: skip
