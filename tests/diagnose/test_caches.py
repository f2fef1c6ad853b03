"""Cache hypotheses: wrong slots, lengths, stale and shared state, shown and nearly shown."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from parity.diagnose.caches import HYPOTHESES
from parity.diagnose.evidence import Evidence, Explanation, Hypothesis


def explain(ev: Evidence) -> list[tuple[Hypothesis, Explanation]]:
    found = [(h, e) for h in HYPOTHESES for e in h.test(ev)]
    return sorted(found, key=lambda pair: -pair[1].confidence)


def top(ev: Evidence) -> tuple[str, Explanation]:
    found = explain(ev)
    assert found, "nothing was recognised"
    return found[0][1].class_id or found[0][0].class_id, found[0][1]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cache(r: Tensor, p: Tensor, **more: object) -> Evidence:
    return Evidence(reference=r, port=p, kind="kv", **more)  # type: ignore[arg-type]


def with_zeros(x: Tensor, slots: list[int]) -> Tensor:
    y = x.clone()
    y[:, :, slots] = 0
    return y


KV = normal(2, 3, 10, 8)
OLD = normal(2, 3, 10, 8, seed=1)
ROLLED = torch.cat([KV[:, :, 2:], OLD[:, :, :2]], 2)
TAKE = [0, 1, 2, 3, 4, 5, 6, 7, 8, 8]
THETA = torch.arange(10)[:, None] * 1e4 ** (-torch.arange(4, dtype=torch.float64) / 4)


def turned(x: Tensor, theta: Tensor = THETA) -> Tensor:
    z = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.exp(1j * theta)
    return torch.view_as_real(z).flatten(-2)


def half_old() -> Tensor:
    mixed = KV.clone()
    mixed[:, :, 3:5] = OLD[:, :, 3:5]
    return mixed


CASES = {
    "rolled": (cache(KV, KV.roll(3, 2)), "K1"),
    "tokens first": (cache(KV.transpose(1, 2), KV.roll(-1, 2).transpose(1, 2)), "K1"),
    "two slots exchanged": (cache(KV, KV[:, :, [0, 1, 5, 3, 4, 2, 6, 7, 8, 9]]), "K1"),
    "partly unwritten": (cache(KV, with_zeros(KV, [4, 5])), "K1"),
    "nothing written": (cache(KV, 0 * KV), "K3"),
    "one entry lost": (cache(KV, KV[:, :, TAKE]), "K1"),
    "write missing": (cache(KV, half_old(), earlier={"k@frame=1": OLD}, coords={"frame": 2}), "K1"),
    "not updated": (cache(KV, OLD, earlier={"k@frame=1": OLD}, coords={"frame": 2}), "K3"),
    "window rolled": (cache(KV, ROLLED), "K6"),
    "newest only": (cache(KV, KV[:, :, 4:]), "K6"),
    "newest missing": (cache(KV, KV[:, :, :7]), "K3"),
    "not evicted": (cache(KV[:, :, 3:], KV), "K6"),
    "appended twice": (cache(KV, torch.cat([KV, KV[:, :, 8:]], 2)), "K3"),
    "each twice": (cache(KV, KV.repeat_interleave(2, 2)), "K3"),
    "before rotation": (cache(turned(KV), KV), "K7"),
    "rotated again": (cache(turned(KV), turned(turned(KV))), "K7"),
}


@pytest.mark.parametrize("case", CASES)
def test_cache_mistake_is_named(case: str) -> None:
    ev, class_id = CASES[case]
    assert top(ev)[0] == class_id, explain(ev)


def test_parameters_are_read_back() -> None:
    assert top(CASES["rolled"][0])[1].parameters["roll"] == 3
    assert top(CASES["partly unwritten"][0])[1].parameters["wrong"] == "4-5"
    assert top(CASES["newest only"][0])[1].parameters["port"] == 6
    assert top(CASES["before rotation"][0])[1].parameters["rotated"] is False
    assert top(CASES["rotated again"][0])[1].parameters["rotated"] is True


def ids(*values: int) -> Tensor:
    return torch.tensor(values)


@pytest.mark.parametrize(
    ("axis", "kind", "class_id"),
    [
        ("request", "activation", "K4"),
        ("branch", "activation", "K5"),
        ("step", "activation", "K5"),
        ("frame", "rope", "K9"),
        ("frame", "kv", "K3"),
        ("step", "latent", "K2"),
    ],
)
def test_stale_values(axis: str, kind: str, class_id: str) -> None:
    def at(site: str, coords: Mapping[str, int]) -> Tensor | None:
        return OLD if coords[axis] == 2 else KV

    ev = Evidence(reference=KV, port=OLD, kind=kind, coords={axis: 3}, ref_at=at)
    found = top(ev)
    assert found[0] == class_id
    assert (found[1].parameters["here"], found[1].parameters["there"]) == (3, 2)


def test_unrotated_keys_without_geometric_frequencies() -> None:
    """Spatial bands are linear in the frequency, and the rotated result may be written out half-split."""
    theta = torch.linspace(-0.9, 0.9, 10, dtype=torch.float64)[:, None] * torch.tensor([3.1, 5.9, 8.8, 11.7])
    rotated = turned(KV, theta)
    split = torch.cat([rotated[..., 0::2], rotated[..., 1::2]], -1)
    assert top(cache(split, KV))[0] == "K7"


def test_slots_written_twice() -> None:
    empty = with_zeros(KV, [0, 1, 2, 3, 4])
    doubled = KV[:, :, [5, 5, 6, 6, 7, 7, 8, 8, 9, 9]]
    assert top(cache(empty, doubled))[0] == "K1"


def test_near_misses_are_silent() -> None:
    noisy = KV + 0.1 * normal(*KV.shape, seed=4)
    assert not explain(cache(KV, noisy))
    assert not explain(cache(KV, KV * 1.1))
    assert not explain(cache(KV, noisy.roll(2, 2)))
    assert not explain(cache(KV, normal(*KV.shape, seed=5)))
    assert not explain(Evidence(reference=KV, port=OLD * 1.1, earlier={"k@frame=1": OLD}, coords={"frame": 2}))
    assert not explain(cache(KV, turned(KV, torch.ones(10, 4) * 0.3)))  # a constant turn is no position
    assert not explain(cache(ids(1, 2, 3), ids(1, 2, 3)))


@settings(max_examples=25, deadline=None)
@given(
    slots=st.integers(3, 12),
    heads=st.integers(1, 3),
    roll=st.integers(1, 11),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_roll_is_always_read_back(slots: int, heads: int, roll: int, dtype: torch.dtype, seed: int) -> None:
    roll %= slots
    if roll == 0:
        return
    x = normal(1, heads, slots, 8, seed=seed).to(dtype)
    class_id, found = top(cache(x, x.roll(roll, 2)))
    assert class_id == "K1"
    assert (found.parameters["roll"] - roll) % slots == 0


@settings(max_examples=15, deadline=None)
@given(
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    kind=st.sampled_from(["kv", "activation", "latent"]),
    seed=st.integers(0, 999),
)
def test_rounding_is_silent(dtype: torch.dtype, kind: str, seed: int) -> None:
    x = normal(1, 2, 6, 8, seed=seed)
    p = (x.float() * (1 + 2e-7 * normal(*x.shape, seed=seed + 1)).float()).to(dtype)
    other = {"k@frame=0": normal(1, 2, 6, 8, seed=seed + 2)}
    ev = Evidence(
        reference=x.to(dtype), port=p, kind=kind, coords={"frame": 1}, earlier=other, floor=torch.finfo(dtype).eps
    )
    assert not explain(ev)


@pytest.mark.parametrize("value", [torch.zeros(2, 3, 4), torch.ones(1), torch.empty(0), torch.full((2, 8), math.nan)])
def test_degenerate_values_do_not_raise(value: Tensor) -> None:
    for other in (value + 1, value, torch.ones(3), torch.zeros(2, 3, 4, dtype=torch.long)):
        for kind in ("kv", "latent", "activation", "schedule", "mask"):
            explain(Evidence(reference=value, port=other, kind=kind, earlier={"v@a=0": value}, coords={"frame": 0}))
