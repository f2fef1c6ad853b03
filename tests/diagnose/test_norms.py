"""Norm, activation and modulation hypotheses: each shown by its mistake, silent beside it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from parity.capture.operations import Op
from parity.diagnose.evidence import Evidence, Explanation, Hypothesis
from parity.diagnose.norms import HYPOTHESES


def explain(ev: Evidence) -> list[tuple[Hypothesis, Explanation]]:
    found = [(h, e) for h in HYPOTHESES for e in h.test(ev)]
    return sorted(found, key=lambda pair: -pair[1].confidence)


def top(ev: Evidence) -> tuple[str, Explanation]:
    found = explain(ev)
    assert found, "nothing was recognised"
    return found[0][1].class_id or found[0][0].class_id, found[0][1]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rms(x: Tensor, eps: float = 1e-6) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def layer(x: Tensor, eps: float = 1e-6) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], eps=eps)


X = normal(2, 11, 16) * (0.05 + normal(2, 11, 1, seed=1).abs()) + 0.2
W = 1 + 0.3 * normal(16, seed=2)
BIAS = 0.3 * normal(16, seed=3)
CHUNKS = 0.5 * normal(2, 6, 16, seed=4)
SHIFT, SCALE = CHUNKS[:, 0:1], CHUNKS[:, 1:2]
PIXELS = normal(2, 8, 3, 4, 5, seed=5) + 0.5 * normal(2, 8, 3, 1, 1, seed=6)


def evidence(r: Tensor, p: Tensor, **inputs: Tensor) -> Evidence:
    return Evidence(reference=r, port=p, inputs={"z": normal(3), **(inputs or {"x": X})})


def group(x: Tensor, groups: int, frames_apart: bool = False) -> Tensor:
    if frames_apart:
        b, c, t, h, w = x.shape
        flat = x.transpose(1, 2).reshape(b * t, c, h, w)
        return functional.group_norm(flat, groups).reshape(b, t, c, h, w).transpose(1, 2)
    return functional.group_norm(x, groups)


H = normal(4, 9, 12, seed=7)
G = normal(4, 9, 24, seed=8)
CASES = {
    "eps of rms": (evidence(rms(X) * W, rms(X, 1e-5) * W), "N1"),
    "eps of layer norm": (evidence(layer(X) * W + BIAS, layer(X, 1e-5) * W + BIAS), "N1"),
    "eps, unusual": (evidence(layer(X), layer(X, 3e-3)), "N1"),
    "eps zero": (evidence(rms(X, 1e-5), rms(X, 0.0)), "N1"),
    "layer for rms": (evidence(rms(X) * W, layer(X) * W), "N3"),
    "rms for layer": (evidence(layer(X) * W + BIAS, rms(X) * W + BIAS), "N3"),
    "gain dropped": (evidence(rms(X) * W, rms(X)), "N3"),
    "shift dropped": (evidence(layer(X) * W + BIAS, layer(X) * W), "N3"),
    "one added again": (evidence(rms(X) * W, rms(X) * (W + 1)), "W6"),
    "one not added": (evidence(rms(X) * (1 + W), rms(X) * W), "W6"),
    "norm missing": (evidence(rms(X) * W, X), "N5"),
    "norm twice": (evidence(layer(X) * W + BIAS, layer(layer(X) * W + BIAS) * W + BIAS), "N6"),
    "rounded before gain": (evidence(rms(X) * W, rms(X).to(torch.bfloat16).double() * W), "N3"),
    "frames apart": (evidence(group(PIXELS, 2), group(PIXELS, 2, True), x=PIXELS), "N7"),
    "group count": (evidence(group(PIXELS, 4), group(PIXELS, 2), x=PIXELS), "N7"),
    "scale and shift": (
        evidence(layer(X) * (1 + SCALE) + SHIFT, layer(X) * (1 + SHIFT) + SCALE, x=X, m=CHUNKS),
        "W5",
    ),
    "other chunks": (
        evidence(layer(X) * (1 + SCALE) + SHIFT, layer(X) * (1 + CHUNKS[:, 4:5]) + CHUNKS[:, 3:4], x=X, m=CHUNKS),
        "W5",
    ),
    "modulated twice": (
        evidence(
            layer(X) * (1 + SCALE) + SHIFT, (layer(X) * (1 + SCALE) + SHIFT) * (1 + SCALE) + SHIFT, x=layer(X), m=CHUNKS
        ),
        "N6",
    ),
    "shift left out": (evidence(layer(X) * (1 + SCALE) + SHIFT, layer(X) * (1 + SCALE), x=X, m=CHUNKS), "N5"),
    "chunk order": (evidence(CHUNKS, CHUNKS[:, [1, 0, 2, 3, 4, 5]]), "W5"),
    "tanh for erf": (evidence(functional.gelu(H), functional.gelu(H, approximate="tanh"), x=H), "N2"),
    "quick for tanh": (evidence(functional.gelu(H, approximate="tanh"), H * torch.sigmoid(1.702 * H), x=H), "N2"),
    "silu for gelu": (evidence(functional.gelu(H), functional.silu(H), x=H), "N2"),
    "gated": (
        evidence(functional.silu(G[..., :12]) * G[..., 12:], functional.gelu(G[..., :12]) * G[..., 12:], x=G),
        "N2",
    ),
    "no activation": (evidence(functional.silu(H), H, x=H), "N5"),
    "activation twice": (evidence(functional.silu(H), functional.silu(functional.silu(H)), x=H), "N6"),
}


@pytest.mark.parametrize("case", CASES)
def test_mistake_is_named(case: str) -> None:
    ev, class_id = CASES[case]
    found = top(ev)
    assert found[0] == class_id, explain(ev)
    assert found[1].residual < 0.02


def test_both_eps_are_read_back() -> None:
    for case, ours, theirs in (("eps of rms", 1e-6, 1e-5), ("eps, unusual", 1e-6, 3e-3), ("eps zero", 1e-5, 0.0)):
        found = top(CASES[case][0])[1].parameters
        assert math.isclose(found["reference"], ours, rel_tol=1e-2), case
        assert math.isclose(found["port"], theirs, rel_tol=1e-2, abs_tol=1e-13), case


def test_eps_without_the_input() -> None:
    class_id, found = top(Evidence(reference=rms(X, 1e-4), port=rms(X, 1e-3)))
    assert class_id == "N1"
    assert math.isclose(found.parameters["ratio"], 10, rel_tol=0.02)


def test_activation_between_projections() -> None:
    first, last, b1, b2 = normal(24, 12, seed=1), normal(12, 24, seed=2), normal(24, seed=3), normal(12, seed=4)
    r, p = (f(H @ first.T + b1) @ last.T + b2 for f in (functional.gelu, functional.silu))
    parameters = {name: (value, value) for name, value in {"a": first, "b": b1, "c": last, "d": b2}.items()}
    class_id, found = top(Evidence(reference=r, port=p, inputs={"x": H}, parameters=parameters))
    assert class_id == "N2"
    assert found.parameters == {"reference": "exact (erf) GELU", "port": "SiLU"}


def test_activation_missing_before_a_projection() -> None:
    weight = normal(12, 12, seed=1)
    ev = Evidence(
        reference=functional.silu(H) @ weight.T, port=H @ weight.T, inputs={"x": H}, parameters={"w": (weight, weight)}
    )
    class_id, found = top(ev)
    assert class_id == "N5"
    assert "missing" in found.text


def test_activation_seen_in_operations() -> None:
    x = H.float()
    ours, theirs = functional.gelu(x), functional.gelu(x, approximate="tanh")
    mix = normal(12, 12, seed=3).float()
    ev = Evidence(
        reference=ours @ mix,
        port=theirs @ mix,
        ref_ops=(Op("gelu", (x,), (ours,), {"approximate": "none"}),),
        port_ops=(Op("gelu", (x,), (theirs,), {"approximate": "tanh"}),),
    )
    assert top(ev)[0] == "N2"


def test_activation_of_two_outputs() -> None:
    x = 2 * normal(40, 40)
    assert top(Evidence(reference=functional.gelu(x), port=functional.silu(x)))[0] == "N2"


def test_chunk_of_a_summed_modulation() -> None:
    table = normal(1, 6, 16, seed=9)
    both = CHUNKS + table
    ev = Evidence(
        reference=both[:, 0:1],
        port=both[:, 1:2],
        inputs={"t": CHUNKS},
        parameters={"table": (table, table)},
        kind="input",
    )
    class_id, found = top(ev)
    assert class_id == "W5"
    assert (found.parameters["reference"], found.parameters["port"]) == (0, 1)


def test_outputs_in_another_order() -> None:
    def at(site: str, coords: object) -> Tensor:
        return CHUNKS[:, int(site[-1]) : int(site[-1]) + 1]

    sites = [f"head.{k}" for k in range(6)]
    ev = Evidence(reference=SHIFT, port=SCALE, site="head.0", sites=sites, ref_at=at)
    class_id, found = top(ev)
    assert class_id == "W5"
    assert found.parameters == {"output": 0, "source": 1}


def test_norm_of_two_rows_is_read_with_the_known_gain() -> None:
    """A pooled token: two rows cannot fit gain and shift of every channel, the module's parameters can."""
    x = normal(2, 16)
    r, p = (layer(x, eps) * W + BIAS for eps in (1e-5, 1e-3))
    own = {"weight": (W, W), "bias": (BIAS, BIAS)}
    class_id, found = top(Evidence(reference=r, port=p, inputs={"x": x}, parameters=own))
    assert (class_id, found.parameters["port"]) == ("N1", 1e-3)
    assert not explain(Evidence(reference=r, port=p, inputs={"x": x}))
    assert not explain(Evidence(reference=r, port=r + 0.01 * normal(2, 16, seed=5), inputs={"x": x}, parameters=own))


