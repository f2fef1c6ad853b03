"""Frames uint8 `(f, h, w, 3)` to and from video files, and FFmpeg's filters on them (PyAV).

Segments are H.264 without loss (RGB, crf 0): playable, and exact. The finished video is H.264 yuv420p, crf 18. Encoders
run on one thread, so that equal frames give equal bytes. Files appear whole or not at all.
"""

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
LOSSLESS = ("libx264rgb", "rgb24", {"crf": "0", "preset": "veryfast", "threads": "1"})
FINAL = ("libx264", "yuv420p", {"crf": "18", "preset": "medium", "threads": "1"})


def rate_of(fps: float) -> Fraction:
    """A frame rate as a fraction; 23.976 becomes 24000/1001."""
    return Fraction(fps).limit_denominator(1001)


def write_video(frames: Frames, path: Path, fps: float, codec: tuple[str, str, dict[str, str]] = FINAL) -> None:
    """Encode frames as an mp4 file."""
    name, pixels, options = codec
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with av.open(str(partial), "w", format="mp4") as container:
            stream = container.add_stream(name, rate=rate_of(fps), options=dict(options))
            stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixels
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            container.mux(stream.encode())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_segment(frames: Frames, path: Path, fps: float) -> None:
    """Store a segment without loss."""
    write_video(frames, path, fps, LOSSLESS)


def read_video(path: Path) -> Frames:
    """Every frame of a video file."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def run_filter(frames: Frames, name: str, arguments: str) -> dict[Fraction, Frames]:
    """Run an FFmpeg filter on frames shown at 0, 1, 2, … s: time -> picture."""
    _, height, width, _ = frames.shape
    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format="rgb24", time_base=Fraction(1, 1))
    graph.link_nodes(source, graph.add(name, arguments), graph.add("buffersink")).configure()
    for i, frame in enumerate(frames):
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture.pts, picture.time_base = i, Fraction(1, 1)
        graph.push(picture)
    graph.push(None)
    return drain(graph.pull)


def drain(pull: Callable[[], av.VideoFrame]) -> dict[Fraction, Frames]:
    """Every picture that a filter graph still holds, by its time."""
    found: dict[Fraction, Frames] = {}
    while True:
        try:
            picture = pull()
        except (av.error.EOFError, av.error.BlockingIOError):
            return found
        found[picture.pts * picture.time_base] = picture.to_ndarray(format="rgb24")
