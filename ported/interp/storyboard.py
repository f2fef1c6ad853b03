"""Storyboard to video: given keyframes, interpolated, refined level by level, written as mp4 (spec 10.2).

Keyframes stay as they are. A refiner works on frames cut into patches, at any size that divides by them; all patches of all frames
attend to each other, so the size is limited.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ported.interp.draws import Draws
from ported.interp.masks import nested_masks_from_base
from ported.interp.patches import patchify, unpatchify
from ported.interp.refiners import TokenRefiner
from ported.interp.sampling import refine
from ported.interp.toy_training import STORYBOARD, Run, Shape, interpolated, make_model

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MOST_TOKENS = 16_384  # of a clip: attention is quadratic


class InputError(ValueError):
    """Wrong input of the user: one line that says what, where and what to do."""


@dataclass(frozen=True)
class Board:
    """Keyframes uint8 `(K, h, w, 3)` and the frames of the clip that they are."""

    pictures: Tensor
    places: tuple[int, ...]
    frames: int


def read_keyframes(folder: Path, size: tuple[int, int] | None, patch: int) -> Tensor:
    """Read a folder's pictures in the order of their names; `size` (w, h) shrinks or enlarges them. uint8 `(K, h, w, 3)`."""
    if not folder.is_dir():
        raise InputError(f"keyframes {folder}: no such folder")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if len(paths) < 2:
        raise InputError(f"keyframes {folder}: {len(paths)} pictures ({', '.join(SUFFIXES)}), at least 2 are needed")
    found = []
    for path in paths:
        try:
            with Image.open(path) as image:
                picture = image.convert("RGB")
                found.append(np.array(picture if size is None else picture.resize(size, Image.Resampling.BICUBIC)))
        except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise InputError(f"keyframe {path}: {' '.join(str(error).split())[:200]}") from None
        if found[-1].shape != found[0].shape:
            raise InputError(
                f"keyframe {path} is {picture.width}x{picture.height}, {paths[0].name} is {found[0].shape[1]}x{found[0].shape[0]}: "
                "make them equal or give --size"
            )
    height, width = found[0].shape[:2]
    if width % patch or height % patch:
        raise InputError(f"size {width}x{height}: both must be multiples of {patch}; give --size")
    return torch.from_numpy(np.stack(found))


def make_board(pictures: Tensor, frames: int, places: Sequence[int] | None, patch: int) -> Board:
    """Place keyframes in a clip: evenly with both ends, or where they are asked to be, first and last at the ends."""
    count, height, width = pictures.shape[:3]
    if places is None:
        if frames < count:
            raise InputError(f"{frames} frames for {count} keyframes: at least as many are needed")
        places = [round(i * (frames - 1) / (count - 1)) for i in range(count)]
    if len(places) != count:
        raise InputError(f"{len(places)} places for {count} keyframes: one each is needed")
    if any(b <= a for a, b in pairwise(places)):
        raise InputError(f"places {', '.join(map(str, places))}: they must ascend")
    if places[0] != 0 or places[-1] != frames - 1:
        raise InputError(f"places {', '.join(map(str, places))}: the first must be 0 and the last {frames - 1}")
    tokens = frames * (height // patch) * (width // patch)
    if tokens > MOST_TOKENS:
        raise InputError(
            f"{frames} frames of {width}x{height} are {tokens} patches, {MOST_TOKENS} at most: give a smaller --size or fewer --frames"
        )
    return Board(pictures, tuple(places), frames)


@torch.no_grad()
def refine_board(run: Run, board: Board, seed: int = 0, plain: bool = False) -> Tensor:
    """Return the clip uint8 `(t, h, w, 3)`; `plain`: the interpolation alone. Keyframes are the given ones, bit for bit."""
    shape = run.shape
    given = torch.zeros(1, board.frames, *board.pictures.shape[1:])
    given[0, list(board.places)] = board.pictures.float() / 255
    tokens, grid = patchify(given.permute(0, 1, 4, 2, 3), shape.patch_size)
    idx = torch.tensor([board.places])
    start = interpolated(tokens, idx)
    if not plain:
        draws = Draws.seeded(seed, seed + 1)
        masks, _ = nested_masks_from_base(idx, board.frames, shape.levels, draws, "geom")
        start = refine(TokenRefiner(run.model, None, grid), start, masks, STORYBOARD)
    clip = unpatchify(start, shape.patch_size, grid)[0].permute(0, 2, 3, 1)
    made = (clip.clamp(0, 1) * 255).round().to(torch.uint8)
    made[list(board.places)] = board.pictures
    return made


def save_run(run: Run, path: Path) -> None:
    """Write a refiner's weights, in float16, and what it is made for."""
    state = {f"model.{name}": value.half().contiguous() for name, value in run.model.state_dict().items()}
    save_file(state, str(path), metadata={"config": json.dumps(asdict(run.shape))})


def load_run(path: Path) -> Run:
    """Read a refiner: keys `model.<name>`, and in the metadata `config`, the fields of `Shape`. Raises InputError."""
    try:
        with safe_open(str(path), "pt") as file:
            config = json.loads((file.metadata() or {})["config"])
            state = {name.removeprefix("model."): file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        unknown = set(config) - {f.name for f in fields(Shape)}
        if unknown:
            raise ValueError(f"unknown settings {', '.join(sorted(unknown))}")
        shape = Shape(**config)
        model = make_model(shape)
        model.load_state_dict(state, strict=True)
    except FileNotFoundError:
        raise InputError(f"weights {path}: no such file") from None
    except KeyError:
        raise InputError(f"weights {path}: no 'config' in the metadata; write it with --train") from None
    except (OSError, SafetensorError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"weights {path}: {' '.join(str(error).split())[:300]}") from None
    return Run(model.eval(), shape)


def write_clip(frames: Tensor, path: Path, fps: int) -> None:
    """Encode frames uint8 `(t, h, w, 3)` as H.264; the file appears whole or not at all."""
    partial = path.with_name(path.name + ".part")
    try:
        with av.open(str(partial), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=fps, options={"crf": "18", "threads": "1"})
            even = frames.shape[1] % 2 == 0 and frames.shape[2] % 2 == 0
            stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p" if even else "yuv444p"
            for frame in frames.numpy():
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            container.mux(stream.encode())
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {' '.join(str(error).split())[:200]}") from None
    finally:
        partial.unlink(missing_ok=True)
