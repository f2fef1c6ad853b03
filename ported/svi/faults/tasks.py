"""Faults in switching models, in window accounting and in stitching."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from ported.svi import definition, frames, segment, task, windows
from ported.svi.faults.record import PortFault, swap, swap_all

right_plan, right_wanted = task.plan_of, definition.wanted
FLAG = definition.FLAG


def flag_dropped(parameters: dict[str, Any]) -> bool:
    """The flag is dropped as an unknown argument."""
    parameters.pop(FLAG, None)
    return False


@contextmanager
def patched_first(registry: dict[str, Any] | None, loaded: dict[str, Any] | None) -> Iterator[None]:
    """The first version: the flag alone, in the registry alone (goldens `patch_states_first`)."""
    before = dict(registry or {})
    if registry is not None:
        registry[FLAG] = True
    try:
        yield
    finally:
        if registry is not None:
            give_back(registry, before)


@contextmanager
def patched_latest(registry: dict[str, Any] | None, loaded: dict[str, Any] | None) -> Iterator[None]:
    """The latest version (goldens `patch_states_latest`).

    The flag's old value is the registry's for both, `sliding_window` is removed, the rest stays; without a loaded
    pipeline only the registry's flag is set.
    """
    before = dict(registry or {})
    both = [d for d in (registry, loaded) if d is not None]
    if loaded is None:
        both = []
        if registry is not None:
            registry[FLAG] = True
    for d in both:
        d.update(deepcopy(dict(definition.SETTINGS)))
    try:
        yield
    finally:
        for d in both:
            d.pop("sliding_window", None)
        for d in (registry, loaded):
            if d is not None:
                give_back(d, before)


def give_back(d: dict[str, Any], before: Mapping[str, Any]) -> None:
    """Set the flag to what it was in `before`."""
    if FLAG in before:
        d[FLAG] = before[FLAG]
    else:
        d.pop(FLAG, None)


def registry_only(server: task.Server) -> Any:
    """The registry is patched, the loaded pipeline keeps its own definition."""
    return definition.svi_mode(server.registry)


def not_restored(server: task.Server) -> Any:
    """Settings are left behind, `sliding_window` is lost."""
    return patched_latest(server.registry, server.loaded.definition)


@contextmanager
def one_saved_value(server: task.Server) -> Iterator[None]:
    """What the registry had is given back to both."""
    registry, loaded = server.registry, server.loaded.definition
    before = {key: deepcopy(registry[key]) for key in definition.SETTINGS if key in registry}
    with definition.svi_mode(registry, loaded):
        yield
    for key in definition.SETTINGS:
        loaded.pop(key, None)
    loaded.update(before)


def nothing_reused(server: task.Server, given: task.Task, video_length: int, prefix: Tensor | None) -> windows.Plan:
    """The definition says nothing of windows: the slice `-0:` takes all frames."""
    plain = {key: value for key, value in server.registry.items() if key != "sliding_window"}
    return right_plan(task.Server(plain, server.loaded, server.sampling, server.version), given, video_length, prefix)


def overlap_aligned(settings: Mapping[str, Any], overlap: int) -> int:
    """Every overlap becomes 4k+1."""
    return windows.align_length(overlap)


def start_picture_first(given: task.Task) -> Tensor | None:
    """The start picture wins over the source video."""
    return given.source_video if given.start_image is None else frames.to_tensor(given.start_image)


def end_by_window(given: task.Task, plan: windows.Plan, window: int) -> Tensor | None:
    """End frames are indexed by window: a single one is the first window's."""
    return given.images_end[window - 1] if window <= len(given.images_end) else None


def either(job: Mapping[str, Any], own: Mapping[str, Any]) -> bool | None:
    """`or` in place of a test for the key: a segment cannot say no."""
    return bool(own.get("use_svi") or job.get("use_svi"))


def all_kept(video: Tensor, wish: segment.Segment) -> Tensor:
    """Prefix frames are counted as part of the segment."""
    return video


def over_trimmed(video: Tensor, wish: segment.Segment) -> Tensor:
    """The shared frames are trimmed away too."""
    return video[:, -wish.wanted :]


def overlap_not_asked(wish: segment.Segment) -> int:
    """The request leaves out the shared frames."""
    return wish.wanted


def leading_doubled(prefix: Tensor | None, sample: Tensor, leading: int) -> Tensor:
    """The leading frames stay in the sample."""
    return sample if prefix is None or prefix.shape[1] <= 1 else torch.cat([prefix, sample], dim=1)


NINE = {**definition.SETTINGS, "sliding_window_defaults": {"overlap_default": 9}}

FAULTS = (
    PortFault("flag_dropped", "F8", "V9", "the task's flag is dropped as unknown", swap(definition, "take_flag", flag_dropped)),
    PortFault("registry_only", "F9", "V9", "the loaded pipeline never hears of SVI", swap(task, "svi_mode", registry_only)),
    PortFault("settings_left_behind", "F10", "K4", "the next task finds the settings of the last", swap(task, "svi_mode", not_restored)),
    PortFault("one_saved_value", "F11", "K4", "a native SVI pipeline loses its flag", swap(task, "svi_mode", one_saved_value)),
    PortFault("nothing_reused", "F12", "V9", "reuse 0 takes the whole source as leading frames", swap(task, "plan_of", nothing_reused)),
    PortFault("overlap_aligned", "F13", "V9", "overlap 4 aligned to 1", swap(windows, "align_overlap", overlap_aligned)),
    PortFault(
        "overlap_nine", "F14", "V9", "overlap raised to 9, which nine frames are too few for",
        swap_all((segment, "OVERLAP", 9), (definition, "SETTINGS", NINE)),
    ),
    PortFault("start_picture_first", "F24", "V9", "the start picture wins over the source video", swap(task, "prefix_of", start_picture_first)),
    PortFault("end_in_first_window", "F25", "V8", "a single end frame is the first window's", swap(task, "end_of", end_by_window)),
    PortFault("segment_cannot_say_no", "F28", "V9", "a segment's False is overridden by the job", swap(definition, "wanted", either)),
    PortFault("prefix_counted", "F29", "V9", "prefix frames returned as part of the segment", swap(segment, "kept_frames", all_kept), "shape"),
    PortFault("shared_frames_trimmed", "F29", "V9", "the shared frames trimmed away", swap(segment, "kept_frames", over_trimmed), "shape"),
    PortFault("overlap_not_asked", "F30", "V9", "the request lacks the shared frames", swap(segment, "requested_frames", overlap_not_asked), "shape"),
    PortFault("leading_doubled", "F29", "V9", "leading frames twice at the joint", swap(windows, "join", leading_doubled)),
)  # fmt: skip
