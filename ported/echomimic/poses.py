"""Hand poses: checking, drawing, placing (spec 6.2, 10.3)."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor

Bounds = Literal["crop", "skip", "clamp"]


@dataclass(frozen=True)
class Pose:
    """Key points `hands (2, 21, 2)` relative to the drawing, their scores `(2, 21)`, and
    `params` = drawn height and width, rows and columns of the drawing on the canvas: begin, end."""

    hands: np.ndarray
    scores: np.ndarray
    params: tuple[int, ...]


@dataclass(frozen=True)
class Policy:
    """What happens to a drawing that does not fit: cut at the canvas (right), left out (state A), squeezed (state B).

    ref_width: the width at which hands are drawn; 800 is official, None the smaller side of the canvas (both states).
    """

    bounds: Bounds = "crop"
    ref_width: int | None = 800


def check_pose(pose: Pose, name: str) -> None:
    """Raise ValueError, with the name of the frame, for poses that cannot be drawn: wrong shapes, NaN, empty boxes."""
    if pose.hands.shape != (2, 21, 2) or pose.scores.shape != (2, 21) or len(pose.params) != 6:
        raise ValueError(
            f"pose {name}: hands {pose.hands.shape}, scores {pose.scores.shape}, {len(pose.params)} params"
        )
    if not (np.isfinite(pose.hands).all() and np.isfinite(pose.scores).all()):
        raise ValueError(f"pose {name}: hands or scores are not finite")
    if np.abs(pose.hands).max() > 1e4 or not (pose.scores >= 0).all() or pose.scores.max() > 100:
        raise ValueError(f"pose {name}: hands or scores are out of range")
    imh, imw, rb, re, cb, ce = pose.params
    if imh < 1 or imw < 1 or max(imh, imw) > 8192 or re <= rb or ce <= cb:
        raise ValueError(
            f"pose {name}: the drawing ({imh}x{imw}) or its place (rows {rb}-{re}, columns {cb}-{ce}) is empty"
        )


def load_pose(path: Path) -> Pose:
    """Read and check one `.npz` pose file (never a pickle)."""
    try:
        with np.load(path, allow_pickle=False) as file:
            pose = Pose(
                np.asarray(file["hands"], np.float64),
                np.asarray(file["hands_score"], np.float64),
                tuple(int(v) for v in np.asarray(file["draw_pose_params"]).reshape(-1)),
            )
    except (ValueError, KeyError, OSError, TypeError) as error:
        raise ValueError(f"pose {path.name}: cannot be read: {error}") from None
    check_pose(pose, path.name)
    return pose


def line_colour(edge: int, strength: int) -> tuple[float, ...]:
    return tuple(strength * part for part in colorsys.hsv_to_rgb(edge / 20, 1, 1))


def draw_hands(pose: Pose, ref_width: int) -> np.ndarray:
    """Draw both hands: uint8 (imh, imw, 3), red and blue exchanged at the end as the network was trained."""
    imh, imw = pose.params[:2]
    factor = 1.0 if min(imh, imw) == ref_width else ref_width / min(imh, imw)
    sheet = np.zeros((int(imh * factor), int(imw * factor), 3), np.uint8)
    for hand, scores in zip(pose.hands, pose.scores, strict=True):
        spots = np.trunc(hand * [sheet.shape[1], sheet.shape[0]]).astype(int)
        for edge in range(20):
            a, b = (0 if edge % 4 == 0 else edge), edge + 1
            if (spots[[a, b]] > 0.01).all():
                colour = line_colour(edge, int(scores[a] * scores[b] * 255))
                cv2.line(sheet, tuple(map(int, spots[a])), tuple(map(int, spots[b])), colour, thickness=2)
        for spot, score in zip(spots, scores, strict=True):
            if (spot > 0.01).all():
                cv2.circle(sheet, tuple(map(int, spot)), 4, (0, 0, int(score * 255)), thickness=-1)
    return swap_channels(cv2.resize(sheet, (imw, imh)))


def swap_channels(drawn: np.ndarray) -> np.ndarray:
    return drawn[..., ::-1]


def canvas_shape(width: int, height: int) -> tuple[int, int, int]:
    return height, width, 3


def pose_map(pose: Pose, width: int, height: int, policy: Policy | None = None) -> np.ndarray | None:
    """Place the drawing on a black canvas: uint8 (height, width, 3); None for a frame that the policy leaves out."""
    policy = policy or Policy()
    _, _, rb, re, cb, ce = pose.params
    if policy.bounds == "skip" and (min(rb, cb) < 0 or re > height or ce > width or re <= rb or ce <= cb):
        return None
    drawn = draw_hands(pose, policy.ref_width or min(width, height))
    if policy.bounds == "clamp":
        rb, cb = (min(max(begin, 0), limit) for begin, limit in ((rb, height), (cb, width)))
        re, ce = max(rb + 1, min(re, height)), max(cb + 1, min(ce, width))
    if drawn.shape[:2] != (re - rb, ce - cb):
        drawn = cv2.resize(np.ascontiguousarray(drawn), (ce - cb, re - rb))
    canvas = np.zeros(canvas_shape(width, height), np.uint8)
    top, left = max(rb, 0), max(cb, 0)
    place = canvas[top : max(re, 0), left : max(ce, 0)]
    if not place.size:
        raise ValueError(f"pose: its place (rows {rb}-{re}, columns {cb}-{ce}) is outside the {width}x{height} canvas")
    place[:] = drawn[top - rb : top - rb + place.shape[0], left - cb : left - cb + place.shape[1]]
    return canvas


def draw_maps(poses: list[Pose], width: int, height: int, policy: Policy | None = None) -> Tensor:
    """Draw all frames: uint8 (L, height, width, 3); frames that the policy leaves out move the later ones up.

    Errors: ValueError when nothing is left.
    """
    maps = [drawn for pose in poses if (drawn := pose_map(pose, width, height, policy)) is not None]
    if not maps:
        raise ValueError(f"no pose fits the {width}x{height} canvas")
    return torch.from_numpy(np.stack(maps))


def load_maps(folder: Path, count: int, width: int, height: int, policy: Policy | None = None) -> Tensor:
    """Draw the first `count` frames of a folder of numbered `.npz` files, which is looped when it is shorter."""
    files = sorted(folder.glob("*.npz"), key=lambda path: int(path.stem))
    if not files:
        raise ValueError(f"{folder.name}: has no pose files")
    loaded = [load_pose(path) for path in files[:count]]
    return draw_maps([loaded[i % len(loaded)] for i in range(count)], width, height, policy)


def scale_maps(maps: Tensor) -> Tensor:
    """Bytes (L, H, W, 3) -> (L, 3, H, W) float32 in [0, 1]."""
    return maps.permute(0, 3, 1, 2).float() / 255
