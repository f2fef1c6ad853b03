"""Keyframe files: 8-bit pictures without transparency, all of one size."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ported.multikeyframe.errors import InputError

Pixels = NDArray[np.uint8]
PLAIN = ("RGB", "L")
WHY = {
    "RGBA": "it has transparency", "LA": "it has transparency", "PA": "it has transparency",
    "P": "it has a palette", "CMYK": "it is CMYK", "1": "it is black and white only",
}  # fmt: skip


def read_picture(path: str, index: int = 0) -> Pixels:
    """Pixels uint8 `(h, w, 3)` of a file. Raises InputError for anything but a whole 8-bit RGB or grey picture."""
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode not in PLAIN or "transparency" in image.info:
                why = WHY.get(
                    image.mode, "it has transparency" if image.mode in PLAIN else "it is not 8 bits a channel"
                )
                raise InputError(
                    f"Keyframe {index} ({path}): {why} (mode {image.mode}); save it as a plain 8-bit RGB picture"
                )
            return np.array(image.convert("RGB"))
    except FileNotFoundError:
        raise InputError(f"Keyframe {index} not found: {path}") from None
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InputError(f"Error reading keyframe images: {one_line(error)} (keyframe {index}, {path})") from None


def read_pictures(paths: Sequence[str]) -> list[Pixels]:
    """The keyframes' pixels. Raises InputError when one is unreadable or another size than the first."""
    found = [read_picture(path, i) for i, path in enumerate(paths)]
    height, width = found[0].shape[:2]
    for i, pixels in enumerate(found):
        if pixels.shape != found[0].shape:
            raise InputError(
                f"Inconsistent frame sizes: keyframe 0 is {width}x{height}, keyframe {i} ({paths[i]}) is "
                f"{pixels.shape[1]}x{pixels.shape[0]}. All keyframes must have the same dimensions."
            )
    return found


def digest(pixels: Pixels) -> str:
    """SHA-256 of a picture's size and pixels; how it was compressed does not count."""
    return hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()


def one_line(error: BaseException) -> str:
    """An error's text on one line."""
    return " ".join(str(error).split())[:200]
