"""Hand poses drawn as pictures (spec 6.2).

Official pose files are pickled (`K.npy`); nothing is unpickled here, a pose file is an `.npz` of plain arrays with the
same names: `hands (2, 21, 2)`, `hands_score (2, 21)`, `draw_pose_params (6,)`.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Pixels = NDArray[np.uint8]
OFFICIAL_REF_WIDTH = 800
EDGES = [(0 if k == 0 else 4 * finger + k, 4 * finger + k + 1) for finger in range(5) for k in range(4)]
SMALLEST = 0.01  # pixel coordinates must be larger


@dataclass(frozen=True)
class Pose:
    """One frame: key points relative to the drawing, their scores, and where the drawing lies on the canvas.

    params: [drawn height, drawn width, row begin, row end, column begin, column end].
    """

    hands: NDArray[np.float64]  # (2, 21, 2), x and y, may lie outside [0, 1]
    hands_score: NDArray[np.float64]  # (2, 21), may exceed 1
    params: tuple[int, int, int, int, int, int]


def read_pose(path: Path) -> Pose:
    """Read one `.npz` pose file.

    Errors: ValueError for another format, a missing array or a wrong shape.
    """
    if path.suffix != ".npz":
        raise ValueError(
            f"{path}: not an .npz file; pickled pose files are never opened, save their arrays with np.savez"
        )
    with np.load(path, allow_pickle=False) as file:
        missing = sorted({"hands", "hands_score", "draw_pose_params"} - set(file.files))
        if missing:
            raise ValueError(f"{path}: has no {', '.join(missing)}")
        hands, score, params = file["hands"], file["hands_score"], file["draw_pose_params"]
    if hands.shape != (2, 21, 2) or score.shape != (2, 21) or params.shape != (6,):
        raise ValueError(f"{path}: hands {hands.shape}, hands_score {score.shape}, draw_pose_params {params.shape}")
    return Pose(hands.astype(np.float64), score.astype(np.float64), tuple(int(v) for v in params))


def read_poses(folder: Path) -> list[Pose]:
    """Read `0.npz`, `1.npz`, … of a folder in the order of their numbers."""
    return [read_pose(path) for path in sorted(folder.glob("*.npz"), key=lambda path: int(path.stem))]


def draw_hand(canvas: Pixels, points: NDArray[np.float64], score: NDArray[np.float64]) -> None:
    """Twenty lines coloured by hue and strength, then twenty-one dots; the canvas counts as BGR."""
    height, width = canvas.shape[:2]
    pixels = [(int(x * width), int(y * height)) for x, y in points]
    for e, (a, b) in enumerate(EDGES):
        if min(*pixels[a], *pixels[b]) > SMALLEST:
            strength = int(score[a] * score[b] * 255)
            colour = [part * strength for part in colorsys.hsv_to_rgb(e / len(EDGES), 1.0, 1.0)]
            cv2.line(canvas, pixels[a], pixels[b], colour, thickness=2)
    for pixel, value in zip(pixels, score, strict=True):
        if min(pixel) > SMALLEST:
            cv2.circle(canvas, pixel, 4, (0, 0, int(value * 255)), thickness=-1)


def draw_pose(pose: Pose, ref_width: int = OFFICIAL_REF_WIDTH) -> Pixels:
    """Draw both hands and resize to the drawn size: uint8 `(3, imh, imw)`, RGB as the network is fed."""
    imh, imw = pose.params[:2]
    shorter = min(imh, imw)
    scale = ref_width / shorter if ref_width != shorter else 1
    canvas = np.zeros((int(imh * scale), int(imw * scale), 3), np.uint8)
    for points, score in zip(pose.hands, pose.hands_score, strict=True):
        draw_hand(canvas, points, score)
    drawn = cv2.resize(canvas, (imw, imh))
    return np.ascontiguousarray(cv2.cvtColor(drawn, cv2.COLOR_BGR2RGB).transpose(2, 0, 1))


def pose_map(pose: Pose, width: int, height: int, ref_width: int = OFFICIAL_REF_WIDTH, official: bool = True) -> Pixels:
    """The drawing on its canvas: uint8.

    `official`: the canvas is `(width, height, 3)`, rows first, so right only for squares, and a drawing that does not fit
    its place raises ValueError (quirk `pose-canvas`). Otherwise it is `(height, width, 3)` and cuts what lies outside.
    """
    _, _, rb, re, cb, ce = pose.params
    drawn = draw_pose(pose, ref_width).transpose(1, 2, 0)
    if official:
        canvas = np.zeros((width, height, 3), np.uint8)
        canvas[rb:re, cb:ce] = drawn
        return canvas
    canvas = np.zeros((height, width, 3), np.uint8)
    rows, columns = slice(max(rb, 0), min(re, height)), slice(max(cb, 0), min(ce, width))
    canvas[rows, columns] = drawn[rows.start - rb : rows.stop - rb, columns.start - cb : columns.stop - cb]
    return canvas


def maps_to_tensor(maps: Sequence[Pixels] | Tensor) -> Tensor:
    """uint8 maps (L, H, W, 3) -> (1, 3, L, H, W) float32 in [0, 1], not normalised to [−1, 1]."""
    stacked = maps if isinstance(maps, Tensor) else torch.from_numpy(np.stack(maps))
    return (stacked / 255.0).permute(3, 0, 1, 2)[None].contiguous()
