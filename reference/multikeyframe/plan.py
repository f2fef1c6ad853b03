"""From keyframes to segments (specification, sections 1.3, 1.4 and 5)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from .keyframes import KeyframeInfo

STRIDE = 4  # a segment has 4n+1 frames
SHORTEST = 5


@dataclass(frozen=True)
class SegmentConfig:
    """What one segment is made of: two pictures, a length, the global prompt and its own."""

    segment_id: int
    first_frame: Path
    last_frame: Path
    num_frames: int
    prompt: str
    sub_prompt: str | None = None

    @property
    def full_prompt(self) -> str:
        """`"<prompt>. <sub_prompt>"`; an empty sub-prompt counts as none."""
        return f"{self.prompt}. {self.sub_prompt}" if self.sub_prompt else self.prompt


def segment_length(first: int, last: int) -> int:
    """Frames from one keyframe to the next, both included, rounded to 4n+1.

    n = (N−1)/4 is rounded with ties to even and the result is at least 5; a length that is 4n+1 already stays, so two
    keyframes on one frame number give 1.
    """
    frames = last - first + 1
    if (frames - 1) % STRIDE:
        frames = max(SHORTEST, STRIDE * round((frames - 1) / STRIDE) + 1)
    return frames


def make_segments(
    keyframes: Sequence[KeyframeInfo], prompt: str, sub_prompts: Sequence[str] | None = None
) -> list[SegmentConfig]:
    """One segment a pair of neighbouring keyframes. Raises ValueError for fewer than two."""
    if len(keyframes) < 2:
        raise ValueError("At least 2 keyframes are required to generate segments")
    subs = list(sub_prompts or [])
    return [
        SegmentConfig(
            segment_id=i,
            first_frame=first.frame_path,
            last_frame=last.frame_path,
            num_frames=segment_length(first.frame_number, last.frame_number),
            prompt=prompt,
            sub_prompt=subs[i] if i < len(subs) else None,
        )
        for i, (first, last) in enumerate(pairwise(keyframes))
    ]


def suggest_frame_adjustments(
    keyframes: Sequence[KeyframeInfo],
    fps: float,
    min_frames: int = 32,
    max_frames: int = 100,
    preferred_multiple: int = STRIDE,
) -> list[dict[str, Any]]:
    """What to change about the unrounded lengths; the suggestion of 4n+1 is rounded up, unlike the plan."""
    found = []
    for i, (first, last) in enumerate(pairwise(keyframes)):
        frames = last.frame_number - first.frame_number + 1
        entry: dict[str, Any] = {
            "segment_id": i,
            "original_frames": frames,
            "original_duration": last.timestamp_sec - first.timestamp_sec,
            "status": "ok",
            "warnings": [],
        }
        for wrong, word, effect, bound, name in (
            (frames < min_frames, "short", "stiff motion", min_frames, "minimum"),
            (frames > max_frames, "long", "concept drift", max_frames, "maximum"),
        ):
            if wrong and entry["status"] == "ok":
                entry["status"] = "warning"
                entry["warnings"].append(
                    f"Segment is {word} ({frames} frames). Recommended {name}: {bound} frames. May cause {effect}."
                )
                entry |= {"recommended_frames": bound, "recommended_duration": bound / fps}
        if (frames - 1) % preferred_multiple:
            entry["warnings"].append(
                f"Frame count ({frames}) doesn't match 4n+1 pattern. Consider adjusting for optimal performance."
            )
            entry["recommended_frames_4n1"] = ((frames - 1) // preferred_multiple + 1) * preferred_multiple + 1
        found.append(entry)
    return found


def upstream_junctions(lengths: Sequence[int]) -> list[int]:
    """Upstream's junctions: running sums of N−1 over all segments but the last."""
    return list(accumulate(length - 1 for length in lengths[:-1]))


def junctions(lengths: Sequence[int], drop_shared: bool) -> list[int]:
    """First frame of every later segment in the joined video.

    With `drop_shared` the later segment starts with its second frame, so the joint is the frame after the keyframe.
    """
    kept = [length - (1 if drop_shared and i else 0) for i, length in enumerate(lengths)]
    return list(accumulate(kept[:-1]))


def total_frames(lengths: Sequence[int], drop_shared: bool) -> int:
    """Frames of the joined video: sum of N, less one a joint with `drop_shared`."""
    return sum(lengths) - (len(lengths) - 1 if drop_shared else 0)


def segment_seed(base_seed: int, segment_id: int) -> int:
    """Seed of a segment: the base seed plus its id."""
    return base_seed + segment_id
