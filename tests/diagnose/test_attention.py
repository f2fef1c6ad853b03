"""Attention hypotheses: recomputed from unnamed tensors, shown by the mistake, silent beside it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from parity.capture.operations import Op
from parity.diagnose.attention import HYPOTHESES
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


def attend(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None = None, scale: float | None = None) -> Tensor:
    logits = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if keep is not None:
        logits = logits.masked_fill(~keep, -math.inf)
    return logits.softmax(-1) @ v


B, H, I, J, D = 2, 4, 10, 14, 8  # noqa: E741
Q, K, V = normal(B, H, I, D, seed=1), normal(B, H, J, D, seed=2), normal(B, H, J, D, seed=3)
PAD = torch.arange(J) < torch.tensor([[9], [12]])
KEEP = PAD[:, None, None]
SELF = normal(B, H, J, D, seed=4)
WINDOW = (torch.arange(J)[:, None] - torch.arange(J)).abs()


def evidence(r: Tensor, p: Tensor, q: Tensor = Q, k: Tensor = K, v: Tensor = V, **more: object) -> Evidence:
    extra = more.pop("inputs", {})
    inputs = {"z": normal(3, 3), "one": v, "two": q, "three": k, **extra}  # type: ignore[dict-item]
    return Evidence(reference=r, port=p, inputs=inputs, **more)  # type: ignore[arg-type]


FREE = attend(Q, K, V)
FULL = attend(SELF, K, V)
TRI = torch.ones(J, J).tril().bool()
CASES = {
    "scale one": (evidence(FREE, attend(Q, K, V, scale=1.0)), "A5"),
    "scale of the model": (evidence(FREE, attend(Q, K, V, scale=(D * H) ** -0.5)), "A5"),
    "odd scale": (evidence(FREE, attend(Q, K, V, scale=0.27)), "A5"),
    "mask missing": (evidence(attend(Q, K, V, KEEP), FREE, inputs={"m": PAD}), "A2"),
    "mask extra": (evidence(FREE, attend(Q, K, V, KEEP), inputs={"m": PAD}), "A2"),
    "mask extra, unseen": (evidence(FREE, attend(Q, K, V, KEEP)), "A2"),
    "mask inverted": (evidence(attend(Q, K, V, KEEP), attend(Q, K, V, ~KEEP), inputs={"m": PAD}), "A2"),
    "mask rolled": (
        evidence(attend(Q, K, V, KEEP), attend(Q, K, V, KEEP.roll(2, -1)), inputs={"m": PAD}),
        "A3",
    ),
    "causal added": (evidence(FULL, attend(SELF, K, V, TRI), q=SELF), "A1"),
    "causal missing": (evidence(attend(SELF, K, V, TRI), FULL, q=SELF), "A1"),
    "causal corner": (
        evidence(attend(Q, K, V, torch.ones(I, J).tril(J - I).bool()), attend(Q, K, V, torch.ones(I, J).tril().bool())),
        "A1",
    ),
    "window": (
        evidence(attend(SELF, K, V, WINDOW < 4), attend(SELF, K, V, WINDOW < 5), q=SELF, inputs={"m": WINDOW < 4}),
        "A11",
    ),
    "oldest keys missing": (evidence(FREE, attend(Q, K[:, :, 3:], V[:, :, 3:])), "K6"),
    "history unused": (evidence(FREE, attend(Q, K[:, :, J - I :], V[:, :, J - I :])), "K3"),
    "heads of v rolled": (evidence(FREE, attend(Q, K, V.roll(1, 1))), "A10"),
    "extra copy": (
        evidence(FREE, attend(Q, torch.cat([K, K[:, :, :5]], 2), torch.cat([V, V[:, :, :5]], 2))),
        "K3",
    ),
    "zero keys": (
        evidence(FREE, attend(Q, torch.cat([K, 0 * K[:, :, :2]], 2), torch.cat([V, 0 * V[:, :, :2]], 2))),
        "A2",
    ),
    "k and v exchanged": (evidence(FREE, attend(Q, V, K)), "W3"),
    "other values": (
        evidence(FREE, attend(Q, K, normal(B, H, J, D, seed=9)), inputs={"o": normal(B, H, J, D, seed=9)}),
        "K5",
    ),
    "across heads": (
        evidence(FULL, attend(SELF.transpose(1, 2), K.transpose(1, 2), V.transpose(1, 2)).transpose(1, 2), q=SELF),
        "A10",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_mistake_is_named(case: str) -> None:
    ev, class_id = CASES[case]
    found = top(ev)
    assert found[0] == class_id, explain(ev)
    assert found[1].residual < 0.02


@pytest.mark.parametrize("merge", ["tokens first", "merged heads"])
def test_other_layouts(merge: str) -> None:
    def view(x: Tensor) -> Tensor:
        return x.transpose(1, 2) if merge == "tokens first" else x.transpose(1, 2).flatten(2)

    ev = evidence(view(FREE), view(attend(Q, K, V, scale=1.0)), *(view(x) for x in (Q, K, V)))
    class_id, found = top(ev)
    assert class_id == "A5"
    assert math.isclose(found.parameters["scale"], 1.0, rel_tol=1e-4)


def test_parameters_are_read_back() -> None:
    assert math.isclose(top(CASES["odd scale"][0])[1].parameters["scale"], 0.27, rel_tol=1e-4)
    assert top(CASES["zero keys"][0])[1].parameters["zero_keys"] == 2
    assert top(CASES["oldest keys missing"][0])[1].parameters["missing"] == "0-2"
    assert top(CASES["mask rolled"][0])[1].parameters["roll"] == 2
    assert top(CASES["window"][0])[1].parameters == {"low": -1, "high": 1}


def test_kv_heads_tiled() -> None:
    k, v = K[:, :2], V[:, :2]
    r = attend(Q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))
    p = attend(Q, k.repeat(1, 2, 1, 1), v.repeat(1, 2, 1, 1))
    assert top(evidence(r, p, k=k, v=v))[0] == "A6"
    assert top(evidence(r, p, k=k.repeat_interleave(2, 1), v=v.repeat_interleave(2, 1)))[0] == "A6"
    alone = top(Evidence(reference=r, port=p))
    assert alone[0] == "A6"
    assert alone[1].confidence < 0.7
    assert alone[1].parameters["heads"] == [0, 3]


def test_keys_before_rotation() -> None:
    turned = torch.stack([K[..., 1::2], -K[..., 0::2]], -1).flatten(-2)
    ev = evidence(attend(Q, turned, V), FREE, k=turned, inputs={"plain": K})
    assert top(ev)[0] == "K7"


def test_fused_call_gives_the_roles() -> None:
    q, k, v = Q.float(), K.float(), V.float()
    outs = [torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=s) for s in (None, 0.5)]
    ops = [
        (Op("scaled_dot_product_attention", (q, k, v), (out,), {"scale": s, "is_causal": False}),)
        for out, s in zip(outs, (None, 0.5), strict=True)
    ]
    weight = normal(D * H, D * H).float()
    ev = Evidence(
        reference=outs[0].transpose(1, 2).flatten(2) @ weight,
        port=outs[1].transpose(1, 2).flatten(2) @ weight,
        ref_ops=ops[0],
        port_ops=ops[1],
    )
    class_id, found = top(ev)
    assert class_id == "A5"
    assert math.isclose(found.parameters["scale"], 0.5, rel_tol=1e-3)


def decomposed(
    q: Tensor, k: Tensor, v: Tensor, scale: float, keep: Tensor | None = None, low: float = -math.inf
) -> tuple[Op, ...]:
    """The operations of attention written out: product, scale, mask, softmax, product."""
    b, h, i, _d = q.shape
    flat = [x.reshape(b * h, *x.shape[2:]) for x in (q, k.transpose(-1, -2), v)]
    raw = flat[0] @ flat[1]
    scaled = raw.reshape(b, h, i, -1) * scale
    hidden = scaled if keep is None else scaled.masked_fill(~keep, low)
    weight = hidden.softmax(-1)
    out = weight.reshape(b * h, i, -1) @ flat[2]
    return (
        Op("bmm", (flat[0], flat[1]), (raw,)),
        Op("mul", (raw.reshape(b, h, i, -1),), (scaled,), {"other": scale}),
        Op("softmax", (hidden,), (weight,), {"dim": -1}),
        Op("bmm", (weight.reshape(b * h, i, -1), flat[2]), (out,)),
    )


def arguments(ours: tuple[Op, ...], theirs: tuple[Op, ...], **more: object) -> Evidence:
    """Both sides' values behind a projection that hides the attention; only the operations show it."""
    mix = normal(H * D, H * D, seed=77)
    r, p = (ops[-1].outputs[0].reshape(B, H, I, D).transpose(1, 2).flatten(2) @ mix for ops in (ours, theirs))
    return Evidence(reference=r, port=p, ref_ops=ours, port_ops=theirs, **more)  # type: ignore[arg-type]


