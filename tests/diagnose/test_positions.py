"""Position hypotheses: each shown by the mistake that it names, and silent beside it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from parity.diagnose.evidence import Evidence, Explanation, Hypothesis
from parity.diagnose.positions import HYPOTHESES


def explain(ev: Evidence) -> list[tuple[Hypothesis, Explanation]]:
    found = [(h, e) for h in HYPOTHESES for e in h.test(ev)]
    return sorted(found, key=lambda pair: -pair[1].confidence)


def best(ev: Evidence) -> tuple[str, str, Explanation]:
    found = explain(ev)
    assert found, "nothing was recognised"
    hypothesis, explanation = found[0]
    return hypothesis.name, explanation.class_id or hypothesis.class_id, explanation


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def angles(positions: Tensor, size: int, base: float = 10000.0) -> Tensor:
    """θ[n, j] = position·base^(−2j/size)."""
    omega = base ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    return positions.to(torch.float64)[:, None] * omega


def grid_angles(
    t: int, h: int, w: int, parts: tuple[int, int, int], scale: tuple[float, float, float] = (1, 1, 1)
) -> Tensor:
    """Three-axis table as (t, h, w) bands over tokens in (t, h, w) order."""
    tt, hh, ww = torch.meshgrid(torch.arange(t), torch.arange(h), torch.arange(w), indexing="ij")
    axes = [tt.flatten() * scale[0], hh.flatten() * scale[1], ww.flatten() * scale[2]]
    return torch.cat([angles(axis, part) for axis, part in zip(axes, parts, strict=True)], 1)


def rotate(x: Tensor, theta: Tensor, pairing: str = "interleaved", out: str | None = None) -> Tensor:
    """Rotate x [b, h, n, d] by theta [n, d/2]."""
    half = x.shape[-1] // 2
    a, b = (x[..., 0::2], x[..., 1::2]) if pairing == "interleaved" else (x[..., :half], x[..., half:])
    y0, y1 = a * theta.cos() - b * theta.sin(), b * theta.cos() + a * theta.sin()
    if (out or pairing) == "interleaved":
        return torch.stack([y0, y1], -1).flatten(-2)
    return torch.cat([y0, y1], -1)


ROW = torch.arange(24)
X = normal(2, 3, 24, 16)
THETA = angles(ROW, 16)
GRID = grid_angles(3, 4, 5, (8, 4, 4))
XG = normal(1, 2, 60, 16, seed=3)


def evidence(x: Tensor, r: Tensor, p: Tensor, **more: object) -> Evidence:
    return Evidence(reference=r, port=p, inputs={"a": normal(7), "b": x}, **more)  # type: ignore[arg-type]


CASES = {
    "half-split for interleaved": (X, rotate(X, THETA), rotate(X, THETA, "half"), "rotary pairing", "P1"),
    "interleaved for half-split": (X, rotate(X, THETA, "half"), rotate(X, THETA), "rotary pairing", "P1"),
    "halves, output de-interleaved": (
        X,
        rotate(X, THETA, out="half"),
        rotate(X, THETA, "half"),
        "rotary pairing",
        "P1",
    ),
    "output order": (X, rotate(X, THETA, out="half"), rotate(X, THETA), "rotary output order", "W4"),
    "sign": (X, rotate(X, THETA), rotate(X, -THETA), "rotation sign", "P7"),
    "missing": (X, rotate(X, THETA), X, "rotary missing", "N5"),
    "offset": (X, rotate(X, THETA), rotate(X, angles(ROW + 3, 16)), "position offset", "P2"),
    "base": (X, rotate(X, THETA), rotate(X, angles(ROW, 16, 500.0)), "rotary frequencies", "P5"),
    "unit": (X, rotate(X, THETA), rotate(X, THETA * 2), "position unit", "P5"),
    "frozen": (X, rotate(X, angles(ROW + 1, 16)), rotate(X, angles(ROW * 0 + 1, 16)), "positions frozen", "P2"),
    "restart": (X, rotate(X, THETA), rotate(X, angles(ROW % 12, 16)), "positions restart", "P2"),
    "subset": (X, rotate(X, angles(ROW * ROW, 16)), rotate(X, THETA), "positions replaced", "P2"),
    "half ignored": (
        X,
        rotate(X, THETA),
        rotate(X, torch.cat([THETA[:, :4], THETA[:, :4]], 1)),
        "half of the table ignored",
        "P4",
    ),
    "half idle": (
        X,
        rotate(X, THETA),
        rotate(X, torch.cat([THETA[:, :4], 0 * THETA[:, 4:]], 1)),
        "half of the table ignored",
        "P4",
    ),
    "bands": (
        XG,
        rotate(XG, GRID),
        rotate(XG, torch.cat([GRID[:, 4:], GRID[:, :4]], 1)),
        "band order",
        "P3",
    ),
    "h and w exchanged": (
        XG,
        rotate(XG, GRID),
        rotate(XG, torch.cat([GRID[:, :4], GRID[:, 6:], GRID[:, 4:6]], 1)),
        "band order",
        "P3",
    ),
    "low precision": (
        X,
        rotate(X, angles(ROW + 300, 16)),
        rotate(X, angles(ROW + 300, 16).to(torch.bfloat16).double()),
        "low-precision angles",
        "P6",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_mistake_is_named(case: str) -> None:
    x, r, p, name, class_id = CASES[case]
    found = best(evidence(x, r, p))
    assert found[:2] == (name, class_id), found
    assert found[2].residual < 0.02


def test_parameters_are_read_back() -> None:
    assert best(evidence(X, rotate(X, THETA), rotate(X, angles(ROW - 5, 16))))[2].parameters["offset"] == -5
    base = best(evidence(X, rotate(X, THETA), rotate(X, angles(ROW, 16, 500.0))))[2].parameters
    assert math.isclose(base["base_port"], 500.0, rel_tol=1e-3)
    assert math.isclose(base["base_reference"], 1e4, rel_tol=1e-3)
    assert best(evidence(X, rotate(X, THETA), rotate(X, THETA * 16)))[2].parameters["scale"] == 16


def test_time_axis_of_one_frame() -> None:
    """A record of one frame does not move along time; the offset shows as a constant of geometric pairs."""

    def frame(t: int) -> Tensor:
        space = grid_angles(1, 4, 5, (4, 4, 8))
        space[:, -4:] = angles(torch.full((20,), t), 8)
        return space

    x = normal(1, 2, 20, 16)
    name, class_id, found = best(evidence(x, rotate(x, frame(4)), rotate(x, frame(0)), coords={"frame": 4}))
    assert (name, class_id, found.parameters["offset"]) == ("position offset", "P2", -4)
    assert "still 0" in found.text


def test_time_frequencies_of_one_frame() -> None:
    def frame(base: float) -> Tensor:
        space = grid_angles(1, 4, 5, (4, 4, 8))
        space[:, -4:] = angles(torch.full((20,), 3), 8, base)
        return space

    x = normal(1, 2, 20, 16)
    name, class_id, found = best(evidence(x, rotate(x, frame(1e4)), rotate(x, frame(100.0))))
    assert (name, class_id) == ("rotary frequencies", "P5")
    assert math.isclose(found.parameters["base_port"], 100, rel_tol=1e-2)


def test_samples_with_positions_of_their_own() -> None:
    """Prompts padded on the left: every sample starts at another position."""
    start = torch.tensor([0, 7])
    theta = torch.stack([angles(ROW + int(s), 16) for s in start])[:, None]
    x = normal(2, 3, 24, 16, seed=8)
    for p, class_id in ((rotate(x, theta, "half"), "P1"), (rotate(x, -theta), "P7"), (rotate(x, 2 * theta), "P5")):
        assert best(evidence(x, rotate(x, theta), p))[1] == class_id


def test_unmoved_axis_is_no_idle_half() -> None:
    """At frame 0 the time band is all ones on both sides; the bands are exchanged all the same."""
    space = grid_angles(1, 4, 5, (4, 4, 8))
    space = torch.cat([space[:, 2:4], space[:, 4:], space[:, :2]], 1)  # [T of zeros last | …]
    space[:, -2:] = 0.0
    x = normal(1, 2, 20, 16)
    moved = torch.cat([space[:, -2:], space[:, 2:-2], space[:, :2]], 1)
    assert best(evidence(x, rotate(x, space), rotate(x, moved)))[1] == "P3"


def test_time_positions_of_a_subset() -> None:
    keep = torch.tensor([0, 5, 9])
    space = grid_angles(10, 2, 3, (8, 4, 4)).reshape(10, 6, 8)
    local = grid_angles(3, 2, 3, (8, 4, 4))
    x = normal(1, 2, 18, 16)
    _name, class_id, found = best(evidence(x, rotate(x, space[keep].flatten(0, 1)), rotate(x, local)))
    assert class_id == "P2", found


def test_two_tensors_only() -> None:
    r = rotate(X, THETA)
    for p, class_id in (
        (rotate(X, THETA, "half"), "P1"),
        (rotate(X, angles(ROW + 1, 16)), "P2"),
        (rotate(X, -THETA), "P7"),
        (X, "N5"),
        (rotate(X, angles(ROW, 16, 500.0)), "P5"),
    ):
        found = explain(Evidence(reference=r, port=p))
        assert found, class_id
        assert (found[0][1].class_id or found[0][0].class_id) == class_id, found


@pytest.mark.parametrize("layout", ["tokens first", "merged heads"])
def test_other_layouts(layout: str) -> None:
    def view(y: Tensor) -> Tensor:
        y = y.transpose(1, 2)
        return y if layout == "tokens first" else y.flatten(2)

    found = best(evidence(view(X), view(rotate(X, THETA)), view(rotate(X, THETA, "half"))))
    assert found[:2] == ("rotary pairing", "P1")


TABLES = {
    "offset": (THETA, angles(ROW + 2, 16), "position offset", "P2"),
    "base": (THETA, angles(ROW, 16, 100.0), "rotary frequencies", "P5"),
    "bands": (GRID, torch.cat([GRID[:, 4:], GRID[:, :4]], 1), "band order", "P3"),
    "sign": (THETA, -THETA, "rotation sign", "P7"),
    "interleaved columns": (
        THETA.repeat_interleave(2, 1),
        torch.cat([THETA, THETA], 1),
        "frequency order",
        "P1",
    ),
    "bf16 angles": (
        angles(ROW + 400, 16),
        angles(ROW + 400, 16).to(torch.bfloat16).double(),
        "low-precision angles",
        "P6",
    ),
}


FORMS = ("complex", "cos with sin", "sin with cos", "angles")


@pytest.mark.parametrize(
    ("case", "form"),
    # a cosine does not see the sign
    [(case, form) for case in TABLES for form in FORMS if (case, form) != ("sign", "cos with sin")],
)
def test_tables(case: str, form: str) -> None:
    r, p, name, class_id = TABLES[case]
    if form == "complex":
        ev = Evidence(reference=torch.exp(1j * r), port=torch.exp(1j * p), kind="rope")
    elif form == "angles":
        ev = Evidence(reference=r, port=p, kind="rope")
    else:
        ours, other = (torch.cos, torch.sin) if form == "cos with sin" else (torch.sin, torch.cos)
        ev = Evidence(reference=ours(r), port=ours(p), kind="rope", inputs={"o": other(r)}, port_inputs={"o": other(p)})
    if case == "interleaved columns" and form != "complex":
        class_ids = {e.class_id or h.class_id for h, e in explain(ev)}
        assert class_id in class_ids or "P4" in class_ids
        return
    assert best(ev)[:2] == (name, class_id)


@pytest.mark.parametrize("function", [torch.cos, torch.sin])
def test_tables_without_companion(function: object) -> None:
    for case in ("offset", "base"):
        r, p, _name, class_id = TABLES[case]
        ev = Evidence(reference=function(r), port=function(p), kind="rope")  # type: ignore[operator]
        assert class_id in {e.class_id or h.class_id for h, e in explain(ev)}, case


def per_feature(theta: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin [1, n, 1, d] with every pair written twice."""
    wide = theta.repeat_interleave(2, 1)[None, :, None]
    return wide.cos(), wide.sin()


