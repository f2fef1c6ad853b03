"""Faults of joining, smoothing and writing the video."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np

from ported.multikeyframe import film, pipeline, plan
from ported.multikeyframe import joints as smoothing
from ported.multikeyframe.faults.record import Port, PortFault, patched
from ported.multikeyframe.film import Frames

Switch = AbstractContextManager[None]
MODEL_RATE = 16


def keyframe_twice(port: Port) -> Switch:
    """The shared keyframe is kept in both segments: every joint freezes for a frame."""
    return patched(smoothing, "join", lambda clips, joint: np.concatenate(clips))


def keyframe_lost(port: Port) -> Switch:
    """Both copies of the shared keyframe are dropped."""

    def join(clips: Sequence[Frames], joint: str) -> Frames:
        last = len(clips) - 1
        return np.concatenate([clip[int(i > 0) : len(clip) - int(i < last)] for i, clip in enumerate(clips)])

    return patched(smoothing, "join", join)


def earlier_copy_dropped(port: Port) -> Switch:
    """The earlier segment loses its last frame instead of the later one its first."""

    def join(clips: Sequence[Frames], joint: str) -> Frames:
        last = len(clips) - 1
        return np.concatenate([clip[: len(clip) - int(i < last)] for i, clip in enumerate(clips)])

    return patched(smoothing, "join", join)


def joined_as_completed(port: Port) -> Switch:
    """Segments are joined in the order in which they were finished: the shorter ones first."""
    original = smoothing.join
    return patched(smoothing, "join", lambda clips, joint: original(sorted(clips, key=len), joint))


def retimed(port: Port) -> Switch:
    """The model's 16 fps are re-timed to the planned rate by leaving out frames."""
    original = smoothing.join

    def join(clips: Sequence[Frames], joint: str) -> Frames:
        joined = original(clips, joint)
        places = np.floor(np.arange(len(joined) + 1) * 12 / MODEL_RATE + 0.5).astype(int)
        shown = [int(np.flatnonzero(places[:-1] <= n)[-1]) for n in range(places[-1])]
        return joined[shown]

    return patched(smoothing, "join", join)


def played_at_16(port: Port) -> Switch:
    """The video is labelled with the model's rate."""
    original = film.write_video

    def write_video(frames: Frames, path, fps, codec=film.FINAL):  # type: ignore[no-untyped-def]
        original(frames, path, MODEL_RATE if codec is film.FINAL else fps, codec)

    return patched(film, "write_video", write_video)


def joints_of_dropped_frames(port: Port) -> Switch:
    """Joints are counted as running sums of N − 1, one less at every joint than they are."""

    def joint_frames(lengths: Sequence[int], joint: str) -> list[int]:
        return [int(k) for k in np.cumsum([length - 1 for length in lengths[:-1]])]

    return patched(plan, "joint_frames", joint_frames)


def whole_video_smoothed(port: Port) -> Switch:
    """Without a joint the whole video is smoothed."""
    original = smoothing.smoothing_windows
    return patched(smoothing, "smoothing_windows", lambda places, n: original(places, n) if places else [(0, n)])


def smooth_each(frames: Frames, joints: Sequence[int], method: str) -> Frames:
    """Cut out and filter every window by itself."""
    if method == "none" or not joints:
        return frames
    pieces, at = [], 0
    for joint in joints:
        first, end = max(0, joint - smoothing.RADIUS), min(len(frames), joint + smoothing.RADIUS + 1)
        pieces += [frames[at:first], smoothing.FILTERS[method](frames[first:end])]
        at = end
    return np.concatenate([*pieces, frames[at:]])


def windows_repeat_frames(port: Port) -> Switch:
    """Overlapping windows are cut out one by one, so that the frames they share are repeated."""

    return patched(smoothing, "smooth", smooth_each)


