"""Time, sigma and solver hypotheses: each shown by its mistake, silent beside it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from parity.diagnose.evidence import Evidence, Explanation, Hypothesis
from parity.diagnose.time import HYPOTHESES


def explain(ev: Evidence) -> list[tuple[Hypothesis, Explanation]]:
    found = [(h, e) for h in HYPOTHESES for e in h.test(ev)]
    return sorted(found, key=lambda pair: -pair[1].confidence)


def top(ev: Evidence) -> tuple[str, Explanation]:
    found = explain(ev)
    assert found, "nothing was recognised"
    return found[0][1].class_id or found[0][0].class_id, found[0][1]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shifted(u: Tensor, shift: float) -> Tensor:
    return shift * u / (1 + (shift - 1) * u)


def line(count: int, last: float = 0.001) -> Tensor:
    return torch.linspace(1.0, last, count, dtype=torch.float64)


def embedding(t: Tensor, size: int = 32, order: str = "cos", denominator: int = 0, base: float = 1e4) -> Tensor:
    half = size // 2
    f = base ** (-torch.arange(half, dtype=torch.float64) / (half - denominator))
    angle = t[:, None].double() * f
    parts = [angle.cos(), angle.sin()]
    return torch.cat(parts if order == "cos" else parts[::-1], -1)


def table(r: Tensor, p: Tensor, **more: object) -> Evidence:
    return Evidence(reference=r, port=p, kind="schedule", **more)  # type: ignore[arg-type]


T = torch.tensor([999.0, 937.5, 721.3, 500.25], dtype=torch.float64)
S = shifted(line(12), 5.0)
CLOSED = torch.cat([S, torch.zeros(1)])
TABLES = {
    "bf16": (table(T, T.to(torch.bfloat16).double()), "T1"),
    "bf16 in its own dtype": (table(T.float(), T.to(torch.bfloat16)), "T1"),
    "whole": (table(T, T.floor()), "T1"),
    "sigma through bf16 times 1000": (table(S[1:], (S[1:] * 1000).floor() / 1000), "T1"),
    "unit": (table(T, T / 1000), "T6"),
    "one time, unit": (table(T[:1], T[:1] / 1000), "T6"),
    "other way": (table(line(9, 0.1), 1 - line(9, 0.1)), "T8"),
    "reversed": (table(S, S.flip(0)), "T5"),
    "twice": (table(S, shifted(S, 5.0)), "T3"),
    "never": (table(CLOSED, torch.cat([line(12), torch.zeros(1)])), "T3"),
    "other shift": (table(S, shifted(line(12), 3.0)), "T3"),
    "timesteps": (table(1000 * S, 1000 * shifted(S, 5.0)), "T3"),
    "ends shifted first": (
        table(shifted(line(9), 5.0), shifted(torch.linspace(1.0, float(shifted(line(9), 5.0)[-1]), 9), 5.0)),
        "T3",
    ),
    "other ends": (table(S, shifted(line(12, 0.05), 5.0)), "T5"),
    "one longer": (table(S, CLOSED), "T5"),
    "one shorter": (table(CLOSED, CLOSED[1:]), "T5"),
    "moved by one": (table(CLOSED[:-1], CLOSED[1:]), "T5"),
    "closing value": (table(CLOSED, torch.cat([S, torch.full((1,), 0.03)])), "T5"),
    "number of steps": (table(S, shifted(line(20), 5.0)), "T5"),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables(case: str) -> None:
    ev, class_id = TABLES[case]
    assert top(ev)[0] == class_id, explain(ev)


def test_shift_is_read_back() -> None:
    found = top(TABLES["twice"][0])[1]
    assert math.isclose(found.parameters["reference"], 5, rel_tol=0.01)
    assert math.isclose(found.parameters["port"], 25, rel_tol=0.01)
    assert "twice" in found.text
    found = top(TABLES["never"][0])[1]
    assert "not applied" in found.text
    assert math.isclose(found.parameters["reference"], 5, rel_tol=0.01)


def test_step_of_a_neighbour() -> None:
    def at(site: str, coords: dict[str, int]) -> Tensor | None:
        return S[coords["step"]][None] if 0 <= coords["step"] < len(S) else None

    ev = table(S[3][None], S[4][None], coords={"step": 3}, site="sigma", ref_at=at)
    class_id, found = top(ev)
    assert class_id == "T5"
    assert found.parameters["offset"] == 1
    ev = table(S[3][None], S[2][None], inputs={"all": S})
    assert top(ev)[1].parameters["offset"] == -1


EMBEDDINGS = {
    "halves": (embedding(T), embedding(T, order="sin"), "T2"),
    "denominator": (embedding(T), embedding(T, denominator=1), "T2"),
    "denominator, the other way": (embedding(T, denominator=1), embedding(T), "T2"),
    "base": (embedding(T), embedding(T, base=1000.0), "T2"),
    "amplitude": (embedding(T), 2**0.5 * embedding(T), "T2"),
    "time in bf16": (embedding(T), embedding(T.to(torch.bfloat16)), "T1"),
    "whole time": (embedding(T), embedding(T.floor()), "T1"),
    "unit": (embedding(T), embedding(T / 1000), "T6"),
    "one late": (embedding(T), embedding(T + 1), "T5"),
}


@pytest.mark.parametrize("rows", [4, 1])
@pytest.mark.parametrize("case", EMBEDDINGS)
def test_embeddings(case: str, rows: int) -> None:
    r, p, class_id = EMBEDDINGS[case]
    first = 1 if rows == 1 else 0
    found = top(Evidence(reference=r[first : first + rows], port=p[first : first + rows]))
    assert found[0] == class_id
    assert found[1].residual < 0.02


FAST = torch.tensor([937.0, 250.0])
FEW = {"size": 16}  # eight frequencies: the slowest still turns 0.3 times a unit of time


@pytest.mark.parametrize(
    ("port", "class_id", "words"),
    [
        (embedding(FAST, base=100.0, **FEW), "T2", "frequency base 100"),
        (embedding(1000 * FAST, **FEW), "T6", "multiplied by 1000"),
        (embedding(FAST, base=100.0, order="sin", **FEW), "T2", "sin, cos halves instead of cos, sin halves"),
    ],
)
def test_angles_that_turn_too_fast_to_be_read(port: Tensor, class_id: str, words: str) -> None:
    """Every pair of neighbours aliases: the angles cannot be read off, but the usual ways to write them can be tried."""
    plain = embedding(FAST, **FEW)
    found = top(Evidence(reference=plain, port=port, inputs={"t": FAST}))
    assert found[0] == class_id
    assert words in found[1].text
    back = top(Evidence(reference=port, port=plain, inputs={"t": FAST}))
    assert back[0] == class_id
    assert "the reference's" in back[1].text
    assert not explain(Evidence(reference=plain, port=port + 0.01 * normal(2, 16), inputs={"t": FAST}))


X, V, OLD = normal(2, 4, 6, 5), normal(2, 4, 6, 5, seed=1), normal(2, 4, 6, 5, seed=2)
DT = -0.12


def latent(r: Tensor, p: Tensor, **more: object) -> Evidence:
    return Evidence(reference=r, port=p, kind="latent", inputs={"b": V, "a": X, "o": OLD}, **more)  # type: ignore[arg-type]


EULER = X + DT * V


def test_reference_rounds_its_time() -> None:
    ev = table(torch.tensor([0.859375]), torch.tensor([0.8611363]), inputs={"all": S})
    class_id, found = top(ev)
    assert class_id == "T1"
    assert found.parameters["side"] == "reference"


def test_frequency_table_of_the_embedding() -> None:
    f = 1e4 ** (-torch.arange(16, dtype=torch.float64) / 16)

    def embed(frequencies: Tensor) -> Tensor:
        angle = T[:, None] * frequencies
        return torch.cat([angle.cos(), angle.sin()], -1)

    rounded = embed(f.to(torch.bfloat16).double())
    assert top(Evidence(reference=rounded, port=embed(f)))[0] == "W10"
    assert top(Evidence(reference=embed(f), port=rounded))[0] == "W10"
    assert top(Evidence(reference=embed(f), port=embed(0 * f)))[0] == "W10"


def test_near_misses_are_silent() -> None:
    assert not explain(table(S, S + 0.01 * normal(12).abs()))
    assert not explain(table(T, T * 1.1))
    assert not explain(latent(EULER, EULER + 0.1 * normal(*X.shape, seed=9)))
    assert not explain(Evidence(reference=embedding(T), port=embedding(T) + 0.1 * normal(4, 32)))
    assert not explain(Evidence(reference=embedding(T), port=embedding(T).flip(-1)))
    assert not [e for _, e in explain(table(S, S.float())) if e.confidence > 0.1]


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(5, 50),
    shift=st.floats(1.5, 12.0),
    other=st.floats(1.5, 12.0),
    last=st.floats(0.001, 0.1),
)
def test_shift_is_named_for_any_table(count: int, shift: float, other: float, last: float) -> None:
    if abs(math.log(other / shift)) < 0.05:
        return
    r, p = shifted(line(count, last), shift), shifted(line(count, last), other)
    class_id, found = top(table(r, p))
    assert class_id == "T3"
    assert math.isclose(found.parameters["port"] / found.parameters["reference"], other / shift, rel_tol=0.02)


@settings(max_examples=20, deadline=None)
@given(
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    kind=st.sampled_from(["activation", "output"]),
    seed=st.integers(0, 999),
)
def test_rounding_is_silent(dtype: torch.dtype, kind: str, seed: int) -> None:
    x, v = normal(2, 40, seed=seed).to(dtype), normal(2, 40, seed=seed + 1).to(dtype)
    r = x.double() - 0.1 * v.double()
    p = (r.float() * (1 + 2e-7 * normal(2, 40, seed=seed + 2)).float()).to(dtype)
    ev = Evidence(reference=r.to(dtype), port=p, kind=kind, inputs={"x": x, "v": v}, floor=torch.finfo(dtype).eps)
    assert not explain(ev)


@pytest.mark.parametrize("value", [torch.zeros(2, 3, 4), torch.ones(1), torch.empty(0), torch.full((8,), math.nan)])
def test_degenerate_values_do_not_raise(value: Tensor) -> None:
    for other in (value + 1, value, torch.ones(3), torch.zeros(2, 3, 4, dtype=torch.long)):
        for kind in ("schedule", "latent", "activation", "output", "input"):
            explain(Evidence(reference=value, port=other, kind=kind, inputs={"v": value, "w": value + 2}))


def test_a_table_that_is_not_rescaled_to_zero_signal() -> None:
    plain = (1 - torch.linspace(1e-4, 0.02, 50, dtype=torch.float64)).cumprod(0)
    root = plain.sqrt()
    rescaled = ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()
    said = [e.text for h, e in explain(Evidence(reference=rescaled, port=plain, kind="schedule")) if h.class_id == "T5"]
    assert any("is not rescaled to zero signal" in text for text in said)
    other = Evidence(reference=rescaled, port=plain.sqrt(), kind="schedule")
    assert all("rescaled" not in e.text for _, e in explain(other))
