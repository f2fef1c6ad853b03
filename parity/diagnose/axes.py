"""Guess what each axis of a tensor is from its shape and kind alone (names of sites are never trusted)."""

from __future__ import annotations

from collections.abc import Sequence

from .evidence import Evidence

VIDEO_KINDS = {"frame", "latent"}
COLOURS = (3, 4)
SMALLEST_PICTURE = 64  # pixels


def roles(shape: Sequence[int], kind: str = "activation") -> tuple[str, ...]:
    """Return one role per axis: b (batch), f (frames), c (channels), h, w (rows, columns), n (tokens), a (heads), d
    (features), x.

    Guesses: five axes are a video, (b c f h w) unless the third axis or the last looks like colours; four axes are
    attention (b n a d) or (b a n d), the heads being the smaller of the middle two, or a picture stack for frames and
    latents;
    three axes are (b n d); two are (n d); weights are (out, in, ...).

    >>> roles((2, 12, 4, 64))
    ('b', 'n', 'a', 'd')
    """
    n = len(shape)
    if kind == "weight":
        return tuple(["out", "in", "f", "h", "w"][:n]) if n <= 5 else tuple("x" * n)
    if n == 5:
        return _video5(shape, kind)
    if n == 4 and kind == "picture":
        return ("b", "c", "h", "w")
    if n == 4:
        if kind in VIDEO_KINDS or (
            kind == "input" and (shape[-1] in COLOURS or shape[1] in COLOURS or shape[0] in COLOURS)
        ):
            return _video4(shape, kind)
        if shape[2] == shape[3] or (shape[1] > shape[3] and shape[1] > 2 * shape[2] and shape[2] > 16):
            return ("b", "c", "h", "w")
        return ("b", "n", "a", "d") if shape[2] < shape[1] else ("b", "a", "n", "d")
    if n == 3:
        picture = kind == "input" and shape[0] == 3 and min(shape[1:]) >= 16
        return _video3(shape) if kind in VIDEO_KINDS or picture else ("b", "n", "d")
    if n == 2:
        return ("n", "d")
    return ("n",) if n == 1 else tuple("x" * n)


PICTURE_OPS = {"convolution", "conv2d", "native_group_norm", "group_norm", "upsample_nearest2d", "upsample_bilinear2d"}


def kind_of(ev: Evidence) -> str:
    """The evidence's kind; "picture" for an activation of a convolutional module, whose axis 1 is the channels."""
    if ev.kind not in {"activation", "input", "output"} or ev.reference.ndim != 4:
        return ev.kind
    channels = ev.reference.shape[1]
    kernels = any(
        v is not None and v.ndim >= 4 and channels in v.shape[:2] for pair in ev.parameters.values() for v in pair
    )
    return "picture" if kernels or any(op.name in PICTURE_OPS for op in ev.ref_ops) else ev.kind


def _video5(shape: Sequence[int], kind: str) -> tuple[str, ...]:
    if shape[-1] in COLOURS and shape[1] not in COLOURS and shape[2] not in COLOURS:
        return ("b", "f", "h", "w", "c")
    # only pictures have colours: elsewhere three entries are as likely three frames
    if kind == "frame" and shape[2] in COLOURS and shape[1] not in COLOURS:
        return ("b", "f", "c", "h", "w")
    return ("b", "c", "f", "h", "w")


def _video4(shape: Sequence[int], kind: str) -> tuple[str, ...]:
    # latents have no three channels, and a picture has some size
    colours = (4,) if kind == "latent" else COLOURS
    if shape[-1] in colours and shape[1] not in colours:
        return ("f", "h", "w", "c")
    if shape[1] in colours and shape[0] not in colours and shape[2] * shape[3] >= SMALLEST_PICTURE:
        return ("f", "c", "h", "w")
    return ("c", "f", "h", "w")


def _video3(shape: Sequence[int]) -> tuple[str, ...]:
    if shape[-1] in COLOURS:
        return ("h", "w", "c")
    if shape[0] in COLOURS:
        return ("c", "h", "w")
    return ("f", "h", "w") if shape[0] < min(shape[1:]) else ("b", "n", "d")


LONG = {
    "b": "batch",
    "f": "frame",
    "c": "channel",
    "h": "row",
    "w": "column",
    "n": "token",
    "a": "head",
    "d": "feature",
    "out": "output row",
    "in": "input column",
    "x": "entry",
}


def many(word: str) -> str:
    """The plural: batches, entries, tokens."""
    return word + ("es" if word.endswith("ch") else "s") if not word.endswith("y") else word[:-1] + "ies"


def axis_of(role: str, shape: Sequence[int], kind: str = "activation") -> int | None:
    """The first axis with that role, or None."""
    found = [i for i, name in enumerate(roles(shape, kind)) if name == role]
    return found[0] if found else None


def axis_name(axis: int, shape: Sequence[int], kind: str = "activation") -> str:
    """A phrase for an axis: "axis 2 (heads)"."""
    return f"axis {axis} ({many(LONG[roles(shape, kind)[axis]])})"