def filter_one_late(port: Port) -> Switch:
    """The 1-2-1 filter looks at the two frames before: the window lags by one frame."""

    def late(window: Frames) -> Frames:
        past = np.concatenate([window[:1], window[:1], window]).astype(np.uint16)
        return ((past[:-2] + 2 * past[1:-1] + past[2:] + 2) // 4).astype(np.uint8)

    return _filter("temporal_filter", late)


def filter_truncates(port: Port) -> Switch:
    """The filter's result is truncated instead of rounded half up."""

    def truncating(window: Frames) -> Frames:
        x, out = window.astype(np.uint16), window.copy()
        out[1:-1] = (x[:-2] + 2 * x[1:-1] + x[2:]) // 4
        return out

    return _filter("temporal_filter", truncating)


def filter_wraps(port: Port) -> Switch:
    """The filter adds up in eight bits, which overflow."""

    def wrapping(window: Frames) -> Frames:
        out = window.copy()
        out[1:-1] = (window[:-2] + 2 * window[1:-1] + window[2:] + np.uint8(2)) // 4
        return out

    return _filter("temporal_filter", wrapping)


def flow_at_60_fps(port: Port) -> Switch:
    """Motion interpolation runs at its own rate, so that a window gets more frames."""

    def doubled(frames: Frames, joints: Sequence[int], method: str) -> Frames:
        smoothed = original(frames, joints, method)
        if method != "optical_flow":
            return smoothed
        again = [k for k in range(len(frames)) for _ in range(2 if _inside(k, joints, len(frames)) else 1)]
        return smoothed[again]

    original = smoothing.smooth
    return patched(smoothing, "smooth", doubled)


def window_too_wide(port: Port) -> Switch:
    """The window reaches one frame further on both sides."""
    return patched(smoothing, "RADIUS", smoothing.RADIUS + 1)


def smoothing_off(port: Port) -> Switch:
    """Smoothing was asked for and does not happen."""
    return patched(smoothing, "smooth", lambda frames, joints, method: frames)


def head_lost(port: Port) -> Switch:
    """A resumed run joins only the segments that it made."""
    original = pipeline.finish

    def finish(current, output):  # type: ignore[no-untyped-def]
        made = {done.index for done in current.made}
        kept = [segment for segment in current.plan if segment.index in made] or current.plan
        return original(pipeline.Run(current.settings, kept, current.prints, current.progress, current.made), output)

    return patched(pipeline, "finish", finish)


def _inside(k: int, places: Sequence[int], frames: int) -> bool:
    return any(a <= k < b for a, b in smoothing.smoothing_windows(places, frames))


def _filter(name: str, new) -> Switch:  # type: ignore[no-untyped-def]
    return patched(smoothing, "FILTERS", {**smoothing.FILTERS, name: new})


FAULTS: tuple[PortFault, ...] = (
    PortFault("keyframe_twice", "M10", "V9", "shared keyframe shown twice", keyframe_twice, "joints"),
    PortFault("keyframe_lost", "M10", "V9", "shared keyframe not shown at all", keyframe_lost, "joints"),
    PortFault("earlier_copy_dropped", "M10", "V9", "earlier copy of the shared keyframe dropped", earlier_copy_dropped, "joints"),
    PortFault("joined_as_completed", "M32", "", "segments joined as they were finished", joined_as_completed, "joints"),
    PortFault("retimed", "M12", "V7", "16 fps re-timed by leaving out frames", retimed, "joints"),
    PortFault("played_at_16", "M12", "", "video labelled 16 fps", played_at_16, "joints"),
    PortFault("joints_of_dropped_frames", "M11", "", "joints counted one too early each", joints_of_dropped_frames, "joints"),
    PortFault("whole_video_smoothed", "M13", "", "whole video smoothed where there is no joint", whole_video_smoothed, "joints"),
    PortFault("windows_repeat_frames", "M14", "V7", "overlapping windows repeat frames", windows_repeat_frames, "joints"),
    PortFault("filter_one_late", "M15", "", "smoothing lags by one frame", filter_one_late, "joints"),
    PortFault("filter_truncates", "M15", "V10", "smoothing truncates", filter_truncates, "joints"),
    PortFault("filter_wraps", "M15", "V10", "smoothing overflows eight bits", filter_wraps, "joints"),
    PortFault("flow_at_60_fps", "M16", "V7", "motion interpolation adds frames", flow_at_60_fps, "joints"),
    PortFault("window_too_wide", "+", "", "window one frame wider", window_too_wide, "joints"),
    PortFault("smoothing_off", "+", "", "joints not smoothed", smoothing_off, "joints"),
)  # fmt: skip
