"""Keyframes: pictures with times (specification, section 1.2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image


@dataclass(frozen=True)
class KeyframeInfo:
    """One picture and when it is shown."""

    frame_path: Path
    timestamp_sec: float
    frame_number: int


def frame_number(seconds: float, fps: float) -> int:
    """`int(t * fps)`: the product in double precision, truncated toward zero (8.2 s at 25 fps is frame 204)."""
    return int(seconds * fps)


def make_keyframes(pairs: Sequence[tuple[str | Path, float]], fps: float) -> list[KeyframeInfo]:
    """Keyframes from (path, seconds)."""
    return [KeyframeInfo(Path(path), seconds, frame_number(seconds, fps)) for path, seconds in pairs]


def validate_keyframes(keyframes: Sequence[KeyframeInfo]) -> tuple[bool, str]:
    """Check count, files, order, duplicates and sizes, in this order; the first problem is the message.

    Negative times and different times with one frame number pass, as upstream.
    """
    if len(keyframes) < 2:
        return False, "At least 2 keyframes are required"
    for i, keyframe in enumerate(keyframes):
        if not keyframe.frame_path.exists():
            return False, f"Keyframe {i} not found: {keyframe.frame_path}"
    times = [keyframe.timestamp_sec for keyframe in keyframes]
    if times != sorted(times):
        return False, "Keyframes must be in chronological order"
    if len(set(times)) != len(times):
        return False, "Duplicate timestamps found"
    try:
        sizes = {read_size(keyframe.frame_path) for keyframe in keyframes}
    except OSError as error:
        return False, f"Error reading keyframe images: {error}"
    if len(sizes) > 1:
        return False, f"Inconsistent frame sizes: {sizes}. All keyframes must have the same dimensions."
    return True, "Validation passed"


def read_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture file."""
    with Image.open(path) as image:
        return image.size
