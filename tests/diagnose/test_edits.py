"""The fewest edits: what the port's operations need to give the reference's value, and what no small edit explains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from parity.capture.operations import Op, OpLog, WindowsClosed
from parity.diagnose.edits import CONFIDENCE, GENERAL, causes_of, find_edits
from parity.diagnose.evidence import Evidence
from parity.diagnose.graph import build
from parity.result import Cause
from parity.trace import Record

Side = Callable[[Tensor], Tensor]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(autouse=True)
def _time_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """The budget is for users; on a busy machine a test would measure the machine."""
    monkeypatch.setattr("parity.diagnose.edits.SECONDS", 60.0)


W, GATE, BIAS = draw(8, 8, seed=1), draw(1, 5, 8, seed=2), draw(8, seed=3)
OTHER = 1.01 * GATE
PAIR = draw(8, 16, seed=4)
X = draw(2, 5, 8, seed=5)


def run(side: Side, x: Tensor) -> tuple[Tensor, tuple[Op, ...]]:
    log = OpLog({"end": None})
    with torch.no_grad(), log:
        value = side(x)
        with pytest.raises(WindowsClosed):
            log.watch(Record("end", {}, "activation", 0, (), "float64"))
    return value, tuple(replace(step.op, makers=step.makers) for step in log.windows["end"])


def evidence(reference: Side, port: Side, x: Tensor = X, kind: str = "activation") -> Evidence:
    r, ref_ops = run(reference, x)
    p, port_ops = run(port, x)
    return Evidence(
        reference=r, port=p, site="m", kind=kind, floor=1e-12, precise=r, ref_ops=ref_ops, port_ops=port_ops
    )


def cause(ev: Evidence) -> Cause | None:
    found = find_edits(ev)
    return causes_of(found, ev)[0] if found is not None else None


def named(reference: Side, port: Side, kind: str = "activation") -> tuple[str, str]:
    found = cause(evidence(reference, port, kind=kind))
    assert found is not None, "nothing explains it"
    assert found.proof == "replayed"
    assert found.residual < 1e-6
    assert found.confidence == CONFIDENCE["general" if found.class_id in GENERAL else "sure"]
    return found.class_id, found.text


def gated(x: Tensor) -> Tensor:
    return x + functional.silu(x @ W + BIAS) * torch.sigmoid(GATE)


def fused(x: Tensor) -> Tensor:
    a, b = PAIR.chunk(2, dim=1)
    return functional.silu(x @ a) + x @ b


@pytest.mark.parametrize(
    ("port", "what", "class_id"),
    [
        (lambda x: x + functional.silu(x @ W + BIAS), "leaves out sigmoid, mul", "N5"),
        (lambda x: x + functional.silu(x @ W) * torch.sigmoid(GATE), "leaves out add", "N5"),
        (lambda x: x + (x @ W + BIAS) * torch.sigmoid(GATE), "leaves out silu", "N5"),
        (lambda x: functional.silu(x @ W + BIAS) * torch.sigmoid(GATE), "leaves out add", "N5"),
        (lambda x: x + functional.silu(x @ W + BIAS) * GATE, "leaves out sigmoid", "N5"),
        (lambda x: gated(x) + x, "also runs add", "N6"),
        (lambda x: gated(x).clamp(-0.5, 0.5), "clamp", "C8"),
        (lambda x: x - functional.silu(x @ W + BIAS) * torch.sigmoid(GATE), "sign of a term", "N5"),
        (lambda x: x + functional.gelu(x @ W + BIAS) * torch.sigmoid(GATE), "gelu(none) instead of silu", "N2"),
    ],
)
def test_an_edit_has_its_class_and_its_line(port: Side, what: str, class_id: str) -> None:
    found = named(gated, port)
    assert found[0] == class_id
    assert what in found[1]
    assert "test_edits.py" in found[1]


def test_parts_that_change_places() -> None:
    def port(x: Tensor) -> Tensor:
        b, a = PAIR.chunk(2, dim=1)
        return functional.silu(x @ a) + x @ b

    assert named(fused, port)[0] == "W3"


def test_a_latent_with_the_opposite_sign_is_a_parametrisation() -> None:
    port = lambda x: x - functional.silu(x @ W + BIAS) * torch.sigmoid(GATE)  # noqa: E731
    assert named(gated, port, kind="latent")[0] == "T8"


V, PADDED, KERNEL = draw(8, 8, seed=6), draw(10, 8, seed=7), draw(5, 5, 3, seed=8)


def conv(x: Tensor, stride: int) -> Tensor:
    return functional.conv1d(x, KERNEL, stride=stride, padding=1)


def attention(x: Tensor, scale: float = 0.5, causal: bool = True) -> Tensor:
    scores = (x @ W) @ x.mT * scale
    keep = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    return (scores.masked_fill(~keep, float("-inf")) if causal else scores).softmax(-1) @ x


def hidden_by_much(x: Tensor) -> Tensor:
    """A mask that is added, of zeros and a number that no softmax survives."""
    scores = (x @ W) @ x.mT * 0.5
    return (scores - 1e4 * (torch.arange(scores.shape[-1]) > 2)).softmax(-1) @ x


def adapted(x: Tensor, strength: float) -> Tensor:
    return x @ W + strength * (x @ PAIR[:, :2] @ PAIR[:2, :8])


def shared_keys(x: Tensor, causal: bool) -> Tensor:
    """Four heads of queries that share two of keys and values."""
    heads = (x @ W).unflatten(-1, (4, 2)).transpose(1, 2)
    shared = x[..., :4].unflatten(-1, (2, 2)).transpose(1, 2)
    return functional.scaled_dot_product_attention(heads, shared, shared, is_causal=causal, enable_gqa=True)


def rotated(x: Tensor, other: Tensor | None = None, step: float = 1.0) -> Tensor:
    angles = torch.arange(5, dtype=x.dtype)[:, None] * torch.tensor([1.0, 0.1, 0.01, 0.001] * 2, dtype=x.dtype)
    angles = angles if step == 1.0 else step * angles
    other = torch.cat([-x[..., 4:], x[..., :4]], -1) if other is None else other
    return x * angles.cos() + other * angles.sin()


def beside(x: Tensor, filling: Tensor) -> Tensor:
    joined = torch.empty(5, 5, 8, dtype=x.dtype)
    joined[:2], joined[2:] = x @ W, filling
    return joined


@pytest.mark.parametrize(
    ("reference", "port", "class_id", "words"),
    [
        (lambda x: functional.gelu(x @ W), lambda x: functional.gelu(x @ W, approximate="tanh"), "N2", "gelu(tanh) instead of gelu(none)"),
        (lambda x: functional.layer_norm(x @ W, (8,), eps=1e-2), lambda x: functional.layer_norm(x @ W, (8,), eps=1e-5), "N1", "eps 1e-05 instead of 0.01"),
        (lambda x: functional.layer_norm(x @ W, (8,), eps=1e-2), lambda x: functional.rms_norm(x @ W, (8,), eps=1e-2), "N3", "the mean is not removed"),
        (attention, lambda x: attention(x, 0.25), "A5", "scale 0.25 instead of 0.5"),
        (attention, lambda x: attention(x, causal=False), "A1", "the causal mask is missing"),
        (lambda x: functional.scaled_dot_product_attention(x @ W, x, x, scale=0.5), lambda x: ((x @ W) @ x.mT * 0.3).softmax(-1) @ x, "A5", "0.3 instead of 0.5"),
        (lambda x: adapted(x, 2.0), lambda x: adapted(x, 1.0), "W7", "low-rank update (rank 2)"),
        (lambda x: (x @ W - BIAS) * GATE[0, 0], lambda x: x @ W, "C10", "normalisation by kept statistics is left out"),
        (lambda x: shared_keys(x, True), lambda x: shared_keys(x, False), "A1", "the causal mask is missing"),
        (lambda x: (x @ W).softmax(-1), lambda x: (x @ W).softmax(-2), "N7", "softmax runs along axis -2 instead of -1"),
        (lambda x: 1 - x @ W, lambda x: x @ W - 1, "N5", "the sign of a term is reversed"),
        (lambda x: (x @ W).clamp(-1, 1), lambda x: (x @ W).clamp(-1, 0.5), "C8", "bounded"),
        (lambda x: (x @ W / 2 + 0.5).clamp(0, 1), lambda x: x @ W, "C8", "bounded"),
        (hidden_by_much, lambda x: attention(x, causal=False), "A2", "the mask is missing"),
        (lambda x: x @ W, lambda x: x @ W + torch.exp(x @ V) * torch.randn(2, 5, 8, dtype=x.dtype), "C9", "draws a sample"),
        (lambda x: x @ W, lambda x: x @ W + 0.1 * torch.randn(2, 5, 8, dtype=x.dtype), "S2", "adds noise"),
        (lambda x: beside(x, torch.zeros(3, 5, 8, dtype=x.dtype)), lambda x: beside(x, torch.ones(3, 5, 8, dtype=x.dtype)), "C5", "ones where the reference has zeros"),
        (lambda x: torch.tanh(x / 30) * 30, lambda x: torch.tanh(x / 50) * 50, "W12", "50 instead of 30"),
        (lambda x: functional.pad(x @ W, (1, 1)), lambda x: functional.pad(x @ W, (1, 1), mode="reflect"), "V3", "pads with reflection_pad1d"),
        (lambda x: functional.gelu(functional.pad(x @ W, (1, 1), mode="reflect")) @ PADDED, lambda x: functional.gelu(functional.pad(torch.einsum("bnd,dk->bnk", x, W), (1, 1))) @ PADDED, "V3", "constant_pad_nd"),
        (lambda x: conv(functional.relu(conv(x, 1)), 2), lambda x: conv((y := conv(x, 2)) * (y > 0), 1), "W12", "stride [2], then [1] instead of [1], then [2]"),
        (rotated, lambda x: rotated(x, torch.cat([x[..., :4], -x[..., 4:]], -1)), "P1", "the parts of a rotation"),
        (lambda x: (x @ W) * torch.sigmoid(x @ V), lambda x: (x @ W) * torch.sigmoid(x @ W), "W3", "of other weights"),
        (lambda x: x.var(-1, keepdim=True) + x, lambda x: x.var(-1, keepdim=True, unbiased=False) + x, "N3", "correction 0"),
    ],
)  # fmt: skip
def test_an_operation_that_is_another(reference: Side, port: Side, class_id: str, words: str) -> None:
    found = named(reference, port)
    assert found[0] == class_id
    assert words in found[1]


def test_angles_that_are_scaled_once_more() -> None:
    found = cause(evidence(rotated, lambda x: rotated(x, step=2.0)))
    assert found is not None
    assert (found.class_id, found.confidence) == ("P5", CONFIDENCE["open"])
    assert "a factor of 2 is added by the port" in found.text


def test_an_edit_in_every_step_of_a_loop_counts_once() -> None:
    def scan(decay: float) -> Side:
        def side(x: Tensor) -> Tensor:
            state, out = (
                torch.zeros_like(x[:, 0]),
                torch.zeros_like(x),
            )  # empty memory may hold anything, and then differs
            for t in range(x.shape[1]):
                state = state * decay + x[:, t] @ W
                out[:, t] = state
            return out

        return side

    ev = evidence(scan(0.9), scan(0.5))
    found = find_edits(ev)
    assert found is not None
    assert [e.times for e in found.explanation.edits] == [4]  # the first step has no state yet
    assert found.names[0].class_id == "W12"


def test_another_layout_is_no_edit() -> None:
    """The port works on [tokens, batch, width]; its bias is missing."""

    def port(x: Tensor) -> Tensor:
        y = x.transpose(0, 1).contiguous()
        return (y + functional.silu(y @ W) * torch.sigmoid(GATE).transpose(0, 1)).transpose(0, 1).contiguous()

    class_id, text = named(gated, port)
    assert class_id == "N5"
    assert "leaves out add" in text


@pytest.mark.parametrize(
    ("change", "class_id", "words"),
    [
        (lambda w: w.bfloat16().double(), "W11", "rounded to bfloat16"),
        (torch.zeros_like, "W2", "zero"),
        (lambda w: w + draw(8, 8, seed=9), "W13", "other values"),
    ],
)
def test_weights_that_differ(change: Callable[[Tensor], Tensor], class_id: str, words: str) -> None:
    other = change(W)
    found = cause(evidence(gated, lambda x: x + functional.silu(x @ other + BIAS) * torch.sigmoid(GATE)))
    assert found is not None
    assert found.class_id == class_id
    assert words in found.text


def test_two_edits_are_told_as_two() -> None:
    found = find_edits(evidence(gated, lambda x: x + functional.gelu(x @ W + BIAS) * torch.tanh(GATE)))
    assert found is None or found.explanation.size > 2


def test_the_right_port_has_no_edit() -> None:
    assert cause(evidence(gated, gated)) is None


def test_a_log_with_random_numbers_has_no_sure_edit() -> None:
    def noisy(x: Tensor) -> Tensor:
        return functional.dropout(x @ W, 0.5, training=True) + BIAS

    found = cause(evidence(lambda x: x @ W + BIAS, noisy))
    assert found is None or found.class_id == "N8"


def test_a_log_that_does_not_hold_the_value_is_no_graph() -> None:
    ev = evidence(gated, lambda x: x)
    assert build(ev.ref_ops, ev.r + 1) is None


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 6), st.integers(2, 9), st.integers(0, 99))
def test_the_missing_bias_of_any_shape_is_found(tokens: int, width: int, seed: int) -> None:
    w, bias, x = (draw(*s, seed=seed + i) for i, s in enumerate([(width, width), (width,), (2, tokens, width)]))
    found = cause(evidence(lambda x: functional.silu(x @ w + bias), lambda x: functional.silu(x @ w), x))
    assert found is not None
    assert found.class_id == "N5"


def weight_of_another_call(earlier_error: float) -> Evidence:
    other = W.roll(1, 0)
    ev = evidence(lambda x: x @ W, lambda x: x @ other)
    r, ref_ops = run(lambda x: torch.mm(x[0], W), X)
    p, port_ops = run(lambda x: torch.mm(x[0], other), X)
    table = [("y", {"frame": 0}, earlier_error, 1e-6), ("y", {"frame": 1}, 1.0, 1e-6)]
    return replace(
        ev, reference=r, port=p, ref_ops=ref_ops, port_ops=port_ops, site="y", coords={"frame": 1}, table=table,
        parameters={"weight": (W, W)},
    )  # fmt: skip


def test_a_weight_that_was_right_at_earlier_calls() -> None:
    found = cause(weight_of_another_call(0.0))
    assert found is not None
    assert found.class_id == "W14"


def test_a_weight_that_was_never_right() -> None:
    found = cause(weight_of_another_call(1.0))
    assert found is None or found.class_id != "W14"


def test_a_mask_of_any_size_hides_no_other_difference() -> None:
    def masked(x: Tensor, scale: float, hidden: float) -> Tensor:
        scores = (x @ W) @ x.mT * scale + torch.full((5, 5), hidden, dtype=x.dtype).triu(1)
        return scores.softmax(-1) @ x

    for hidden in (-1e4, -1e9, float("-inf")):
        found = cause(evidence(lambda x, h=hidden: masked(x, 0.5, h), lambda x, h=hidden: masked(x, 0.25, h)))
        assert found is not None
        assert (found.class_id, found.residual < 1e-6) == ("A5", True)