def test_eps_of_one_side_only() -> None:
    assert top(Evidence(reference=rms(X, 0.0), port=rms(X, 1e-3)))[0] == "N1"


def test_gate_from_two_tensors() -> None:
    gate, up = normal(3, 50, seed=1), normal(3, 50, seed=2)
    ev = evidence(functional.silu(gate) * up, functional.gelu(gate) * up, up=up, gate=gate)
    assert top(ev)[0] == "N2"


def test_dropout() -> None:
    keep = torch.rand(40, 50, generator=torch.Generator().manual_seed(0)) > 0.1
    r = normal(40, 50)
    class_id, found = top(Evidence(reference=r, port=r * keep / 0.9))
    assert class_id == "N8"
    assert math.isclose(found.parameters["p"], 0.1, abs_tol=0.01)
    rows = torch.ones(40, 50)
    rows[:4] = 0
    assert not explain(Evidence(reference=r, port=r * rows / 0.9))


def test_gain_vector_differs_by_one() -> None:
    class_id, found = top(Evidence(reference=W, port=W + 1, kind="weight"))
    assert class_id == "W6"
    assert found.parameters["offset"] == 1


def test_near_misses_are_silent() -> None:
    r = rms(X) * W
    for p in (r * 1.1, r + 0.1 * normal(*r.shape, seed=9), r.flip(0), normal(*r.shape, seed=4), r + 0.2):
        assert not [e for h, e in explain(evidence(r, p)) if e.confidence > 0.5], explain(evidence(r, p))
    h = functional.gelu(H)
    assert not explain(evidence(h, h * 1.05, x=H))
    assert not explain(evidence(h, functional.gelu(H * 1.1), x=H))


