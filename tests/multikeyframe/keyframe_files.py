"""Keyframe pictures, and digests of segment files."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image


def draw_keyframe(path, index, size=(60, 40), mode="RGB"):
    """A picture with a gradient of its own."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    channels = ((x * 4 + index * 30) % 256, (y * 6) % 256, ((x + y) * 2 + index * 50) % 256)
    Image.fromarray(np.stack(channels, -1).astype(np.uint8)).convert(mode).save(path)
    return str(path)


def digests(folder):
    """SHA-256 of every segment file of an output folder."""
    files = sorted((Path(folder) / "segments").glob("segment_*.mp4"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
