"""From timed keyframes to segments of 4n+1 frames."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ported.multikeyframe.errors import InputError
from ported.multikeyframe.settings import Settings

SHORTEST = 5
COMFORTABLE = (32, 100)  # frames; shorter segments move stiffly, longer ones drift


@dataclass(frozen=True)
class Segment:
    """One clip between two neighbouring keyframes."""

    index: int
    first: str
    last: str
    frames: int
    prompt: str


def check_times(keyframes: Sequence[tuple[str, float]]) -> None:
    """Raise InputError for too few keyframes, missing files, and times that are not finite, positive and increasing."""
    if len(keyframes) < 2:
        raise InputError("At least 2 keyframes are required")
    for i, (path, _) in enumerate(keyframes):
        if not Path(path).is_file():
            raise InputError(f"Keyframe {i} not found: {path}")
    for i, (path, seconds) in enumerate(keyframes):
        if not math.isfinite(seconds) or seconds < 0:
            raise InputError(f"Keyframe {i} ({path}): its time must be a finite number of seconds >= 0, got {seconds}")
    for i, ((_, before), (_, seconds)) in enumerate(itertools.pairwise(keyframes)):
        if seconds < before:
            raise InputError(
                f"Keyframes must be in chronological order: keyframe {i + 1} is at {seconds:g} s, the one before it at "
                f"{before:g} s"
            )
        if seconds == before:
            raise InputError(f"Duplicate timestamps found: keyframes {i} and {i + 1} are both at {seconds:g} s")


def frame_number(seconds: float, fps: float) -> int:
    """The frame that a time falls on, truncated."""
    return int(seconds * fps)


def rounded_length(frames: int) -> int:
    """The nearest 4n+1 that is at least 5; halves go to even n. A length that is 4n+1 already is kept."""
    groups, rest = divmod(frames - 1, 4)
    if rest:
        groups += rest == 3 or (rest == 2 and groups % 2 == 1)
        return max(SHORTEST, 4 * groups + 1)
    return frames


def segment_prompt(prompt: str, sub_prompts: Sequence[str], index: int) -> str:
    """The global prompt with the segment's own behind it, where there is one."""
    own = sub_prompts[index] if index < len(sub_prompts) else ""
    return f"{prompt}. {own}" if own else prompt


def make_plan(settings: Settings) -> list[Segment]:
    """Segments of the video. Raises InputError when one is shorter or longer than may be."""
    check_times(settings.keyframes)
    numbers = [frame_number(seconds, settings.fps) for _, seconds in settings.keyframes]
    segments = []
    for i, (a, b) in enumerate(itertools.pairwise(numbers)):
        if a == b:
            raise InputError(
                f"segment {i} is too short: keyframes {i} and {i + 1} both fall on frame {a} at {settings.fps:g} fps; "
                f"move them at least {1 / settings.fps:.3g} s apart"
            )
        frames = rounded_length(b - a + 1)
        least, most = settings.min_frames, settings.max_frames
        if not least <= frames <= most:
            word, bound = ("short", f"min_frames is {least}") if frames < least else ("long", f"max_frames is {most}")
            raise InputError(f"segment {i} is too {word}: {frames} frames, {bound}; move keyframes {i} and {i + 1}")
        first, last = (str(Path(settings.keyframes[k][0]).absolute()) for k in (i, i + 1))
        segments.append(Segment(i, first, last, frames, segment_prompt(settings.prompt, settings.sub_prompts, i)))
    return segments


def length_warnings(segments: Sequence[Segment]) -> list[str]:
    """One line for every segment that the model handles less well."""
    low, high = COMFORTABLE
    lines = []
    for segment in segments:
        if segment.frames < low:
            lines.append(f"segment {segment.index} is short ({segment.frames} frames < {low}): motion may be stiff")
        elif segment.frames > high:
            lines.append(f"segment {segment.index} is long ({segment.frames} frames > {high}): content may drift")
    return lines


def segment_seed(base_seed: int, index: int) -> int:
    """Seed of a segment."""
    return base_seed + index


def joint_frames(lengths: Sequence[int], joint: str) -> list[int]:
    """Number of the first frame of every later segment in the joined video."""
    places, at = [], 0
    for i, length in enumerate(lengths[:-1]):
        at += length - (joint == "drop" and i > 0)
        places.append(at)
    return places


def total_frames(lengths: Sequence[int], joint: str) -> int:
    """Frames of the joined video."""
    return sum(lengths) - (len(lengths) - 1) * (joint == "drop")
