"""What clients send, checked before a job exists: pictures, sound, pose folders. Every refusal says what is wrong in one line."""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ported.echomimic import poses, sound

FORMATS = ("PNG", "JPEG", "WEBP")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class UploadError(ValueError):
    """A request that cannot be served; `status` is its HTTP status."""

    def __init__(self, text: str, status: int = 422) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class UploadLimits:
    """How much a client may send."""

    image_bytes: int = 20 << 20
    audio_bytes: int = 50 << 20
    image_pixels: int = 32 << 20
    audio_seconds: float = 120.0


def read_picture(data: bytes, limits: UploadLimits) -> np.ndarray:
    """Decode a picture: uint8 (h, w, 3) RGB. Its size is checked before it is decoded."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                if picture.width * picture.height > limits.image_pixels:
                    raise UploadError(
                        f"image: {picture.width}x{picture.height} is over {limits.image_pixels} pixels", 413
                    )
                if getattr(picture, "n_frames", 1) > 1:
                    raise UploadError("image: it is animated; send one picture")
                return np.asarray(picture.convert("RGB"))
        except UploadError:
            raise
        except Exception:  # the decoder's errors are of every kind: what counts is that nothing was decoded
            raise UploadError(f"image: not a picture in {', '.join(FORMATS)}") from None


def read_sound(path: Path, limits: UploadLimits) -> float:
    """Decode a sound file to see that it can be; return its length in seconds."""
    try:
        waveform = sound.load_waveform(path)
    except Exception:
        raise UploadError("audio: not a sound file that can be decoded") from None
    seconds = len(waveform) / 16000
    if seconds > limits.audio_seconds:
        raise UploadError(f"audio: {seconds:.1f} s is over {limits.audio_seconds:g} s", 413)
    if not seconds:
        raise UploadError("audio: it is empty")
    return seconds


def pose_folders(root: Path) -> dict[str, list[Path]]:
    """Return the pose folders by name, each with its numbered files in order."""
    found = {}
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        files = [path for path in folder.glob("*.npz") if path.stem.isdecimal()] if folder.is_dir() else []
        if files and NAME.fullmatch(folder.name):
            found[folder.name] = sorted(files, key=lambda path: int(path.stem))
    return found


def check_poses(root: Path, name: str, count: int, width: int, height: int) -> Path:
    """Return the folder of a request's poses once each of its first `count` files can be drawn on the canvas."""
    known = pose_folders(root)
    if name not in known:
        raise UploadError(f"pose_dir_name: there is no '{name[:64]}'; there are: {', '.join(known) or 'none'}", 400)
    for path in known[name][:count]:
        try:
            _, _, rb, re_, cb, ce = poses.load_pose(path).params
        except ValueError as error:
            raise UploadError(f"pose_dir_name {name}: {error}") from None
        if rb >= height or re_ <= 0 or cb >= width or ce <= 0:
            raise UploadError(
                f"pose_dir_name {name}: {path.name} lies at rows {rb}-{re_}, columns {cb}-{ce}, outside {width}x{height}"
            )
    return root / name
