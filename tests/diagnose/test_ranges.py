"""Cut ranges, truncated bytes, raw values, conditions replaced by a constant: shown, and almost."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from parity.diagnose.evidence import Evidence
from parity.diagnose.ranges import HYPOTHESES


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def found(ev: Evidence) -> dict[str, str]:
    return {h.name: e.class_id or h.class_id for h in HYPOTHESES for e in h.test(ev)}


def over_calls(ours: list[Tensor], theirs: list[Tensor], at: int, kind: str = "input") -> Evidence:
    def look(values: list[Tensor]):
        return lambda site, coords: values[coords["frame"]] if site == "m" and coords["frame"] < len(values) else None

    errors = [0.0 if torch.equal(r, p) else 1.0 for r, p in zip(ours, theirs, strict=True)]
    table: list[tuple[str, Mapping[str, int], float, float]] = [
        ("m", {"frame": i}, e, 1e-6) for i, e in enumerate(errors)
    ]
    return Evidence(
        reference=ours[at], port=theirs[at], site="m", coords={"frame": at}, kind=kind, floor=1e-6,
        ref_at=look(ours), port_at=look(theirs), table=table,
    )  # fmt: skip


PICTURE = draw(32, 40, 3).clamp(-1, 1)


def test_a_range_that_is_cut_instead_of_shifted() -> None:
    r = ((PICTURE + 1) / 2 * 255).round()
    p = PICTURE.clamp(0, 1) * 255
    assert found(Evidence(reference=r, port=p, kind="frame"))["clipped range"] == "C8"


@pytest.mark.parametrize("p", [PICTURE * 0.5, PICTURE.square(), draw(32, 40, 3, seed=1).clamp(0, 1)])
def test_what_is_no_cut_range(p: Tensor) -> None:
    assert "clipped range" not in found(Evidence(reference=PICTURE, port=p, kind="frame"))


def test_bytes_that_are_truncated() -> None:
    x = torch.rand(32, 40, 3, generator=torch.Generator().manual_seed(2)) * 255
    assert found(Evidence(reference=x.round(), port=x.floor(), kind="frame"))["truncated bytes"] == "V10"
    assert found(Evidence(reference=x.floor(), port=x.round(), kind="frame"))["truncated bytes"] == "V10"
    assert "truncated bytes" not in found(Evidence(reference=x.round(), port=x.round() - 1, kind="frame"))
    noisy = (x + draw(32, 40, 3)).round()
    assert "truncated bytes" not in found(Evidence(reference=x.round(), port=noisy, kind="frame"))


def test_a_raw_value_is_known_by_all_its_calls() -> None:
    raw = [torch.tensor([v]) for v in (-3.0, 2.0, 0.0, 5.0)]
    assert found(over_calls([torch.sign(v) for v in raw], raw, 0))["curve over calls"] == "C8"
    assert "curve over calls" not in found(over_calls([0.3 * v for v in raw], raw, 0))
    assert "curve over calls" not in found(over_calls([torch.sign(v) for v in raw[:2]], raw[:2], 0))


def test_a_condition_that_became_a_constant() -> None:
    ours, null = [draw(1, 4, 8, seed=i) for i in range(6)], draw(1, 1, 8, seed=9).expand(1, 4, 8)
    assert found(over_calls(ours, [null] * 6, 0))["constant condition"] == "C1"
    at_random = [null if i in (1, 2, 4) else ours[i] for i in range(6)]
    assert found(over_calls(ours, at_random, 1))["constant condition"] == "N8"


def test_what_is_no_dropped_condition() -> None:
    ours = [draw(1, 4, 8, seed=i) for i in range(6)]
    other = [draw(1, 4, 8, seed=20 + i) for i in range(6)]
    assert "constant condition" not in found(over_calls(ours, other, 0))  # another condition, not a constant one
    late = [ours[0]] + [draw(1, 1, 8, seed=9).expand(1, 4, 8)] * 5
    assert "constant condition" not in found(over_calls(ours, late, 1))  # from one frame on: no dropout
