"""Two traces without measured floors: noise that grows is no bug, a jump is one, and what follows a pair may veto it."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from core_models import noise
from torch import Tensor, nn

import parity
from parity.compare.measure import reshaped
from parity.compare.onset import DRIFT, JUMP
from parity.result import Result, parse_key
from parity.trace import Manifest, Record, Trace
from parity.trace.fingerprint import BUCKETS, buckets, digest, sketch, stats


def trace(values: dict[str, Tensor], full: bool = True) -> Trace:
    made = Trace(manifest=Manifest())
    for i, (key, value) in enumerate(values.items()):
        site, coords = parse_key(key)
        seen = stats(value), digest(value), sketch(value)
        dtype = str(value.dtype).removeprefix("torch.")
        made.add(Record(site, coords, "activation", i, tuple(value.shape), dtype, *seen), value if full else None)
    return made


def run(errors: list[float], full: bool = True, dtype: torch.dtype = torch.float32) -> Result:
    """Compare two runs of as many steps, each of which is off by a relative error of its own."""
    values = {f"x@step={i}": noise(40, 50, seed=i) for i in range(len(errors))}
    ported = {
        key: (v + error * v.norm() * (n := noise(40, 50, seed=99 + i)) / n.norm()).to(dtype)
        for i, ((key, v), error) in enumerate(zip(values.items(), errors, strict=True))
    }
    return parity.compare(trace({k: v.to(dtype) for k, v in values.items()}, full), trace(ported, full))


@pytest.mark.parametrize("full", [True, False])
def test_noise_that_grows_is_drift_and_a_jump_is_a_bug(full: bool) -> None:
    growing = [3e-6 * 1.3**i for i in range(16)]  # far over the fixed tolerance at the end
    assert growing[-1] > 1e-4
    result = run(growing, full)
    assert result.verdict == "match"
    assert any(note.startswith("drift") for note in result.notes)
    jump = run([*growing[:9], 0.3, *growing[10:]], full)
    assert (jump.verdict, jump.first.key) == ("diverged", "x@step=9")
    # a row under its limit lifts the envelope for the next ones by itself alone: one value cannot
    assert run([*growing[:9], 0.9 * JUMP * growing[5], *growing[10:]], full).verdict == "match"


def test_drift_has_an_end() -> None:
    far = run([3e-6 * 1.3**i for i in range(32)])
    assert far.verdict == "diverged"
    assert far.first.error > DRIFT["float32"]


def test_the_grid_of_the_values_says_in_what_precision_they_were_computed() -> None:
    """A norm gives float32 of bf16 arithmetic: what follows it in float32 carries that noise."""
    first = noise(40, 50).to(torch.bfloat16).float()
    error = 3e-3 * noise(40, 50, seed=5) * noise(40, 50, seed=1).abs()
    later = noise(40, 50, seed=1)
    assert parity.compare(trace({"a": first, "b": later}), trace({"a": first, "b": later + error})).verdict == "match"
    plain = noise(40, 50)
    assert (
        parity.compare(trace({"a": plain, "b": later}), trace({"a": plain, "b": later + error})).verdict == "diverged"
    )


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ((2, 30, 180), (2, 30, 6, 30), True),
        ((2, 1, 7), (2, 1, 1, 7), True),
        ((60, 180), (2, 30, 6, 30), True),
        ((2, 6, 30), (2, 30, 6), False),
        ((4, 5), (4, 6), False),
        ((), (1, 1), True),
    ],
)
def test_shapes_that_one_row_major_order_serves(one: tuple[int, ...], other: tuple[int, ...], same: bool) -> None:
    assert reshaped(one, other) == reshaped(other, one) == same
    if same:
        assert buckets(one) == buckets(other)


@pytest.mark.parametrize("shape", [(1021, 3), (3, 1021 * 1019), (1021 * 1019 * 1013,), (7,)])
def test_no_axis_is_a_multiple_of_the_buckets(shape: tuple[int, ...]) -> None:
    assert buckets(shape) in BUCKETS
    assert all(n % buckets(shape) for n in shape)
    assert math.prod(shape) % buckets(shape)


def test_sketches_of_a_reshape_compare_and_other_layouts_are_not_measured() -> None:
    value = noise(2, 30, 6, 30)
    plain = trace({"a": value, "b": noise(9)}, full=False)

    def against(other: Tensor) -> Result:
        return parity.compare(plain, trace({"a": other, "b": noise(9)}, full=False))

    assert against(value.reshape(2, 30, 180)).verdict == "match"
    assert against(value.reshape(2, 30, 180)).rows[0].error < 1e-9
    wrong = against((value * (1 + 0.1 * noise(2, 30, 6, 30, seed=4))).reshape(2, 30, 180))
    assert (wrong.verdict, wrong.first.site) == ("diverged", "a")
    turned = against(value.transpose(1, 2).contiguous())
    assert turned.first is None
    assert math.isnan(turned.rows[0].error)
    assert any("could not be measured" in note for note in turned.notes)


# -- vetoes -----------------------------------------------------------------------------------------------------------


class Inner(nn.Module):
    """Adds the residual itself, or leaves that to its caller."""

    def __init__(self, own: bool, factor: float = 1.0) -> None:
        super().__init__()
        self.up, self.down, self.own, self.factor = nn.Linear(12, 24), nn.Linear(24, 12), own, factor

    def forward(self, x: Tensor) -> Tensor:
        h = self.factor * self.down(nn.functional.silu(self.up(x)))
        return x + h if self.own else h


class Outer(nn.Module):
    def __init__(self, own: bool, factors: tuple[float, ...] = (1.0, 1.0, 1.0)) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Inner(own, factor) for factor in factors)
        self.head, self.own = nn.Linear(12, 5), own

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x) if self.own else x + block(x)
        return self.head(x)


def captured(full: bool, factors: tuple[float, ...] = (1.0, 1.0, 1.0)) -> tuple[Trace, Trace]:
    torch.manual_seed(0)
    reference, port = Outer(True), Outer(False, factors)
    port.load_state_dict(reference.state_dict())
    x = noise(2, 7, 12)
    return parity.capture(reference, (x,), keep=full), parity.capture(port, (x,), keep=full)


@pytest.mark.parametrize("full", [True, False])
def test_a_residual_inside_or_outside_is_another_boundary(full: bool) -> None:
    result = parity.compare(*captured(full))
    assert result.verdict == "match"
    assert any("another boundary" in note for note in result.notes)
    assert "blocks.0" in result.coverage.unaligned_reference


@pytest.mark.parametrize("full", [True, False])
def test_a_bug_behind_another_boundary_is_found_in_its_place(full: bool) -> None:
    result = parity.compare(*captured(full, (1.0, 1.0, 1.1)))
    assert result.verdict == "diverged"
    assert result.first.site.startswith(("blocks.2", "head"))
    assert not [d for d in result.divergences if d.site.startswith(("blocks.0", "blocks.1"))]


class Step(nn.Module):
    """A step whose inner module adds little to what goes through: what is wrong inside hardly shows in the result."""

    def __init__(self, late: float = 1.0) -> None:
        super().__init__()
        self.inner, self.late, self.calls = nn.Linear(16, 16), late, 0

    def forward(self, x: Tensor) -> Tensor:
        factor = self.late if self.calls else 1.0
        self.calls += 1
        return x + 0.01 * self.inner(x * factor)


def steps(step: nn.Module, x: Tensor) -> Tensor:
    for _ in range(4):
        x = step(x)
    return x


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("late", [1.0, 1.3])
def test_a_site_that_agreed_before_is_no_other_boundary(full: bool, late: float) -> None:
    """In bf16 the results agree within their tolerance; the inner module's input agreed at the first call, and is far off at the second."""
    torch.manual_seed(0)
    official, ported = Step(), Step(late)
    ported.load_state_dict(official.state_dict())
    x = noise(2, 5, 16).to(torch.bfloat16)
    traces = [parity.capture((steps, side.to(torch.bfloat16)), (x,), keep=full) for side in (official, ported)]
    result = parity.compare(*traces)
    assert result.verdict == ("match" if late == 1.0 else "diverged")
    if result.first is not None:
        assert result.first.key == "inner.in.input@call=1"