@pytest.mark.parametrize(
    ("port", "class_id"),
    [(angles(ROW + 1, 16), "P2"), (-THETA, "P7"), (angles(ROW, 16, 100.0), "P5"), (2 * THETA, "P5")],
)
def test_undeclared_tables_are_known_by_their_companion(port: Tensor, class_id: str) -> None:
    """Two outputs of a module that make a unit circle are a rotary table, whatever their kind."""
    (cos, sin), (port_cos, port_sin) = per_feature(THETA), per_feature(port)
    ev = Evidence(reference=sin, port=port_sin, inputs={"o": cos}, port_inputs={"o": port_cos})
    assert best(ev)[1] == class_id


def test_no_table_without_a_circle() -> None:
    (_, sin), (_, port_sin) = per_feature(THETA), per_feature(-THETA)
    other = normal(*sin.shape)
    assert not explain(Evidence(reference=sin, port=port_sin, inputs={"o": other}, port_inputs={"o": other}))
    ones, zeros = torch.ones(1, 9, 1, 8), torch.zeros(1, 9, 1, 8)
    ev = Evidence(reference=zeros, port=zeros + 0.1, inputs={"o": ones}, port_inputs={"o": ones})
    assert not explain(ev)


def test_position_ids() -> None:
    ids = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(3), torch.arange(4), indexing="ij"), -1).reshape(
        -1, 3
    )
    for port, class_id in (
        (ids + 1, "P2"),
        (ids[:, [0, 2, 1]], "P3"),
        (ids * 2, "P5"),
        (ids + torch.tensor([1, 0, 0]), "P2"),
    ):
        assert best(Evidence(reference=ids, port=port, kind="rope"))[1] == class_id
    whole = torch.arange(12)
    assert best(Evidence(reference=whole, port=whole % 6, kind="rope"))[2].parameters["period"] == 6
    chosen = torch.tensor([0, 5, 11])
    assert best(Evidence(reference=chosen, port=torch.arange(3), kind="rope"))[1] == "P2"
    assert not explain(Evidence(reference=whole, port=torch.randperm(12), kind="rope"))


