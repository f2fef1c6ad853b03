"""Frames of a video: read from files and tensors, written without loss. It judges nothing (`parity.clips.compare` does)."""

from __future__ import annotations

import math
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity.boundary.arrays import read_npy
from parity.boundary.limits import CLIP_BYTES, CLIP_FRAMES, PIXELS, SIDE
from parity.boundary.text import one_line, reason
from parity.errors import ParityError
from parity.files import replacing

IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
Frames = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames [F, H, W, 3] uint8 RGB. `nonfinite` counts NaN and Inf values of each frame [F] (they are drawn black);
    `value_range` is how float values were read; `notes` say what was assumed."""

    frames: Frames
    fps: float | None = None
    path: str = ""
    nonfinite: NDArray[np.int64] | None = None
    value_range: tuple[float, float] = (0.0, 255.0)
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.frames.shape[1]), int(self.frames.shape[2])

    def __len__(self) -> int:
        return int(self.frames.shape[0])


def load_clip(path: str | Path, key: str | None = None, value_range: tuple[float, float] | None = None) -> Clip:
    """Read a video file, a folder of images (natural order), `.npy` or `.safetensors` (`key` names the tensor).

    `value_range` says what black and white are in float data; without it the range is read off the values and noted.
    Raises ParityError, one line, for anything that is not a whole clip of at least one frame.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise ParityError(f"reading clip {path}: there is no such file or folder")
        if path.is_dir():
            return _from_folder(path)
        size = path.stat().st_size
    except (OSError, ValueError) as error:
        raise ParityError(f"reading clip {path}: {reason(error)}") from None
    suffix = path.suffix.lower()
    if size == 0:
        raise ParityError(f"reading clip {path}: the file is empty (0 bytes)")
    if suffix == ".npy":
        return _from_tensor_file(path, _load_npy(path), value_range)
    if suffix == ".safetensors":
        return _from_tensor_file(path, _load_safetensors(path, key), value_range)
    if suffix in IMAGES:
        return Clip(np.stack(_read_images(path)), path=str(path))
    return _from_video(path)


def frames_from_tensor(tensor: Any, value_range: tuple[float, float] | None = None) -> Clip:
    """Convert a tensor or array of frames to a clip.

    Layouts: [F,3,H,W], [3,F,H,W], [F,H,W,3], [B,3,F,H,W], [B,F,3,H,W], [B,F,H,W,3], [3,H,W], [H,W,3]; channels may
    also be 1 (grey) or 4 (alpha is dropped). Integers are taken as 0..255; floats as `value_range`, or what their
    values suggest ([-1, 1], [0, 1] or [0, 255], said in `notes`). Several clips of a batch are laid end to end. NaN
    and Inf become black and are counted per frame. Raises ParityError for any other shape or for no frame.
    """
    values = _as_numpy(tensor)
    frames, notes = _frames_last(values)
    if frames.shape[0] == 0 or 0 in frames.shape[1:3]:
        raise ParityError(f"converting a tensor {list(values.shape)} to frames: it holds no frame")
    flat = frames.reshape(frames.shape[0], -1)
    if frames.dtype == np.uint8 and value_range is None:
        counts = np.zeros(frames.shape[0], np.int64)
        return Clip(_rgb(frames), nonfinite=counts, notes=tuple(notes))
    finite = np.isfinite(flat)
    bad = (~finite).sum(axis=1)
    low, high = value_range or _guess_range(flat[finite], frames.dtype, notes)
    if high <= low:
        raise ParityError(f"converting a tensor to frames: value range ({low}, {high}) is empty; give (black, white)")
    unit = (np.where(finite, flat, low).astype(np.float32) - low) / (high - low)
    outside = float(((unit < -0.002) | (unit > 1.002)).mean())
    if outside > 0:
        notes.append(f"{outside:.2%} of the values lie outside [{low:g}, {high:g}] and were clipped")
    if bad.any():
        notes.append(f"{int(bad.sum())} values are NaN or Inf, in {int((bad > 0).sum())} frames; they are drawn black")
    levels = np.rint(np.clip(unit, 0, 1) * 255).astype(np.uint8).reshape(frames.shape)
    return Clip(_rgb(levels), nonfinite=bad.astype(np.int64), value_range=(float(low), float(high)), notes=tuple(notes))


