"""From the decoded video to an mp4 with sound (spec 8.1, 10.3)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from torch import Tensor

from ported.echomimic.nonfinite import bad


def to_frames(video: Tensor) -> np.ndarray:
    """(3, L, H, W) in [0, 1] -> bytes (L, H, W, 3), truncated.

    Errors: ValueError for values that have no byte: they are dealt with before, not here.
    """
    if count := bad(video):
        raise ValueError(f"{count} values of the video are not finite")
    return cast_bytes(video.clamp(0, 1))


def cast_bytes(video: Tensor) -> np.ndarray:
    """`x·255` truncated to bytes; no guard."""
    scaled = (video * 255).permute(1, 2, 3, 0).contiguous().numpy()
    with np.errstate(invalid="ignore"):
        return scaled.astype(np.uint8)


@dataclass(frozen=True)
class VideoFacts:
    """What a file holds, read back from it."""

    frames: int
    width: int
    height: int
    fps: float
    audio_seconds: float
    brightest: int


def write_mp4(frames: np.ndarray, path: Path, fps: int, audio: Tensor | None = None, rate: int = 16000) -> None:
    """Write bytes (L, H, W, 3) as H.264, with a waveform (samples,) as AAC cut to the length of the clip."""
    height, width = frames.shape[1:3]
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=fps, options={"preset": "medium"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        sound = None if audio is None else container.add_stream("aac", rate=rate, layout="mono")
        for picture in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(video.encode(None))
        if sound is not None and audio is not None:
            mux_sound(container, sound, audio[: round(len(frames) / fps * rate)], rate)


def mux_sound(container: av.container.OutputContainer, stream: object, audio: Tensor, rate: int) -> None:
    """Encode a waveform in pieces of 1024 samples."""
    for start in range(0, len(audio), 1024):
        piece = np.ascontiguousarray(audio[start : start + 1024].numpy()[None], np.float32)
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        container.mux(stream.encode(frame))  # type: ignore[attr-defined]
    container.mux(stream.encode(None))  # type: ignore[attr-defined]


def read_facts(path: Path) -> VideoFacts:
    """Decode a file and say what it holds."""
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video)]
        fps = float(video.average_rate or 0)
    seconds = 0.0
    with av.open(str(path)) as container:
        if container.streams.audio:
            samples = sum(frame.samples for frame in container.decode(audio=0))
            seconds = samples / container.streams.audio[0].rate
    height, width = pictures[0].shape[:2]
    return VideoFacts(len(pictures), width, height, fps, seconds, int(max(p.max() for p in pictures)))


def check_file(path: Path, frames: np.ndarray, fps: int, sound: bool) -> VideoFacts:
    """Read a written file back and compare it with what was asked for.

    Errors: ValueError for a wrong number of frames or rate, sound that is missing, and pictures that went black.
    """
    facts = read_facts(path)
    wrong = []
    if facts.frames != len(frames):
        wrong.append(f"{facts.frames} frames instead of {len(frames)}")
    if abs(facts.fps - fps) > 0.01:
        wrong.append(f"{facts.fps:g} frames a second instead of {fps}")
    if sound and facts.audio_seconds == 0:
        wrong.append("no audio stream")
    if facts.brightest < 24:  # black, within what the codec changes
        wrong.append("all frames are black")
    if wrong:
        raise ValueError(f"{path.name}: " + "; ".join(wrong))
    return facts
