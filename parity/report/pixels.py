"""Pictures inside the page: heat maps in a few fixed hues, transparent (good on light and dark), frames as JPEG."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from parity.report.svg import escaped as text

Array = NDArray[np.float64]
ACCENT, ALARM, ABSENT, CALM = (74, 108, 247), (181, 52, 26), (230, 168, 23), (128, 134, 145)
MAX_CELLS = 512  # per side of a heat map; larger ones are reduced so that the worst cell of each block stays visible


@dataclass(frozen=True)
class Heat:
    """A heat map of one array [rows, columns]: the colour of each cell [r, c, 4] uint8 RGBA and its hover text."""

    title: str
    colours: NDArray[np.uint8]
    row_label: str
    column_label: str
    describe: Callable[[int, int], str] | None = None
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    marks: Callable[[int, int], str] | None = None  # short text written into the cell
    width: int = 300
    hover: int = 1000  # up to so many cells, each is a shape of its own that names its value


def draw_heat(heat: Heat) -> Markup:
    """Return the map as an `<svg>` with its axes; cells say what they are on hover when there are few of them."""
    rows, columns = heat.colours.shape[:2]
    if rows == 0 or columns == 0:
        return Markup("")
    left, top, below = 10.0 + 6.7 * max((len(r) for r in heat.rows), default=3), 22.0, 32.0
    wide = heat.width - left - 6.0
    tall = min(max(rows * min(wide / columns, 18.0), 44.0), 420.0, wide * 0.8)
    step_x, step_y = wide / columns, tall / rows
    height = top + tall + below
    parts = [
        f'<svg class="heat" viewBox="0 0 {heat.width} {height:.0f}" role="img" aria-label="{text(heat.title)}">',
        f'<text class="name" x="{left:.1f}" y="13">{text(heat.title)}</text>',
        f'<rect class="ground" x="{left:.1f}" y="{top}" width="{wide:.1f}" height="{tall:.1f}"/>',
    ]
    if rows * columns <= heat.hover:
        parts += _cells(heat, left, top, step_x, step_y)
    else:
        parts.append(
            f'<image x="{left:.1f}" y="{top}" width="{wide:.1f}" height="{tall:.1f}" preserveAspectRatio="none" '
            f'href="{png(heat.colours)}"/>'
        )
    parts += [
        f'<text class="tick end" x="{left - 5:.1f}" y="{top + (i + 0.5) * step_y + 3.5:.1f}">{text(name)}</text>'
        for i, name in _named(heat.rows, rows, tall / 13)
    ]
    parts += [
        f'<text class="tick mid" x="{left + (i + 0.5) * step_x:.1f}" y="{top + tall + 13:.1f}">{text(name)}</text>'
        for i, name in _named(heat.columns, columns, wide / (7.0 * max([3, *map(len, heat.columns)])))
    ]
    label = f"{heat.row_label} ↓ · {heat.column_label} →"
    parts.append(f'<text class="label" x="{left:.1f}" y="{height - 4:.1f}">{text(label)}</text></svg>')
    return Markup("".join(parts))


def _cells(heat: Heat, left: float, top: float, step_x: float, step_y: float) -> list[str]:
    parts = []
    for row in range(heat.colours.shape[0]):
        for column in range(heat.colours.shape[1]):
            red, green, blue, alpha = (int(v) for v in heat.colours[row, column])
            title = f"<title>{text(heat.describe(row, column))}</title>" if heat.describe else ""
            x, y = left + column * step_x, top + row * step_y
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{step_x:.1f}" height="{step_y:.1f}" '
                f'fill="#{red:02x}{green:02x}{blue:02x}" fill-opacity="{alpha / 255:.2f}">{title}</rect>'
            )
            mark = heat.marks(row, column) if heat.marks and step_x >= 13 and step_y >= 12 else ""
            if mark:
                place = f'x="{x + step_x / 2:.1f}" y="{y + step_y / 2 + 3.3:.1f}"'
                parts.append(f'<text class="mark" {place}>{text(mark)}</text>')
    return parts


def _named(names: tuple[str, ...], count: int, room: float) -> list[tuple[int, str]]:
    """Evenly chosen positions with their names, at most as many as there is room for; numbers without names."""
    labels = names if len(names) == count else tuple(str(i) for i in range(count))
    step = max(1, -(-count // max(1, int(room))))
    return [(i, labels[i]) for i in range(0, count, step)]


def shade(hue: tuple[int, int, int], strength: Array) -> NDArray[np.uint8]:
    """One hue with `strength` [r, c] in [0, 1] as opacity; nan is transparent."""
    alpha = np.rint(np.clip(np.nan_to_num(strength), 0, 1) * 255).astype(np.uint8)
    return np.dstack([np.broadcast_to(np.asarray(hue, np.uint8), (*alpha.shape, 3)), alpha])


def error_colours(error: Array, floor: float | Array) -> NDArray[np.uint8]:
    """Errors on a log scale: grey below the floor, vermilion above it and fuller with each decade; not finite is full vermilion."""
    with np.errstate(divide="ignore", invalid="ignore"):
        over = np.log10(np.where(error > 0, error, np.nan)) - np.log10(np.maximum(floor, 1e-30))
        top = np.nanmax(np.where(np.isfinite(over), over, np.nan), initial=1.0)
        beyond = (error > floor) | np.isinf(error)
        colours = shade(CALM, np.clip((over + 4) / 16, 0.02, 0.25))
        strength = np.where(np.isinf(error), 1.0, np.clip(0.3 + 0.7 * over / top, 0.3, 1.0))
        return np.where(beyond[..., None], shade(ALARM, strength), colours)


def reduce_cells(values: Array, limit: int = MAX_CELLS) -> tuple[Array, int, int]:
    """Shrink [r, c] to at most `limit` on each side by each block's maximum (nan loses); return the block's sides."""
    tall, wide = (max(1, -(-side // limit)) for side in values.shape)
    if tall == wide == 1:
        return values, 1, 1
    rows, columns = (-(-values.shape[0] // tall), -(-values.shape[1] // wide))
    filler = np.full((rows * tall, columns * wide), -np.inf)
    filler[: values.shape[0], : values.shape[1]] = np.where(np.isnan(values), -np.inf, values)
    reduced = filler.reshape(rows, tall, columns, wide).max(axis=(1, 3))
    return np.where(np.isneginf(reduced), np.nan, reduced), tall, wide


def png(colours: NDArray[np.uint8]) -> str:
    """RGBA [h, w, 4] or RGB [h, w, 3] as a data URI."""
    return _encoded(colours, ".png", [])


def jpeg(frame: NDArray[np.uint8], quality: int) -> str:
    """RGB [h, w, 3] as a data URI."""
    import cv2

    return _encoded(frame, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, quality])


def _encoded(picture: NDArray[np.uint8], suffix: str, options: list[int]) -> str:
    import cv2

    order = [2, 1, 0, 3][: picture.shape[2]]
    done, data = cv2.imencode(suffix, np.ascontiguousarray(picture[..., order]), options)
    if not done:
        raise ValueError(f"a picture of shape {picture.shape} cannot be encoded as {suffix}")
    kind = {".png": "png", ".jpg": "jpeg"}[suffix]
    return f"data:image/{kind};base64,{base64.b64encode(data.tobytes()).decode('ascii')}"