def test_a_map_is_meant_as_it_says() -> None:
    from parity.trace.names import NameMap

    result = parity.compare(*captured(True), names=NameMap())
    assert (result.verdict, result.first.site) == ("diverged", "blocks.0")


# -- floors in a trace ------------------------------------------------------------------------------------------------


def test_a_trace_that_carries_floors_is_judged_by_them(tmp_path) -> None:
    """An eps that the fixed tolerance of float32 hides is far over what the side measured of itself."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 12), nn.LayerNorm(12, eps=1e-6), nn.Linear(12, 4))
    other = copy.deepcopy(model)
    other[1].eps = 6e-6
    x = noise(3, 12)
    before = copy.deepcopy(model.state_dict())
    with_floors = parity.capture(model, (x,), floors=True, path=tmp_path / "floors")
    assert set(with_floors.manifest.floors) == {"own", "levels", "isolation", "rounding"}
    assert with_floors.manifest.floors["own"]["1"] > 0
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    plain, port = parity.capture(model, (x,)), parity.capture(other, (x,))
    assert parity.compare(plain, port).verdict == "match"
    result = parity.compare(with_floors, port)
    assert (result.verdict, result.first.site) == ("diverged", "1")
    assert parity.compare(with_floors, plain).verdict == "match"
    small = parity.capture(model, (x,), floors=True, keep=False)
    assert small.tensor("1") is None
    assert parity.compare(small, parity.capture(other, (x,), keep=False)).first.site == "1"