def test_sinusoids_are_not_rotated_queries() -> None:
    """All pairs of a sinusoid have one length, so it is a "rotation" of every other one: its halves exchanged are no missing rotary."""
    theta = angles(torch.tensor([937.0, 250.0]), 32)
    flipped, plain = (torch.cat(parts, 1) for parts in ((theta.cos(), theta.sin()), (theta.sin(), theta.cos())))
    assert not explain(Evidence(reference=flipped, port=plain, inputs={"before": plain}))


def test_near_misses_are_silent() -> None:
    r = rotate(X, THETA)
    assert not explain(evidence(X, r, r * 1.1))
    assert not explain(evidence(X, r, r + 0.3 * normal(*r.shape, seed=9)))
    assert not explain(evidence(X, r, r.flip(2)))
    shuffled = rotate(X, THETA)
    shuffled[:, 0] = rotate(X, THETA, "half")[:, 0]  # one head only
    assert not explain(evidence(X, r, shuffled))
    assert not explain(evidence(X, r, normal(*r.shape, seed=5)))


@settings(max_examples=25, deadline=None)
@given(
    heads=st.integers(1, 3),
    tokens=st.integers(4, 20),
    size=st.sampled_from([8, 12, 16, 32]),
    offset=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_offset_is_always_read_back(heads: int, tokens: int, size: int, offset: int, seed: int) -> None:
    x = normal(1, heads, tokens, size, seed=seed)
    row = torch.arange(tokens)
    found = best(evidence(x, rotate(x, angles(row, size)), rotate(x, angles(row + offset, size))))
    assert found[1] == "P2"
    assert math.isclose(found[2].parameters["offset"], offset, rel_tol=1e-3)


@settings(max_examples=20, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(2, 9), st.sampled_from([4, 8, 16])),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    kind=st.sampled_from(["activation", "rope", "kv"]),
    seed=st.integers(0, 999),
)
def test_rounding_is_silent(shape: tuple[int, ...], dtype: torch.dtype, kind: str, seed: int) -> None:
    x = normal(*shape, seed=seed)
    r = rotate(x, angles(torch.arange(shape[2]), shape[3]))
    p = (r.float() * (1 + 2e-7 * normal(*shape, seed=seed + 1))).to(dtype)
    ev = Evidence(reference=r.to(dtype), port=p, inputs={"x": x.to(dtype)}, kind=kind, floor=torch.finfo(dtype).eps)
    assert not explain(ev)


@pytest.mark.parametrize(
    "value", [torch.zeros(2, 3, 4), torch.ones(1), torch.empty(0), torch.full((2, 4, 8), math.nan)]
)
def test_degenerate_values_do_not_raise(value: Tensor) -> None:
    for other in (value + 1, value, torch.ones(3, 5)):
        for kind in ("rope", "activation", "schedule"):
            explain(Evidence(reference=value, port=other, kind=kind, inputs={"v": value}))
