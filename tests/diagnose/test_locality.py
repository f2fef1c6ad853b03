"""Where the error lies, in words; "evenly" when it follows the values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recognise import normal
from torch import Tensor

from parity.diagnose.evidence import Evidence
from parity.diagnose.locality import Locality, describe, measure

X = normal(2, 24, 6, 16, seed=1)
NOISE = 0.1 * normal(2, 24, 6, 16, seed=2)


def strongest(where: Tensor, kind: str = "activation") -> Locality:
    return measure(Evidence(X, X + NOISE * where, kind=kind))[0]


def mask(axis: int, *indices: int) -> Tensor:
    out = torch.zeros([X.shape[axis] if i == axis else 1 for i in range(4)], dtype=torch.float64)
    out.index_fill_(axis, torch.tensor(indices), 1.0)
    return out


@pytest.mark.parametrize(
    ("where", "axis", "what", "phrase"),
    [
        (mask(1, 22, 23), 1, "tail", "only the last 2 of 24 tokens"),
        (mask(1, *range(9, 24)), 1, "from", "tokens from 9 on"),
        (mask(1, 0), 1, "head", "only the first of 24 tokens"),
        (mask(1, 0, 23), 1, "border", "border tokens"),
        (mask(1, *range(2, 24, 4)), 1, "periodic", "every 4th token from 2"),
        (mask(2, 1, 4), 2, "some", "only 2 of 6 heads (1, 4)"),
        (mask(2, 3), 2, "one", "only head 3 of 6"),
        (mask(3, 4, 5, 6, 7), 3, "group", "only features 4..7 of 16"),
        (mask(0, 1), 0, "one", "only batch 1 of 2"),
    ],
)
def test_places(where: Tensor, axis: int, what: str, phrase: str) -> None:
    place = strongest(where)
    assert (place.axis, place.what) == (axis, what)
    assert phrase in place.detail
    assert place.share > 0.89


def test_scattered_elements() -> None:
    where = (normal(2, 24, 6, 16, seed=3) > 2.6).double()
    place = strongest(where)
    assert place.what == "sparse"


@given(st.integers(0, 10_000), st.sampled_from([(2, 24, 6, 16), (40, 12), (1, 3, 9, 16, 20), (500,)]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_even_noise_is_called_even(seed: int, shape: tuple[int, ...], loud: bool) -> None:
    """Also when some channels are much louder and the noise is relative to them."""
    reference = normal(*shape, seed=seed)
    noise = 0.01 * normal(*shape, seed=seed + 1)
    if loud:
        gain = torch.ones(shape[-1], dtype=torch.float64)
        gain[0] = 30
        reference, noise = reference * gain, noise * gain
    assert describe(Evidence(reference, reference + noise)) == ("spread evenly over the tensor",)


def test_nan_is_counted_and_placed() -> None:
    port = X.clone()
    port[:, 20:] = torch.nan
    place = measure(Evidence(X, port))[0]
    assert place.what == "nonfinite"
    assert "16.7%" in place.detail
    assert "last 4 of 24 tokens" in place.detail
    everywhere = measure(Evidence(X, torch.full_like(X, torch.inf)))[0]
    assert everywhere.share == 1.0


def _table(bad: set[tuple[int, int, int]]) -> list[tuple[str, dict[str, int], float, float]]:
    rows = []
    for frame in range(6):
        for step in range(4):
            for branch in range(2):
                error = 0.3 if (frame, step, branch) in bad else 1e-8
                rows.append(("out", {"frame": frame, "step": step, "branch": branch}, error, 1e-6))
    return rows


@pytest.mark.parametrize(
    ("hit", "phrase"),
    [
        (lambda f, s, b: f >= 3, "from frame 3 on"),
        (lambda f, s, b: b == 1, "from branch 1 on"),
        (lambda f, s, b: s == 1, "only at step 1"),
        (lambda f, s, b: f % 2 == 1, "every 2nd frame from 1"),
    ],
)
def test_coordinates(hit, phrase: str) -> None:
    bad = {(f, s, b) for f in range(6) for s in range(4) for b in range(2) if hit(f, s, b)}
    said = describe(Evidence(X, X + NOISE, site="out", table=_table(bad)))
    assert any(phrase in text for text in said), said


def test_every_coordinate_hit_says_nothing_of_coordinates() -> None:
    bad = {(f, s, b) for f in range(6) for s in range(4) for b in range(2)}
    assert len(describe(Evidence(X, X + NOISE, site="out", table=_table(bad)))) == 1


@pytest.mark.parametrize(
    "value", [torch.zeros(0, 3), torch.zeros(4), torch.tensor(1.0), torch.full((8, 8), torch.nan), torch.arange(6)]
)
def test_degenerate_tensors_never_raise(value: Tensor) -> None:
    for other in (value, torch.zeros_like(value), value + 1, value[..., None]):
        assert isinstance(describe(Evidence(value, other)), tuple)