SCALE = D**-0.5
RULED = decomposed(Q, K, V, SCALE)
ARGUMENTS = {
    "scale": (arguments(RULED, decomposed(Q, K, V, 1.0)), "A5"),
    "mask": (arguments(decomposed(Q, K, V, SCALE, KEEP), RULED), "A2"),
    "mask with a finite minimum": (
        arguments(decomposed(Q, K, V, SCALE, KEEP, -3e38), decomposed(Q, K, V, SCALE, ~KEEP, -3e38)),
        "A2",
    ),
    "history": (arguments(RULED, decomposed(Q, K[:, :, 4:], V[:, :, 4:], SCALE)), "K3"),
    "zero keys": (
        arguments(RULED, decomposed(Q, torch.cat([K, 0 * K[:, :, :2]], 2), torch.cat([V, 0 * V[:, :, :2]], 2), SCALE)),
        "A2",
    ),
    "k and v": (arguments(RULED, decomposed(Q, V, K, SCALE)), "W3"),
    "tiled heads": (
        arguments(
            decomposed(Q, K[:, [0, 0, 1, 1]], V[:, [0, 0, 1, 1]], SCALE),
            decomposed(Q, K[:, [0, 1, 0, 1]], V[:, [0, 1, 0, 1]], SCALE),
        ),
        "A6",
    ),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments_of_calls(case: str) -> None:
    ev, class_id = ARGUMENTS[case]
    assert top(ev)[0] == class_id, explain(ev)


def test_operand_of_a_call_is_explained_further() -> None:
    before = 3 * Q * (1 + normal(B, H, I, 1, seed=5).abs())
    ours = (Op("rsqrt", (before,), (rms(before),)), *decomposed(rms(before), K, V, SCALE))
    class_id, found = top(arguments(ours, decomposed(before, K, V, SCALE)))
    assert class_id == "A7"
    assert "queries" in found.text


def test_fused_call_against_written_out() -> None:
    out = attend(Q, K, V, KEEP)
    fused = (Op("scaled_dot_product_attention", (Q, K, V, KEEP), (out,), {"scale": SCALE, "is_causal": False}),)
    ours = decomposed(Q, K, V, SCALE)
    last = Op("view", (out,), (out.reshape(B * H, I, D),))
    assert top(arguments(ours, (*fused, last)))[0] == "A2"
    same = decomposed(Q, K, V, SCALE, KEEP)
    assert not explain(arguments(same, (*fused, last)))


def test_window_of_padded_samples() -> None:
    keep = (TRI & (WINDOW < 5))[None, None].repeat(2, 1, 1, 1)
    keep[0, 0, :, :3] = False
    more = (TRI & (WINDOW < 6))[None, None].repeat(2, 1, 1, 1)
    more[0, 0, :, :3] = False
    assert top(Evidence(reference=keep, port=more, kind="mask"))[0] == "A11"
    seen = (TRI & (WINDOW < 5))[None, None].repeat(2, 1, 1, 1)
    assert top(Evidence(reference=keep, port=seen, kind="mask"))[0] == "A2"


def test_kernel_fault() -> None:
    q, k, v = Q.float(), K.float(), V.float()
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    scalars = {"scale": None, "is_causal": False}
    wrong = out + 0.5 * normal(*out.shape, seed=8).float()
    ours = (Op("scaled_dot_product_attention", (q, k, v), (out,), scalars),)
    theirs = (Op("scaled_dot_product_attention", (q, k, v), (wrong,), scalars),)
    assert top(Evidence(reference=out, port=wrong, ref_ops=ours, port_ops=theirs))[0] == "A8"
    bad = wrong.clone()
    bad[0, 1] = math.nan
    assert top(evidence(out, bad, q, k, v))[0] == "A9"


def rms(x: Tensor, groups: int = 1) -> Tensor:
    y = x.unflatten(-1, (groups, -1))
    return (y / y.square().mean(-1, keepdim=True).sqrt()).flatten(-2)


@pytest.mark.parametrize("gain", [False, True])
@pytest.mark.parametrize("groups", [2, 4])
def test_norm_scope(groups: int, gain: bool) -> None:
    x, w = normal(2, 9, 32), 1 + 0.3 * normal(32, seed=5)
    more = {"parameters": {"w": (w, w)}} if gain else {}
    r, p = (y * w if gain else y for y in (rms(x), rms(x, groups)))
    class_id, found = top(Evidence(reference=r, port=p, **more))  # type: ignore[arg-type]
    assert class_id == "A7"
    assert found.parameters == {"reference_groups": 1, "port_groups": groups}


def test_norm_scope_with_heads_apart() -> None:
    x = normal(2, 9, 32)
    r, p = (y.reshape(2, 9, 4, 8).transpose(1, 2) for y in (rms(x), rms(x, 4)))
    assert top(Evidence(reference=r, port=p))[0] == "A7"


def test_norm_missing() -> None:
    x = normal(2, 4, 9, 8)
    assert top(Evidence(reference=rms(x), port=x, inputs={"x": x}))[0] == "A7"


def test_head_axis() -> None:
    r = FREE.transpose(1, 2).flatten(2)
    class_id, found = top(Evidence(reference=r, port=FREE.reshape(B, I, H * D)))
    assert class_id == "A10"
    class_id, found = top(Evidence(reference=FREE, port=FREE[:, [2, 0, 1, 3]]))
    assert class_id == "A10"
    assert found.parameters["order"] == [2, 0, 1, 3]


def test_fully_masked_rows() -> None:
    keep = torch.ones(B, 1, I, J, dtype=torch.bool)
    keep[:, :, 3] = False
    r = attend(Q, K, V, keep)
    p = r.nan_to_num(0.0)
    assert top(evidence(r, p, inputs={"m": keep}))[0] == "A4"
    hidden = torch.where(keep, 0.0, -3e38).expand(B, 1, I, J).contiguous()
    mean = r.nan_to_num(0.0) + torch.isnan(r) * V.mean(2, keepdim=True)
    assert top(evidence(mean, p, inputs={"m": hidden}))[0] == "A4"
    seen = torch.where(torch.arange(J) < 9, 0.0, -3e38).expand(B, 1, I, J).contiguous()  # hides no row
    assert "A4" not in {e.class_id or h.class_id for h, e in explain(evidence(mean, p, inputs={"m": seen}))}


MASKS = {
    "inverted": (PAD, ~PAD, "A2"),
    "missing": (PAD, torch.ones_like(PAD), "A2"),
    "rolled": (PAD, PAD.roll(1, -1), "A3"),
    "causal missing": (TRI, torch.ones_like(TRI), "A1"),
    "causal added": (torch.ones_like(TRI), TRI, "A1"),
    "longer": (PAD, torch.cat([PAD, PAD[:, :2]], 1), "A3"),
    "window": (WINDOW < 4, WINDOW < 3, "A11"),
    "exclusive": (TRI & (WINDOW < 5), TRI & (WINDOW < 4), "A11"),
    "newest only": (torch.ones(20, dtype=torch.bool), torch.arange(20) >= 8, "K6"),
}


@pytest.mark.parametrize("form", ["bool", "int", "additive"])
@pytest.mark.parametrize("case", MASKS)
def test_mask_records(case: str, form: str) -> None:
    r, p, class_id = MASKS[case]
    if form == "int":
        r, p = r.long(), p.long()
    elif form == "additive":
        r, p = (torch.zeros(m.shape).masked_fill(~m, -math.inf) for m in (r, p))
        if not bool((r < 0).any() and (p < 0).any()):
            return  # an additive mask that hides nothing is all zeros: not recognisable as a mask
    assert top(Evidence(reference=r, port=p, kind="mask"))[0] == class_id


def test_counts_of_visible_keys() -> None:
    class_id, found = top(Evidence(reference=torch.tensor(64), port=torch.tensor(48), kind="mask"))
    assert class_id == "K6"
    assert found.parameters == {"reference": 64, "port": 48}


def test_near_misses_are_silent() -> None:
    assert not explain(evidence(FREE, FREE + 0.1 * normal(*FREE.shape, seed=7)))
    assert not explain(evidence(FREE, FREE * 1.1))
    assert not explain(evidence(FREE, attend(Q, K, V * (1 + 0.2 * normal(D)))))
    assert not explain(Evidence(reference=rms(normal(2, 9, 32)), port=1.2 * rms(normal(2, 9, 32))))
    assert not explain(Evidence(reference=PAD, port=PAD, kind="mask"))
    doubled = V[:, [0, 0, 2, 3]]  # one head used twice is no order
    assert not explain(evidence(FREE, attend(Q, K, doubled)))
    turned = V.roll(1, 1) * (1 + 0.2 * normal(D))
    assert not explain(evidence(FREE, attend(Q, K, turned)))


@settings(max_examples=15, deadline=None)
@given(
    heads=st.integers(1, 4),
    length=st.integers(4, 16),
    size=st.sampled_from([8, 16]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    seed=st.integers(0, 999),
)
def test_rounding_is_silent(heads: int, length: int, size: int, dtype: torch.dtype, seed: int) -> None:
    q, k, v = (normal(1, heads, length, size, seed=seed + n).to(dtype) for n in range(3))
    r = attend(q.double(), k.double(), v.double())
    noisy = (r.float() * (1 + 5e-4 * normal(*r.shape, seed=seed + 9)).float()).to(dtype)
    ev = evidence(r.to(dtype), noisy, q, k, v, floor=max(1e-3, torch.finfo(dtype).eps))
    assert not explain(ev)


@settings(max_examples=15, deadline=None)
@given(
    heads=st.integers(1, 3),
    length=st.integers(3, 14),
    ratio=st.sampled_from([0.25, 0.5, 2.0, 3.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
def test_scale_is_always_read_back(heads: int, length: int, ratio: float, dtype: torch.dtype, seed: int) -> None:
    q, k, v = (normal(1, heads, length, 8, seed=seed + n).to(dtype) for n in range(3))
    class_id, found = top(evidence(attend(q, k, v), attend(q, k, v, scale=ratio * 8**-0.5), q, k, v))
    assert class_id == "A5"
    assert math.isclose(found.parameters["ratio"], ratio, rel_tol=1e-2)


@pytest.mark.parametrize(
    "value", [torch.zeros(2, 3, 4), torch.ones(1), torch.empty(0), torch.full((1, 2, 4, 8), math.nan)]
)
def test_degenerate_values_do_not_raise(value: Tensor) -> None:
    for other in (value + 1, value, torch.ones(3, 5), torch.ones(2, 3, 4, dtype=torch.bool)):
        for kind in ("mask", "activation", "kv"):
            explain(Evidence(reference=value, port=other, kind=kind, inputs={"v": value, "w": value, "x": value}))


# -- what is added to the scores ---------------------------------------------------------------------------------------

PLACES = normal(1, H, J, J, seed=21)


def biased(bias: Tensor | None, keep: Tensor | None = None) -> tuple[Op, ...]:
    """One fused call on SELF with a bias (and a mask) as its additive argument."""
    scores = torch.zeros(1, H, J, J, dtype=torch.float64) if bias is None else bias
    mask = None if bias is None and keep is None else scores if keep is None else scores.masked_fill(~keep, -1e30)
    logits = SELF @ K.transpose(-1, -2) / D**0.5
    out = ((logits + mask) if mask is not None else logits).softmax(-1) @ V
    operands = (SELF, K, V) if mask is None else (SELF, K, V, mask)
    return (Op("scaled_dot_product_attention", operands, (out,), {"scale": None, "is_causal": False}),)


def of_bias(port: Tensor | None, keep: Tensor | None = None, ours: Tensor | None = PLACES) -> Evidence:
    ref, other = biased(ours, keep), biased(port, keep)
    return Evidence(reference=ref[0].outputs[0], port=other[0].outputs[0], ref_ops=ref, port_ops=other)


@pytest.mark.parametrize("keep", [None, PAD[:, None, None]])
@pytest.mark.parametrize(
    ("port", "class_id", "words"),
    [
        (None, "N5", "leaves out"),
        (-PLACES, "P7", "-1 times"),
        (0.5 * PLACES, "A5", "0.5 times"),
        (PLACES.transpose(-1, -2), "P7", "exchanged"),
        (PLACES.roll(1, 1), "A10", "another order"),
        (torch.cat([PLACES[..., 1:], normal(1, H, J, 1, seed=3)], -1), "P2", "offset"),
    ],
)
def test_biases_of_the_scores(port: Tensor | None, class_id: str, words: str, keep: Tensor | None) -> None:
    if class_id == "P2" and keep is not None:
        return  # what a mask hides is no longer there to be compared
    found = top(of_bias(port, keep))
    assert found[0] == class_id, found
    assert words in found[1].text


def test_other_biases_have_no_name() -> None:
    assert "leaves out" not in str([e.text for _, e in explain(of_bias(PLACES + normal(1, H, J, J, seed=5)))])
    assert not [e for _, e in explain(of_bias(PLACES + normal(1, H, J, J, seed=5))) if "bias" in e.text]
    added = [e for h, e in explain(of_bias(PLACES, ours=None)) if (e.class_id or h.class_id) == "N5"]
    assert "adds" in added[0].text
    assert not [e for _, e in explain(of_bias(PLACES.clone())) if "bias" in e.text]


def test_the_scale_beside_a_bias_is_a_usual_one() -> None:
    """Scores and bias correlate a little by chance: fitting both would give 0.9998 for 1."""
    from parity.diagnose.attention_calls import calls

    raw = SELF @ K.transpose(-1, -2)
    logits = raw + 0.1 * raw.pow(3) / raw.std() ** 2
    weight = logits.softmax(-1)
    flat = [x.reshape(B * H, *x.shape[-2:]) for x in (SELF, K.transpose(-1, -2), V)]
    ops = (
        Op("bmm", (flat[0], flat[1]), (raw.reshape(B * H, J, J),)),
        Op("softmax", (logits,), (weight,), {"dim": -1}),
        Op("bmm", (weight.reshape(B * H, J, J), flat[2]), (weight.reshape(B * H, J, J) @ flat[2],)),
    )
    assert calls(ops)[0].attention.bias is not None
    mild = raw + 0.01 * normal(B, H, J, J, seed=6)
    ops = (
        ops[0],
        Op("softmax", (mild,), (mild.softmax(-1),), {"dim": -1}),
        Op("bmm", (mild.softmax(-1).reshape(B * H, J, J), flat[2]), (mild.softmax(-1).reshape(B * H, J, J) @ flat[2],)),
    )
    assert calls(ops)[0].attention.scale == 1.0


def test_rows_that_a_finite_mask_hides_are_uniform() -> None:
    """A finite minimum swallows the scores: the attention is the mean of the values, and inverting the mask is still named."""
    keep = PAD[:, None, None].expand(B, 1, J, J).clone()
    keep[0] = True  # inverted, this sample sees nothing
    zeros = torch.zeros(1, H, J, J, dtype=torch.float64)
    ref, port = (biased(zeros.expand(B, -1, -1, -1), k) for k in (keep, ~keep))
    ev = Evidence(reference=ref[0].outputs[0], port=port[0].outputs[0], ref_ops=ref, port_ops=port)
    assert top(ev)[0] == "A2"
