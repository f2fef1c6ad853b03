"""From the decoded video to frames of bytes and to a file with sound (spec 8.1)."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DEFAULT_ROWS, DEFAULT_FPS = 6, 8
PADDING = 2


def grid(images: Tensor, rows: int) -> Tensor:
    """Lay a batch (n, 3, h, w) out, `rows` pictures in each line, on black with a border of 2; one picture stays as it is."""
    n, _, h, w = images.shape
    if n == 1:
        return images[0]
    columns = min(rows, n)
    lines = -(-n // columns)
    sheet = images.new_zeros(3, (h + PADDING) * lines + PADDING, (w + PADDING) * columns + PADDING)
    for i, image in enumerate(images):
        y, x = (i // columns) * (h + PADDING) + PADDING, (i % columns) * (w + PADDING) + PADDING
        sheet[:, y : y + h, x : x + w] = image
    return sheet


def to_uint8(video: Tensor, rescale: bool = False, rows: int = DEFAULT_ROWS) -> NDArray[np.uint8]:
    """(n, 3, L, h, w) -> bytes (L, H, W, 3): `(x·255)` truncated, after `(x + 1)/2` with `rescale`.

    Nothing is clamped: what is not finite becomes 0 and what is out of range wraps, both undefined in C (quirk
    `unguarded-cast`).
    """
    frames = []
    for image in video.permute(2, 0, 1, 3, 4):
        picture = grid(image, rows).permute(1, 2, 0)
        picture = (picture + 1.0) / 2.0 if rescale else picture
        with np.errstate(invalid="ignore"):
            frames.append((picture * 255).numpy().astype(np.uint8))
    return np.stack(frames)


def shows_something(frames: NDArray[np.uint8], darkest: int = 24) -> bool:
    """Tell whether a clip is more than black, within what a codec changes. Upstream never looks."""
    return bool(frames.max() >= darkest)


def write_video(frames: NDArray[np.uint8], path: Path, fps: int = DEFAULT_FPS) -> None:
    """Write bytes (L, H, W, 3) as H.264 in yuv420p, which needs even sizes, without sound."""
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"{path}: yuv420p needs even sizes, the video is {width}x{height}")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def mux_audio(silent: Path, audio: Path, out: Path, seconds: float) -> None:
    """Encode the frames again beside the first `seconds` of an audio file (H.264, AAC)."""
    with av.open(str(silent)) as pictures, av.open(str(audio)) as sound, av.open(str(out), "w") as target:
        source = pictures.streams.video[0]
        video = target.add_stream("libx264", rate=source.average_rate)
        video.width, video.height, video.pix_fmt = source.width, source.height, "yuv420p"
        voice = target.add_stream("aac", rate=sound.streams.audio[0].rate)
        for i, frame in enumerate(pictures.decode(source)):
            frame.pts, frame.time_base = i, 1 / Fraction(source.average_rate)
            target.mux(video.encode(frame))
        target.mux(video.encode(None))
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=voice.rate)
        left, clock = round(seconds * voice.rate), 0
        for frame in (*sound.decode(audio=0), None):
            for piece in resampler.resample(frame):
                samples = piece.to_ndarray()[:, : max(left, 0)]
                if not samples.shape[1]:
                    continue
                cut = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout="mono")
                cut.sample_rate, cut.pts, cut.time_base = voice.rate, clock, Fraction(1, voice.rate)
                left, clock = left - samples.shape[1], clock + samples.shape[1]
                target.mux(voice.encode(cut))
        target.mux(voice.encode(None))


def save_video(video: Tensor, path: Path, audio: Path | None = None, fps: int = DEFAULT_FPS) -> None:
    """Save a decoded video (1, 3, L, H, W) in [0, 1], with the sound of a file if there is one."""
    frames = to_uint8(torch.as_tensor(video), rows=1)
    if audio is None:
        write_video(frames, path, fps)
        return
    silent = path.with_name(f"{path.stem}_silent{path.suffix}")
    try:
        write_video(frames, silent, fps)
        mux_audio(silent, audio, path, len(frames) / fps)
    finally:
        silent.unlink(missing_ok=True)