@settings(max_examples=20, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.sampled_from([4, 8, 15, 32])),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    form=st.sampled_from(["rms", "layer", "gelu", "modulated"]),
    seed=st.integers(0, 999),
)
def test_rounding_is_silent(shape: tuple[int, ...], dtype: torch.dtype, form: str, seed: int) -> None:
    x = normal(*shape, seed=seed).to(dtype)
    scale = normal(shape[0], 1, shape[2], seed=seed + 1)
    value = {
        "rms": rms(x.double()),
        "layer": layer(x.double()) * scale[0],
        "gelu": functional.gelu(x.double()),
        "modulated": layer(x.double()) * (1 + scale) + scale.flip(-1),
    }[form]
    port = (value.float() * (1 + 3e-7 * normal(*shape, seed=seed + 2)).float()).to(dtype)
    ev = Evidence(reference=value.to(dtype), port=port, inputs={"x": x, "s": scale}, floor=torch.finfo(dtype).eps)
    assert not explain(ev)


@settings(max_examples=20, deadline=None)
@given(
    tokens=st.integers(6, 12),
    width=st.sampled_from([8, 12, 32]),
    ours=st.sampled_from([1e-6, 1e-5]),
    theirs=st.sampled_from([1e-3, 1e-2, 1e-4]),
    seed=st.integers(0, 99),
)
def test_eps_is_always_read_back(tokens: int, width: int, ours: float, theirs: float, seed: int) -> None:
    x = normal(2, tokens, width, seed=seed) * (0.1 + normal(2, tokens, 1, seed=seed + 1).abs())
    class_id, found = top(evidence(rms(x, ours), rms(x, theirs), x=x))
    assert class_id == "N1"
    assert math.isclose(found.parameters["port"], theirs, rel_tol=0.02)


@pytest.mark.parametrize("value", [torch.zeros(2, 3, 4), torch.ones(1), torch.empty(0), torch.full((2, 4), math.nan)])
def test_degenerate_values_do_not_raise(value: Tensor) -> None:
    for other in (value + 1, value, torch.ones(3, 5)):
        for kind in ("weight", "activation"):
            explain(Evidence(reference=value, port=other, kind=kind, inputs={"v": value, "w": value + 2}))
