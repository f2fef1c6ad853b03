"""Segments of the travel pipeline: each continues its predecessor (spec section 7)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ported.svi import definition, task
from ported.svi.conditioning import ENCODED_BEFORE

OVERLAP = definition.OVERLAP  # asked for in window accounting


@dataclass(frozen=True)
class Segment:
    """A wish: `wanted` new frames behind `predecessor` `(3, t, H, W)`, towards `image_end` `(3, H, W)` where given.

    anchor: uint8 picture of the predecessor's last frame, as its file holds it.
    start_image: uint8 picture that a user may have set beside the video, which it does not replace.
    settings: the segment's own, such as `use_svi`.
    """

    predecessor: Tensor
    wanted: int
    seed: int
    contexts: tuple[Tensor, Tensor | None]
    anchor: Tensor
    image_end: Tensor | None = None
    start_image: Tensor | None = None
    settings: Mapping[str, Any] | None = None


def continue_segment(server: task.Server, segment: Segment, job: Mapping[str, Any]) -> Tensor:
    """Generate a segment: the frames that it shares with its predecessor, then the new ones, `(3, t, H, W)`."""
    return kept_frames(task.run_task(server, segment_task(segment, job)), segment)


def segment_task(segment: Segment, job: Mapping[str, Any]) -> task.Task:
    """The task of a segment: its source are the predecessor's last frames."""
    source = segment.predecessor[:, -(ENCODED_BEFORE + definition.OVERLAP) :]
    parameters: dict[str, Any] = {"video_length": requested_frames(segment)}
    flag = definition.wanted(job, segment.settings or {})
    if flag is not None:
        parameters[definition.FLAG] = flag
    return task.Task(
        parameters=parameters,
        seed=segment.seed,
        contexts=segment.contexts,
        source_video=source,
        start_image=segment.start_image,
        images_end=() if segment.image_end is None else (segment.image_end,),
        ref_images=(segment.anchor,),
        overlap=OVERLAP,
    )


def requested_frames(segment: Segment) -> int:
    """New frames, and those shared with the predecessor."""
    return segment.wanted + definition.OVERLAP


def kept_frames(video: Tensor, segment: Segment) -> Tensor:
    """The tail that the stitch needs: new frames and the shared ones."""
    return video[:, -(segment.wanted + definition.OVERLAP) :]
