"""Where segments are made: in this process, in a pool of processes, or on Ray.

Every slot is one device and makes one segment at a time; segment i goes to slot i mod n. Results are given as they come.
The pool forks after the heavy imports, so that a worker starts in milliseconds; a card is initialised in the worker
alone (imports that look for cards do so without touching one: NVML). Workers end by themselves when the parent is gone.
"""

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ported.multikeyframe.errors import GenerationError, InputError
from ported.multikeyframe.plan import Segment

WATCH_SECONDS = 0.25


@dataclass(frozen=True)
class Task:
    """Everything that a worker needs to make one segment."""

    segment: Segment
    seed: int
    negative_prompt: str
    max_area: int
    steps: int
    guidance: float
    fps: float
    path: str
    device: int


@dataclass(frozen=True)
class Done:
    """A finished segment: its file, and which process made it on which device from when to when."""

    index: int
    path: str
    process: int
    device: int
    started: float
    ended: float


@dataclass(frozen=True)
class Failed:
    """A segment that could not be made, and why."""

    index: int
    reason: str


class Runs(Protocol):
    """What a worker has to offer."""

    def run(self, task: Task) -> Done: ...


MakeWorker = Callable[[], Runs]
Engine = Callable[[Sequence[Task], MakeWorker], Iterator[Done | Failed]]


def run_serial(tasks: Sequence[Task], make_worker: MakeWorker) -> Iterator[Done | Failed]:
    """One after the other in this process; stops at the first failure."""
    worker = make_worker()
    for task in tasks:
        try:
            yield worker.run(task)
        except Exception as error:
            yield Failed(task.segment.index, reason(error))
            return


def run_pool(tasks: Sequence[Task], make_worker: MakeWorker) -> Iterator[Done | Failed]:
    """A process for every device; a failure does not stop the others."""
    context = multiprocessing.get_context(start_method())
    devices = list(dict.fromkeys(task.device for task in tasks))
    pools = {
        device: ProcessPoolExecutor(1, context, initializer=start_worker, initargs=(device, make_worker, os.getpid()))
        for device in devices
    }
    try:
        futures = {submit(pools[task.device], task): task for task in tasks}
        for future in as_completed(futures):
            yield outcome(future, futures[future].segment.index)
    finally:
        for pool in pools.values():
            pool.shutdown(wait=True, cancel_futures=True)


def submit(pool: ProcessPoolExecutor, task: Task) -> Future[Done]:
    """Hand a task to a worker; one whose worker has died meanwhile has failed like those that it was given before."""
    try:
        return pool.submit(run_in_worker, task)
    except BrokenProcessPool as error:
        failed: Future[Done] = Future()
        failed.set_exception(error)
        return failed


def start_method() -> str:
    """How workers are started: forked, which takes milliseconds, unless this process has a card in use that they could not have."""
    torch = sys.modules.get("torch")
    return "spawn" if torch is not None and torch.cuda.is_initialized() else "fork"


def outcome(future: Future[Done], index: int) -> Done | Failed:
    """What became of a task."""
    try:
        return future.result()
    except Exception as error:
        return Failed(index, reason(error))


def reason(error: BaseException) -> str:
    """An error on one line; a worker that died says so."""
    text = " ".join(str(error).split())[:300]
    if type(error).__name__ == "BrokenProcessPool":
        return "its worker process died (out of memory, or killed)"
    return text if isinstance(error, (GenerationError, InputError)) else f"{type(error).__name__}: {text}"


class _Slot:
    """What a worker process holds."""

    make: MakeWorker
    worker: Runs | None = None


def start_worker(device: int, make_worker: MakeWorker, parent: int) -> None:
    """Begin a worker process: it sees its own card alone, and ends when the parent is gone."""
    os.environ["CUDA_VISIBLE_DEVICES"] = str(device)
    threading.Thread(target=end_without, args=(parent,), daemon=True).start()
    _Slot.make = make_worker


def run_in_worker(task: Task) -> Done:
    """Make a segment in a worker process; the model is loaded for the first one."""
    if _Slot.worker is None:
        _Slot.worker = _Slot.make()
    return _Slot.worker.run(task)


def end_without(parent: int) -> None:
    """End this process at once when its parent is gone: it must not write into a folder that a new run works in."""
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(1)


def run_ray(tasks: Sequence[Task], make_worker: MakeWorker) -> Iterator[Done | Failed]:
    """An actor for every device, on the Ray cluster that is running, or on one of this machine."""
    try:
        import ray
    except ModuleNotFoundError:
        raise InputError(
            "engine ray: Ray is not installed; pip install 'parity[ray]', or use --engine process"
        ) from None
    started = not ray.is_initialized()
    if started:
        # Ray's workers start anew: they must find this checkout.
        found = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(found)}}
        ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False, runtime_env=environment)
    try:
        yield from _ray_results(ray, tasks, make_worker)
    finally:
        if started:
            ray.shutdown()


def _ray_results(ray: Any, tasks: Sequence[Task], make_worker: MakeWorker) -> Iterator[Done | Failed]:
    cards = 1 if ray.cluster_resources().get("GPU") else 0
    actor = ray.remote(num_cpus=1, num_gpus=cards)(RayWorker)
    actors = {device: actor.remote(make_worker) for device in dict.fromkeys(task.device for task in tasks)}
    pending = {actors[task.device].run.remote(task): task.segment.index for task in tasks}
    while pending:
        (ready,), _ = ray.wait(list(pending), num_returns=1)
        index = pending.pop(ready)
        try:
            yield ray.get(ready)
        except ray.exceptions.RayTaskError as error:
            yield Failed(index, reason(error.cause))
        except ray.exceptions.RayActorError:
            yield Failed(index, "its worker process died (out of memory, or killed)")


class RayWorker:
    """A worker inside a Ray actor; an actor makes one segment at a time."""

    def __init__(self, make_worker: MakeWorker) -> None:
        self.make, self.worker = make_worker, None

    def run(self, task: Task) -> Done:
        """Make a segment; the model is loaded for the first one."""
        self.worker = self.worker or self.make()
        return self.worker.run(task)


ENGINES: dict[str, Engine] = {"serial": run_serial, "process": run_pool, "ray": run_ray}
