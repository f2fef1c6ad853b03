"""Results made by hand that look like real ones: a small autoregressive video model, run over frames and steps."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from parity.report.media import KvView, MaskView, Media, RopeView, Source
from parity.report.values import value_view
from parity.result import Cause, Coverage, Culprit, Divergence, Result, Row

SITES = (
    "embed.patch",
    *(
        f"blocks.{block}.{part}"
        for block in range(6)
        for part in ("norm1", "attn.q_rope", "attn.k_rope", "attn.out", "norm2", "mlp.up", "mlp.down", "kv.k")
    ),
    "head.out",
)
OPERATIONS = (
    "operations up to blocks.2.attn.q_rope@frame=1,step=0, in float64 on the reference's values",
    "reference: 3 operations, 1 of them without a counterpart",
    "= mul(f64[2,60,4,8], f64[60,1,8]) at reference/waypoint/rope.py:32",
    "= sub(f64[2,60,4,8], f64[2,60,4,8]) at reference/waypoint/rope.py:32",
    "! stack(f64[2,60,4,8], f64[2,60,4,8], dim=-1) at reference/waypoint/rope.py:33",
    "port: 2 operations, 1 of them without a counterpart",
    "= mul(f64[2,60,4,8], f64[60,1,8]) at ported/waypoint/rope.py:40",
    "! aten.cat(f64[2,60,4,8], f64[2,60,4,8], dim=-1) at ported/waypoint/rope.py:41",
)
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=\"alert('2')\">"


def rows(frames: int = 4, steps: int = 3, bad_from: int | None = None, seed: int = 0) -> tuple[Row, ...]:
    """Rows in execution order; the error grows with the steps, and from record `bad_from` on it is over its floor."""
    generator = np.random.default_rng(seed)
    made: list[Row] = []
    for frame in range(frames):
        for step in range(steps):
            for depth, site in enumerate(SITES):
                order = len(made)
                floor = 2e-6 * (1 + depth / 8) * 1.6**step
                bad = bad_from is not None and order >= bad_from and depth >= bad_from % len(SITES)
                error = float(0.03 * generator.uniform(0.5, 2) if bad else floor * generator.uniform(0.05, 0.6))
                made.append(
                    Row(
                        site=site,
                        coords={"frame": frame, "step": step},
                        kind="rope" if "rope" in site else "kv" if "kv" in site else "activation",
                        order=order,
                        error=0.0 if site == "embed.patch" else error,
                        floor=floor,
                        max_abs=error * 4,
                        cosine=1 - error**2 / 2,
                        sqnr_db=-20 * math.log10(error),
                        over=0.4 if bad else 0.0,
                        bitwise=site == "embed.patch",
                        dtype=("float32", "float32"),
                        shape=(2, 60, 4, 16),
                        precise=floor / 4,
                        isolated=2e-7,
                        diverged=bad,
                    )
                )
    return tuple(made)


def match() -> Result:
    made = rows()
    return Result(
        verdict="match",
        first=None,
        culprit=None,
        causes=(),
        coverage=Coverage(len(made), len(made), len(made) + 4, (), ("blocks.0.attn.scratch",), kinds(made)),
        rows=made,
        environment=environment(False),
        case="tiny",
        system="waypoint",
        seconds={"reference": 1.25, "port": 1.5, "compare": 0.25},
        command="parity run waypoint/tiny --html reports",
    )


def diverged() -> Result:
    """A rotary fault in block 2 from frame 1 on, with everything that a report can show."""
    start = 3 * len(SITES) + 18
    made = rows(bad_from=start)
    divergences = tuple(
        Divergence(row.site, row.coords, row.kind, "rel_l2", row.error, row.floor, row.order)
        for row in made
        if row.diverged
    )
    first = replace(
        divergences[0],
        module="blocks.2.attn.rope",
        index=(0, 5, 12, 3),
        reference_value=0.123456789,
        port_value=-0.0912345678,
        shape=(2, 60, 4, 16),
        locality=("all heads alike", "channels 8..15 of 16", "frames >= 1"),
    )
    culprit = Culprit(
        module="blocks.2.attn.rope",
        operation="aten.cat",
        source="ported/waypoint/rope.py:41",
        code="return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1)",
        detail="the reference has aten.stack here, at reference/waypoint/rope.py:33",
        site="blocks.2.attn.q_rope",
        coords={"frame": 1, "step": 0},
    )
    other = Culprit("blocks.4.mlp.act", "aten.gelu", "ported/waypoint/mlp.py:19", "return F.gelu(x)")
    causes = (
        Cause(
            "rotary_pairing",
            "P1",
            "The port rotates half-split channel pairs (i, i + d/2), the reference interleaved ones (2i, 2i + 1).",
            {"pairs": "half", "dim": 16},
            0.0004,
            0.97,
            "blocks.2.attn.q_rope",
        ),
        Cause("channel_permutation", "V11", "The port's channels are the reference's in another order.", {}, 0.21, 0.4),
        Cause("position_offset", "P2", "The positions are shifted by one frame.", {"offset": 1}, 0.64, 0.12),
    )
    return Result(
        verdict="diverged",
        first=first,
        culprit=culprit,
        causes=causes,
        coverage=Coverage(600, 602, 605, ("blocks.5.extra",), ("blocks.0.attn.to_qkv",), kinds(made)),
        divergences=(first, *divergences[1:]),
        culprits=(culprit, other),
        rows=made,
        environment=environment(True),
        notes=("accepted quirk: keys are stored after rotation", "benign permutation of heads at blocks.0.attn.out"),
        case="tiny",
        system="waypoint",
        fault="rope_half_split",
        seconds={"reference": 1.25, "port": 1.5, "floors": 2.0, "compare": 0.25, "isolate": 3.5, "diagnose": 0.75},
        command="parity run waypoint/tiny --fault rope_half_split --html reports",
        report="reports/waypoint-tiny.html",
    )


def zoomed() -> Result:
    """`diverged()` with the operations of both sides."""
    return replace(diverged(), operations=OPERATIONS)


def shape_fault() -> Result:
    """The text of the port has one token more; nothing has an axis."""
    made = tuple(replace(row, coords={}) for row in rows(frames=1, steps=1, bad_from=9))
    first = Divergence(
        made[9].site, {}, "input", "shape", math.inf, 0.0, 9, detail="shape [2] (reference), [3] (port)", shape=(2,)
    )
    others = tuple(
        Divergence(r.site, {}, r.kind, "rel_l2", r.error, r.floor, r.order) for r in made if r.diverged and r.order > 9
    )
    return replace(diverged(), first=first, divergences=(first, *others), rows=made, causes=(), fault="shape")


def mask_fault() -> Result:
    """A mask that hides a key, which no row measured; the cause says which line to write instead."""
    base = diverged()
    first = Divergence("blocks.1.attn.mask", {"frame": 1, "step": 0}, "mask", "mismatches", 0.25, 0.0, 60)
    cause = Cause(
        "window",
        "A11",
        "The window lets one frame less in.",
        confidence=0.99,
        proof="verified",
        patch="ported/waypoint/mask.py:12: return age < window - 1 → return age < window",
    )
    return replace(base, first=first, divergences=(first, *base.divergences), causes=(cause,), fault="mask")


def many(count: int, unique: bool = False) -> tuple[Row, ...]:
    """Rows of a large model: `count` records, of `count` sites where `unique`."""
    base = rows(frames=8, steps=8, bad_from=800)
    generator = np.random.default_rng(0)
    return tuple(
        replace(
            base[i % len(base)],
            order=i,
            error=float(generator.uniform(1e-7, 1e-5)),
            max_abs=float(generator.uniform()),
            isolated=float(generator.uniform()),
            site=f"transformer.single_transformer_blocks.{i}.attention.projection"
            if unique
            else base[i % len(base)].site,
            coords=base[i % len(base)].coords if unique else {**base[i % len(base)].coords, "call": i // len(base)},
        )
        for i in range(count)
    )


def incomparable() -> Result:
    return Result(
        verdict="incomparable",
        first=None,
        culprit=None,
        causes=(),
        coverage=Coverage(
            0, 405, 352, tuple(f"transformer.blocks.{i}.attn" for i in range(40)), ("dit.layers.0.sa",) * 30
        ),
        notes=("no site of the port has a counterpart in the reference: give a name map (--map)",),
        case="renamed",
        system="wan",
        seconds={"reference": 2.0, "port": 2.0},
        command="parity compare reference.trace port.trace --map names.yaml",
    )


def hostile() -> Result:
    """`diverged()` with markup in every text that a file or a model could have put there."""
    base = diverged()
    assert base.first is not None
    assert base.culprit is not None
    bad = HOSTILE
    first = replace(base.first, site=bad, kind=bad, detail=bad, module=bad, metric=bad, tier=bad, locality=(bad,))
    first = replace(first, coords={bad: 1})
    culprit = replace(base.culprit, module=bad, operation=bad, source=bad, code=bad, detail=bad)
    return replace(
        base,
        first=first,
        culprit=culprit,
        culprits=(culprit, replace(culprit, module=bad + "2")),
        causes=(Cause(bad, bad, bad, {bad: bad}, 0.5, 0.5, bad), *base.causes),
        divergences=(first,) * 20,
        rows=tuple(
            replace(row, site=bad, kind=bad, how=bad, dtype=(bad, bad), coords={bad: i})
            for i, row in enumerate(base.rows[:90])
        ),
        coverage=Coverage(1, 2, 3, (bad,), (bad,), {bad: 1}),
        environment={"reference": {bad: bad}, "port": {bad: bad + "!"}, "differences": [bad]},
        notes=(bad,),
        case=bad,
        system=bad,
        fault=bad,
        variation=bad,
        seconds={bad: 1.0},
        command=bad,
        report=f"javascript:{bad}",
    )


def hostile_zoomed() -> Result:
    """`hostile()` with a listing of operations."""
    lines = (HOSTILE, "port: 1 operations, 1 of them without a counterpart", f"! {HOSTILE} at {HOSTILE}", HOSTILE)
    return replace(hostile(), operations=lines)


def hostile_media() -> Media:
    """`media()` with markup in every name and label."""
    base, bad = media(), HOSTILE
    return replace(
        base,
        kv=tuple(
            replace(v, layer=bad, row_label=bad, column_label=bad, rows=(bad,) * len(v.held_port)) for v in base.kv
        ),
        rope=tuple(replace(v, name=bad, row_label=bad, column_label=bad) for v in base.rope),
        masks=tuple(replace(v, name=bad, row_label=bad, column_label=bad) for v in base.masks),
        values=tuple(replace(v, key=bad, slice_name=bad) for v in base.values),
        sources={bad: Source(bad, 1, 1, (bad,))},
    )


def kinds(made: tuple[Row, ...]) -> dict[str, int]:
    tally: dict[str, int] = {}
    for row in made:
        tally[row.kind] = tally.get(row.kind, 0) + 1
    return tally


def environment(differs: bool) -> dict[str, object]:
    side = {"torch": "2.13.0", "device": "cpu", "sdpa": {"flash": False, "math": True}, "threads": 1}
    port = {**side, "torch": "2.12.1", "sdpa": {"flash": True, "math": True}} if differs else side
    lines = ["torch: 2.13.0 (reference), 2.12.1 (port)"] if differs else []
    return {"reference": side, "port": port, "differences": lines}


def clip(frames: int = 13, height: int = 120, width: int = 208) -> NDArray[np.uint8]:
    """A sunset: a ball moves over hills, so that no frame equals another."""
    t, y, x = np.meshgrid(np.arange(frames), np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    sky = np.stack([0.95 - 0.45 * y, 0.55 - 0.1 * y, 0.35 + 0.35 * y], -1)
    hills = (y > 0.72 + 0.07 * np.sin(9 * x + 0.3 * t) + 0.03 * np.sin(23 * x))[..., None]
    ball = ((x - 0.15 - 0.05 * t) ** 2 * 3 + (y - 0.55 + 0.02 * t) ** 2 < 0.012)[..., None]
    land = np.where(hills, np.array([0.16, 0.2, 0.27]) * (1.6 - y[..., None]), sky)
    colour = np.where(ball, np.array([1.0, 0.93, 0.7]), land)
    grain = np.random.default_rng(5).normal(0, 0.01, colour.shape)
    return np.asarray(np.clip((colour + grain) * 255, 0, 255), np.uint8)


def bad_clip() -> NDArray[np.uint8]:
    """From frame 6 on the picture swims, and frames 10 and 11 are black."""
    port = clip().copy()
    for i in range(6, len(port)):
        port[i] = np.roll(port[i], 3 * (i - 5), axis=1)
        port[i, 40:70, 60:110] = port[i, 40:70, 60:110][:, ::-1]
    port[10:12] = 0
    return port


def media() -> Media:
    """A cache that evicts one frame too early, a table shifted by one, a mask that is one frame too narrow."""
    frames, slots = 10, 6
    held = np.full((frames, slots), -1)
    port = held.copy()
    for frame in range(frames):
        held[frame] = [max((g for g in range(frame + 1) if g % slots == s), default=-1) for s in range(slots)]
        port[frame] = held[frame] if frame < 7 else np.roll(held[frame], 1)
    error = np.where(held < 0, np.nan, np.where(held == port, 2e-7, 0.7))
    quiet = np.where(held < 0, np.nan, 2e-7)
    views = tuple(
        KvView(f"blocks.{i}.kv", held, port if i == 2 else held, error if i == 2 else quiet, 1e-5) for i in range(6)
    )
    angles = np.arange(48)[:, None] / 10000 ** (np.arange(32)[None] / 32)
    ropes = (
        RopeView("rope.cos", np.cos(angles), np.cos(angles + (angles > 20)), floor=1e-6),
        RopeView("rope.sin", np.sin(angles), np.sin(angles), floor=1e-6),
    )
    block = np.arange(72) // 6
    causal = block[:, None] >= block[None]
    windowed = causal & (block[:, None] - block[None] < 5)
    narrow = causal & (block[:, None] - block[None] < 4)
    masks = (MaskView("blocks.2.attn.mask", windowed, narrow), MaskView("blocks.0.attn.mask", causal, causal))
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(2, 60, 4, 16, generator=generator)
    right = torch.cat([left[..., ::2], left[..., 1::2]], dim=-1)
    lines = (
        "def turn(x1, x2):",
        "    x = x1",
        "    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1)",
    )
    return Media(
        clip(),
        bad_clip(),
        16.0,
        views,
        ropes,
        masks,
        values=(value_view("blocks.2.attn.q_rope@frame=1,step=0", left, right),),
        sources={
            "ported/waypoint/rope.py:41": Source("ported/waypoint/rope.py:41", 41, 39, lines),
            "reference/waypoint/rope.py:33": Source(
                "reference/waypoint/rope.py:33", 33, 33, ("return torch.stack(parts)",)
            ),
        },
    )
