"""Frames to and from video files with PyAV (specification, section 3)."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

CODEC = {"crf": "18", "preset": "medium", "threads": "1"}  # one thread: the same bytes every time


def write_mp4(frames: Tensor, path: Path, fps: float) -> None:
    """Write frames uint8 `(f, h, w, 3)` as H.264 yuv420p; the file appears whole or not at all."""
    partial = path.with_name(path.name + ".part")
    with av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=dict(CODEC))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames.numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    os.replace(partial, path)


def read_video(path: Path) -> tuple[Tensor, float]:
    """Frames uint8 `(f, h, w, 3)` and the frame rate of a video file."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return torch.from_numpy(np.stack(frames)), float(stream.average_rate)


def interpolate_motion(frames: Tensor) -> Tensor:
    """The motion-compensated frame between each two neighbours, by FFmpeg's `minterpolate`: `(f, …)` -> `(f − 1, …)`."""
    _, height, width, _ = frames.shape
    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format="rgb24", time_base=Fraction(1, 1))
    chain = [source, graph.add("minterpolate", "fps=2:scd=none"), graph.add("buffersink")]
    graph.link_nodes(*chain).configure()
    # The filter needs neighbours on both sides: the ends are repeated.
    for i, frame in enumerate(torch.cat([frames[:1], frames, frames[-1:], frames[-1:]]).numpy()):
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture.pts, picture.time_base = i, Fraction(1, 1)
        graph.push(picture)
    graph.push(None)
    by_time: dict[int, np.ndarray] = {}
    while True:
        try:
            picture = graph.pull()
        except (av.error.EOFError, av.error.BlockingIOError):
            break
        by_time[round(float(picture.pts * picture.time_base) * 2)] = picture.to_ndarray(format="rgb24")
    return torch.from_numpy(np.stack([by_time[2 * (i + 1) + 1] for i in range(len(frames) - 1)]))
