"""Changes that a right multi-keyframe port may make: other order, other workers, other storage, other arithmetic."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ported.multikeyframe import engines, film, joints, worker
from ported.multikeyframe.engines import Done, Failed, MakeWorker, Task
from ported.multikeyframe.faults.record import Port, patched
from ported.multikeyframe.film import Frames

Switch = AbstractContextManager[None]


@dataclass(frozen=True)
class PortVariation:
    """Results must be equal to the bit on the same machine."""

    name: str
    text: str
    inject: Callable[[Port], Switch]


def made_backwards(port: Port) -> Switch:
    """The serial engine takes the last segment first; where one fails, those before it are made nevertheless."""

    def run_serial(tasks: Sequence[Task], make_worker: MakeWorker) -> Iterator[Done | Failed]:
        outcomes = [next(iter(original([task], make_worker))) for task in reversed(tasks)]
        failed = [one.index for one in outcomes if isinstance(one, Failed)]
        # as in order: what stands behind a failure counts as not made
        yield from (one for one in outcomes if not failed or one.index <= min(failed))

    original = engines.ENGINES["serial"]
    return patched(engines, "ENGINES", {**engines.ENGINES, "serial": run_serial})


def four_workers(port: Port) -> Switch:
    """A worker for every segment instead of two."""

    def run_pool(tasks: Sequence[Task], make_worker: MakeWorker) -> Iterator[Done | Failed]:
        return original([replace(task, device=task.segment.index) for task in tasks], make_worker)

    original = engines.ENGINES["process"]
    return patched(engines, "ENGINES", {**engines.ENGINES, "process": run_pool})


def pool_for_one(port: Port) -> Switch:
    """A single device is served by a worker process too."""

    def run_one(tasks: Sequence[Task], make_worker: MakeWorker) -> Iterator[Done | Failed]:
        for one in original(tasks, make_worker):
            yield one
            if isinstance(one, Failed):
                return

    original = engines.ENGINES["process"]
    return patched(engines, "ENGINES", {**engines.ENGINES, "serial": run_one})


def texts_not_kept(port: Port) -> Switch:
    """Every segment encodes its texts anew."""
    original = worker.Worker.text_features

    def text_features(self: worker.Worker, prompt: str) -> Tensor:
        self.texts.clear()
        return original(self, prompt)

    return patched(worker.Worker, "text_features", text_features)


def stored_otherwise(port: Port) -> Switch:
    """Segments are stored by another lossless codec."""
    return patched(film, "LOSSLESS", ("libx264rgb", "rgb24", {"crf": "0", "preset": "ultrafast", "threads": "2"}))


def joined_into_one_buffer(port: Port) -> Switch:
    """The joined video is written into a buffer made beforehand."""

    def join(clips: Sequence[Frames], joint: str) -> Frames:
        kept = [clip[int(joint == "drop" and i > 0) :] for i, clip in enumerate(clips)]
        out, at = np.empty((sum(map(len, kept)), *clips[0].shape[1:]), np.uint8), 0
        for clip in kept:
            out[at : at + len(clip)] = clip
            at += len(clip)
        return out

    return patched(joints, "join", join)


def smoothed_in_float64(port: Port) -> Switch:
    """The 1-2-1 filter in float64, rounded half up."""

    def temporal_filter(window: Frames) -> Frames:
        x, out = window.astype(np.float64), window.copy()
        out[1:-1] = np.floor((x[:-2] + 2 * x[1:-1] + x[2:]) / 4 + 0.5)
        return out

    return patched(joints, "FILTERS", {**joints.FILTERS, "temporal_filter": temporal_filter})


def noise_drawn_in_parts(port: Port) -> Switch:
    """Noise is drawn flat and shaped afterwards."""

    def draw_noise(shape: tuple[int, ...], seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(int(np.prod(shape)), generator=generator, dtype=torch.float32).view(shape)

    return patched(worker, "draw_noise", draw_noise)


VARIATIONS: dict[str, PortVariation] = {
    variation.name: variation
    for variation in (
        PortVariation("made_backwards", "segments made in another order", made_backwards),
        PortVariation("four_workers", "a worker for every segment", four_workers),
        PortVariation("pool_for_one", "a worker process for a single device", pool_for_one),
        PortVariation("texts_not_kept", "texts encoded anew for every segment", texts_not_kept),
        PortVariation("stored_otherwise", "segments stored by other encoder settings, without loss", stored_otherwise),
        PortVariation("joined_into_one_buffer", "joined into one buffer", joined_into_one_buffer),
        PortVariation("smoothed_in_float64", "smoothing in float64", smoothed_in_float64),
        PortVariation("noise_drawn_in_parts", "noise drawn flat", noise_drawn_in_parts),
    )
}