def write_clip(frames: Frames, path: str | Path, fps: int = 16) -> None:
    """Write frames [F, H, W, 3] without loss: `.mkv` / `.avi` as FFV1, `.npy`, or a folder of PNG files (no suffix)."""
    path = Path(path)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise ParityError(f"writing clip {path}: expected uint8 [F, H, W, 3], got {frames.dtype} {list(frames.shape)}")
    if path.suffix == ".npy":
        with replacing(path) as temporary, temporary.open("wb") as handle:
            np.save(handle, frames, allow_pickle=False)
    elif path.suffix in (".mkv", ".avi"):
        _write_ffv1(frames, path, fps)
    elif path.suffix == "":
        from PIL import Image

        for index, frame in enumerate(frames):
            with replacing(path / f"{index:05d}.png") as temporary:
                Image.fromarray(frame).save(temporary, format="PNG")
    else:
        raise ParityError(f"writing clip {path}: unknown suffix {path.suffix}; use .mkv, .avi, .npy or a folder")


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key under which `frame2` comes before `frame10`."""
    return [
        (0, int(part) if len(part) < 19 else 10**18 + len(part), part if len(part) > 18 else "")
        if part.isdecimal()
        else (1, 0, part)
        for part in re.split(r"(\d+)", name)
        if part
    ]


def _from_folder(path: Path) -> Clip:
    files = sorted((f for f in path.iterdir() if f.suffix.lower() in IMAGES), key=lambda f: natural_key(f.name))
    if not files:
        raise ParityError(f"reading clip {path}: the folder holds no image ({', '.join(sorted(IMAGES))})")
    frames: list[Frames] = []
    for file in files:
        several = _read_images(file)
        if len(several) > 1:
            raise ParityError(
                f"reading clip {path}: {file.name} holds {len(several)} frames, a frame folder one a file"
            )
        frame = several[0]
        if frames and frame.shape != frames[0].shape:
            raise ParityError(
                f"reading clip {path}: {file.name} is {frame.shape[1]}x{frame.shape[0]}, but {files[0].name} is "
                f"{frames[0].shape[1]}x{frames[0].shape[0]}; all frames of a clip must have one size"
            )
        frames.append(frame)
        _check_memory(path, len(frames), frame)
    return Clip(np.stack(frames), path=str(path))


def _read_images(file: Path) -> list[Frames]:
    """Return the frames of an image file as [H, W, 3] uint8 (animated ones have several); 16-bit images are scaled, alpha is dropped."""
    from PIL import Image, ImageSequence, UnidentifiedImageError

    frames: list[Frames] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limits here are narrower
            with Image.open(file) as image:
                _check_size(file, *image.size)
                if getattr(image, "n_frames", 1) > CLIP_FRAMES:
                    raise ParityError(f"reading image {file}: more than {CLIP_FRAMES} frames; cut the clip first")
                for shown in ImageSequence.Iterator(image):
                    frames.append(_levels(shown))
                    _check_memory(file, len(frames), frames[0])
    except (
        *(OSError, SyntaxError, ValueError, OverflowError, IndexError, TypeError, EOFError, MemoryError, RuntimeError),
        *(UnidentifiedImageError, Image.DecompressionBombError, zlib.error, struct.error),
    ) as error:
        raise ParityError(f"reading image {file}: truncated or not an image ({reason(error)})") from error
    return frames


def _levels(image: Any) -> Frames:
    if image.mode.startswith("I"):
        return np.repeat((np.asarray(image) // 257).astype(np.uint8)[..., None], 3, axis=2)
    return np.asarray(image.convert("RGB"))


def _check_size(path: Path, width: int, height: int) -> None:
    """Refuse a picture by what its header says, before it is decoded."""
    if width > SIDE or height > SIDE or width * height > PIXELS:
        raise ParityError(f"reading {path}: a picture of {width}x{height}; {PIXELS >> 20} megapixels are read at most")


def _from_video(path: Path) -> Clip:
    import av

    frames: list[Frames] = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ParityError(f"reading clip {path}: the file has no video stream")
            stream = container.streams.video[0]
            rate = float(stream.average_rate) if stream.average_rate else None
            _check_size(path, stream.codec_context.width, stream.codec_context.height)
            expected = stream.frames or round((container.duration or 0) / 1e6 * (rate or 0))
            for frame in _decoded(container, stream, path):
                _check_size(path, frame.width, frame.height)
                frames.append(frame.to_ndarray(format="rgb24"))
                if frames[-1].shape != frames[0].shape:
                    raise ParityError(f"reading clip {path}: the frame size changes at frame {len(frames) - 1}")
                _check_memory(path, len(frames), frames[-1])
    except (av.FFmpegError, OSError, ValueError) as error:
        where = f"after {len(frames)} frames" if frames else "at its start"
        raise ParityError(f"reading clip {path}: not a whole video, broken {where} ({reason(error)})") from error
    if not frames:
        raise ParityError(f"reading clip {path}: the video holds no frame")
    # Containers round their durations, and edit lists hide a frame: one frame or 2 % are no sign of a truncated file.
    if len(frames) < expected * 0.98 - 1:
        raise ParityError(f"reading clip {path}: truncated, {len(frames)} of {expected} frames could be decoded")
    return Clip(np.stack(frames), fps=rate, path=str(path))


def _decoded(container: Any, stream: Any, path: Path) -> Iterator[Any]:
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise ParityError(f"reading clip {path}: truncated or damaged (a packet is corrupt)")
        yield from packet.decode()


def _load_npy(path: Path) -> NDArray[Any]:
    values = read_npy(path, f"reading clip {path}")
    if values.dtype.kind == "c":
        raise ParityError(f"reading clip {path}: complex numbers are no picture")
    return values


def _load_safetensors(path: Path, key: str | None) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            keys = sorted(file.keys())
            if key is None and len(keys) != 1:
                raise ParityError(
                    f"reading clip {path}: it holds {len(keys)} tensors; name one: {one_line(', '.join(keys[:8]), 120)}"
                )
            chosen = keys[0] if key is None else key
            if chosen not in keys:
                raise ParityError(
                    f"reading clip {path}: no tensor {one_line(chosen, 60)!r}; it holds {one_line(', '.join(keys[:8]), 120)}"
                )
            _check_bytes(path, file.get_slice(chosen))
            return file.get_tensor(chosen)
    except (SafetensorError, OSError, ValueError, OverflowError, MemoryError, TypeError, AttributeError) as error:
        raise ParityError(f"reading clip {path}: truncated or not safetensors ({reason(error)})") from error


def _check_bytes(path: Path, view: Any) -> None:
    if math.prod(view.get_shape()) * 4 > CLIP_BYTES:
        raise ParityError(f"reading clip {path}: more than {CLIP_BYTES >> 30} GiB of numbers; cut the clip first")
    if view.get_dtype().startswith(("F8_", "F4", "F6_", "C")):
        raise ParityError(
            f"reading clip {path}: {view.get_dtype()} holds no picture; convert it to uint8, float16 or bfloat16"
        )


def _from_tensor_file(path: Path, values: Any, value_range: tuple[float, float] | None) -> Clip:
    try:
        return replace(frames_from_tensor(values, value_range), path=str(path))
    except ParityError as error:
        raise ParityError(f"reading clip {path}: {error}") from error


def _as_numpy(tensor: Any) -> NDArray[Any]:
    if hasattr(tensor, "detach"):
        import torch

        tensor = tensor.detach().cpu()
        if tensor.is_complex():
            raise ParityError(f"converting a tensor of {tensor.dtype} to frames: complex numbers are no picture")
        usual = (torch.float32, torch.float64)
        tensor = tensor.float() if tensor.is_floating_point() and tensor.dtype not in usual else tensor
        return np.asarray(tensor.numpy())
    return np.asarray(tensor)


def _frames_last(values: NDArray[Any]) -> tuple[NDArray[Any], list[str]]:
    """Return frames as [F, H, W, C] and notes. Three channels are looked for first, then 1 and 4."""
    layouts = {
        3: ((2, "HWC"), (0, "CHW")),
        4: ((3, "FHWC"), (1, "FCHW"), (0, "CFHW")),
        5: ((1, "BCFHW"), (2, "BFCHW"), (4, "BFHWC")),
    }
    for channels in (3, 1, 4):
        fitting = [layout for axis, layout in layouts.get(values.ndim, ()) if values.shape[axis] == channels]
        if fitting:
            break
    else:
        raise ParityError(f"converting a tensor {list(values.shape)} to frames: no axis holds 3, 1 or 4 channels")
    layout, notes = fitting[0], []
    if len(fitting) > 1:
        notes.append(f"the layout of {list(values.shape)} is ambiguous ({', '.join(fitting)}); read as {layout}")
    order = [layout.index(axis) for axis in "BFHWC" if axis in layout]
    frames = values.transpose(order)
    if layout.startswith("B"):
        if frames.shape[0] > 1:
            notes.append(f"{frames.shape[0]} clips of a batch are laid end to end")
        frames = frames.reshape(-1, *frames.shape[2:])
    return (frames[None] if values.ndim == 3 else frames), notes


def _guess_range(values: NDArray[Any], dtype: np.dtype[Any], notes: list[str]) -> tuple[float, float]:
    if dtype.kind in "iu":
        return 0.0, 255.0
    if dtype.kind == "b" or values.size == 0:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    chosen = (-1.0, 1.0) if low < -0.05 else (0.0, 1.0) if high <= 1.5 else (0.0, 255.0)
    notes.append(f"values {low:.3g}..{high:.3g} were read as [{chosen[0]:g}, {chosen[1]:g}]")
    return chosen


def _rgb(frames: Frames) -> Frames:
    """Bring [F, H, W, 1|3|4] to three channels."""
    return np.repeat(frames, 3, axis=3) if frames.shape[3] == 1 else np.ascontiguousarray(frames[..., :3])


def _write_ffv1(frames: Frames, path: Path, fps: int) -> None:
    import av

    with (
        replacing(path) as temporary,
        av.open(str(temporary), "w", format="matroska" if path.suffix == ".mkv" else "avi") as container,
    ):
        stream = container.add_stream("ffv1", rate=fps)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="bgr0")))
        container.mux(stream.encode())


def _check_memory(path: Path, count: int, frame: Frames) -> None:
    if count * frame.nbytes > CLIP_BYTES or count > CLIP_FRAMES:
        raise ParityError(
            f"reading clip {path}: more than {CLIP_FRAMES} frames or {CLIP_BYTES >> 30} GiB of them; cut the clip first"
        )
