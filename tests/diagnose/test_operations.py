"""Operations that differ on equal tensors: order of parts, padding, slices, norms; and what hides under a sum."""

from __future__ import annotations

import math

import pytest
import torch
from einops import rearrange
from recognise import explain, named, normal, top
from torch import Tensor
from torch.nn import functional

from parity.capture.operations import Op
from parity.diagnose.evidence import Evidence
from parity.diagnose.integers import HYPOTHESES as INTEGERS
from parity.diagnose.layout import HYPOTHESES as LAYOUT
from parity.diagnose.nonfinite import HYPOTHESES as NONFINITE
from parity.diagnose.norm_calls import HYPOTHESES as NORM_CALLS
from parity.diagnose.operations import HYPOTHESES
from parity.diagnose.parallel import HYPOTHESES as PARALLEL
from parity.diagnose.terms import HYPOTHESES as TERMS
from parity.diagnose.video import HYPOTHESES as VIDEO
from parity.diagnose.weights import HYPOTHESES as WEIGHTS


def cat(parts: list[Tensor], dim: int) -> Op:
    return Op("cat", tuple(parts), (torch.cat(parts, dim),), {"dim": dim}, "model.py:3")


def both(ref: list[Op], port: list[Op], kind: str = "activation", **more: object) -> Evidence:
    return Evidence(ref[-1].outputs[0], port[-1].outputs[0], kind=kind, ref_ops=ref, port_ops=port, **more)


PARTS = [normal(2, n, 16, seed=n) for n in (5, 6, 7)]
CLIP = normal(2, 3, 5, 8, 10, seed=4)
PICTURE = normal(2, 8, 6, 9, seed=5)


def test_parts_joined_in_another_order() -> None:
    name, class_id, explanation = top(both([cat(PARTS, 1)], [cat(PARTS[::-1], 1)]), HYPOTHESES)
    assert (name, class_id) == ("joined_parts", "D3")
    assert explanation.parameters["order"] == [2, 1, 0]
    channels = [CLIP[:, :1], CLIP[:, 1:]]
    assert top(both([cat(channels, 1)], [cat(channels[::-1], 1)], "input"), HYPOTHESES)[1] == "C5"
    other = [PARTS[0], PARTS[1] + 0.1, PARTS[2]]
    assert explain(both([cat(PARTS, 1)], [cat(other, 1)]), HYPOTHESES) == []


def test_parts_that_are_put_right_afterwards() -> None:
    """Sine and cosine are joined one way and exchanged, or joined the other way: what diverges is something else."""
    first, last = normal(2, 8, seed=1), normal(2, 8, seed=2)
    more = cat([normal(2, 3, 4, seed=3), normal(2, 3, 4, seed=4)], 1)
    wrong = Op("add", more.outputs, (more.outputs[0] + 1,), {"other": 1})
    turned = [cat([first, last], 1), cat([last, first], 1)]
    for ref, port in ((turned, turned[1:]), (turned[1:], turned)):
        assert "joined_parts" not in named(both([*ref, more], [*port, wrong]), HYPOTHESES)
    assert "joined_parts" in named(both(turned[1:], turned[:1]), HYPOTHESES)


def pad(x: Tensor, amounts: list[int], value: float = 0.0) -> Op:
    return Op("constant_pad_nd", (x,), (functional.pad(x, amounts, value=value),), {"pad": amounts, "value": value})


@pytest.mark.parametrize(
    "port",
    [
        pad(PICTURE, [1, 0, 1, 0]),
        pad(PICTURE, [0, 1, 0, 1], 1.0),
        Op(
            "replication_pad2d",
            (PICTURE,),
            (functional.pad(PICTURE, (0, 1, 0, 1), mode="replicate"),),
            {"padding": [0, 1, 0, 1]},
        ),
    ],
)
def test_padding(port: Op) -> None:
    assert top(both([pad(PICTURE, [0, 1, 0, 1])], [port]), HYPOTHESES)[:2] == ("padding", "V3")
    assert explain(both([pad(PICTURE, [0, 1, 0, 1])], [pad(PICTURE, [0, 1, 0, 1])]), HYPOTHESES) == []


def test_padding_by_hand() -> None:
    zeros, edge = torch.zeros_like(CLIP[:, :, :2]), CLIP[:, :, :1].expand(-1, -1, 2, -1, -1)
    name, class_id, explanation = top(both([cat([zeros, CLIP], 2)], [cat([edge, CLIP], 2)]), HYPOTHESES)
    assert (name, class_id, explanation.parameters["side"]) == ("padding", "V3", "port")


def test_convolution_that_pads_otherwise() -> None:
    w = normal(4, 8, 3, 3, seed=6)
    ref = Op("convolution", (PICTURE, w), (functional.conv2d(PICTURE, w, padding=1),), {"padding": [1, 1]})
    padded = functional.pad(PICTURE, (0, 2, 0, 2))
    port = Op("convolution", (padded, w), (functional.conv2d(padded, w),), {"padding": [0, 0]})
    assert top(both([ref], [pad(PICTURE, [0, 2, 0, 2]), port]), HYPOTHESES)[1] == "V3"
    other = normal(4, 8, 3, 3, seed=8)  # another convolution pads as it likes
    unlike = Op("convolution", (PICTURE, other), (functional.conv2d(PICTURE, other),), {"padding": [0, 0]})
    assert explain(both([ref], [unlike]), HYPOTHESES) == []


def cut(x: Tensor, start: int, end: int, dim: int = 1) -> Op:
    return Op("slice", (x,), (x.narrow(dim, start, end - start),), {"dim": dim, "start": start, "end": end, "step": 1})


def test_another_slice() -> None:
    x = normal(2, 15, 16, seed=7)
    assert top(both([cut(x, 0, 13)], [cut(x, 2, 15)]), HYPOTHESES)[1] == "D3"
    picture = normal(2, 3, 14, 20, seed=8)
    assert top(both([cut(picture, 1, 13, 2)], [cut(picture, 0, 12, 2)], "frame"), HYPOTHESES)[1] == "C6"
    table = normal(1, 24, 16, seed=9)
    ev = both([cut(table, 0, 5)], [cut(table, 1, 6)], parameters={"pe": (table, table)})
    assert top(ev, HYPOTHESES)[1] == "P2"
    assert explain(both([cut(x, 0, 13)], [cut(x + 1, 0, 13)]), HYPOTHESES) == []


def test_a_norm_over_another_shape() -> None:
    x = normal(6, 16, 4, 5, seed=10)
    clip = rearrange(x, "(b f) c h w -> b c f h w", b=2)
    ref = Op("native_group_norm", (x,), (functional.group_norm(x, 4),), {"group": 4})
    out = rearrange(functional.group_norm(clip, 4), "b c f h w -> (b f) c h w")
    port = [
        Op("native_group_norm", (clip,), (functional.group_norm(clip, 4),), {"group": 4}),
        Op("view", (clip,), (out,)),
    ]
    assert top(both([ref], port), NORM_CALLS)[:2] == ("normed_shape", "N7")


def group_norm(x: Tensor, groups: int, eps: float = 1e-5) -> Op:
    return Op("native_group_norm", (x,), (functional.group_norm(x, groups, eps=eps),), {"group": groups, "eps": eps})


def test_norm_of_other_channels() -> None:
    order = torch.arange(8).reshape(4, 2).T.flatten()
    found = top(both([group_norm(PICTURE, 4)], [group_norm(PICTURE[:, order], 4)]), NORM_CALLS)
    assert found[:2] == ("normed_channels", "N7")
    assert found[2].parameters["order"] == order.tolist()
    doubled = PICTURE[:, [0, 0, 2, 3, 4, 5, 6, 7]]  # a channel used twice is another fault
    assert explain(both([group_norm(PICTURE, 4)], [group_norm(doubled, 4)]), NORM_CALLS) == []


def test_norm_with_other_arguments() -> None:
    tokens = normal(2, 8, 15, seed=7)
    for port, class_id in ((group_norm(tokens, 2), "N7"), (group_norm(tokens, 4, 1e-3), "N1")):
        assert top(both([group_norm(tokens, 4)], [port]), NORM_CALLS)[:2] == ("norm arguments", class_id)
    # other numbers in, other arguments or not: the norm is not what departs
    assert explain(both([group_norm(tokens, 4)], [group_norm(tokens + 0.1, 2)]), NORM_CALLS) == []


def test_exchanged_halves() -> None:
    a, b = normal(2, 7, 32, seed=11).chunk(2, -1)
    split = Op("split", (torch.cat([a, b], -1),), (a, b))
    ref = [
        split,
        Op("gelu", (b,), (functional.gelu(b),)),
        Op("mul", (a, functional.gelu(b)), (a * functional.gelu(b),)),
    ]
    port = [
        split,
        Op("gelu", (a,), (functional.gelu(a),)),
        Op("mul", (b, functional.gelu(a)), (b * functional.gelu(a),)),
    ]
    assert top(both(ref, port), HYPOTHESES)[:2] == ("exchanged_halves", "W3")
    captured = Evidence(functional.silu(a) * b, functional.silu(b) * a, inputs={"gate": a, "up": b})
    assert top(captured, TERMS)[:2] == ("exchanged_gate", "W3")
    assert "exchanged_gate" not in named(
        Evidence(functional.silu(a) * b, functional.gelu(a) * b, inputs=captured.inputs), TERMS
    )


def test_memory_read_with_other_strides() -> None:
    x = normal(2, 4, 6, 8, seed=12)
    other = x.as_strided((2, 4, 6, 8), (192, 8, 32, 1))
    op = Op("as_strided", (x,), (other,), {}, "kernel.py:9")
    sdpa = Op("scaled_dot_product_attention", (other, x, x), (functional.scaled_dot_product_attention(other, x, x),))
    straight = Op("scaled_dot_product_attention", (x, x, x), (functional.scaled_dot_product_attention(x, x, x),))
    assert top(both([straight], [op, sdpa]), HYPOTHESES)[:2] == ("reinterpreted_memory", "A8")
    assert explain(both([op, sdpa], [op, sdpa]), HYPOTHESES) == []


def test_a_rearrangement_under_a_residual() -> None:
    x, y = normal(2, 48, 16, seed=13), normal(2, 48, 16, seed=14)
    z = rearrange(y, "b (h w) d -> b (w h) d", h=6)
    ev = both([Op("add", (y, x), (y + x,))], [Op("add", (z, x), (z + x,))])
    assert top(ev, LAYOUT)[:2] == ("rearranged_operand", "V5")


def test_equal_rows_do_not_hide_a_plain_map() -> None:
    x = normal(2, 5, 12, seed=15)
    reference, port = x.repeat_interleave(3, 0), x.repeat(3, 1, 1)
    assert top(Evidence(reference, port, kind="input"), LAYOUT)[1] == "V6"
    heads = normal(2, 2, 9, 8, seed=16)
    assert top(Evidence(heads.repeat_interleave(4, 1), heads.repeat(1, 4, 1, 1)), LAYOUT)[1] == "A6"


def test_remembered_frames_of_a_convolution() -> None:
    memory = normal(2, 4, 2, 6, 8, seed=17)
    assert top(Evidence(memory, memory.flip(2), kind="kv"), LAYOUT)[1] == "V2"
    lost = memory.clone()
    lost[:, :, 0] = 0
    assert top(Evidence(memory, lost, kind="kv"), LAYOUT)[1] == "V2"


def test_relative_positions_with_the_other_sign() -> None:
    i = torch.arange(14)
    table = (i[None] - i[:, None]).clamp(-6, 3)
    assert top(Evidence(table, table.T.contiguous()), LAYOUT)[1] == "P7"
    positions = torch.arange(13)
    assert top(Evidence(positions, (positions + 1) % 13), LAYOUT)[1] == "P2"


def test_one_norm_for_joined_parts() -> None:
    x = normal(2, 8, 5, 12, seed=18) * (1 + torch.arange(12.0))
    whole, parts = functional.group_norm(x, 2), x.chunk(2, 3)
    port = [Op("native_group_norm", (p,), (functional.group_norm(p, 2),), {"group": 2}) for p in parts]
    ref = [Op("mul", (x,), (whole[..., :6],)), Op("mul", (x,), (whole[..., 6:],))]
    ev = Evidence(functional.silu(whole[..., :6]), functional.silu(port[0].outputs[0]), ref_ops=ref, port_ops=port)
    assert top(ev, PARALLEL)[:2] == ("split_norm", "D4")
    elsewhere = [Op("mul", (x,), (whole[..., :6] + 0.1,))]
    assert "split_norm" not in named(Evidence(ev.reference, ev.port, ref_ops=elsewhere, port_ops=port), PARALLEL)


def test_a_norm_of_this_shard_alone() -> None:
    x, w = normal(2, 5, 24, seed=19), 1 + 0.2 * normal(12, seed=20)
    mine = x[..., :12]
    port = mine * mine.square().mean(-1, keepdim=True).rsqrt() * w
    reference = mine * x.square().mean(-1, keepdim=True).rsqrt() * w
    heads = [rearrange(t, "b n (h d) -> b h n d", h=2) for t in (reference, port)]
    ev = Evidence(*heads, kind="rope", inputs={"q": mine.contiguous()}, parameters={"w": (w, w)})
    assert top(ev, PARALLEL)[1] == "A7"


def test_blended_tiles() -> None:
    left, right = normal(1, 3, 4, 8, 8, seed=21), normal(1, 3, 4, 8, 8, seed=22)

    def blend(ramp: Tensor) -> Tensor:
        n = len(ramp)
        return torch.cat([left[..., -n:] * (1 - ramp) + right[..., :n] * ramp, right[..., n:]], -1)

    ramp = torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)
    ev = Evidence(blend(ramp), blend(ramp.flip(0)), kind="frame", inputs={"left": left, "right": right})
    name, class_id, explanation = top(ev, VIDEO)
    assert (name, class_id) == ("blend_ramp", "V4")
    assert explanation.parameters["reference"] == pytest.approx([0.2, 0.4, 0.6, 0.8])


def test_parts_of_one_modulation() -> None:
    table = normal(2, 6, 48, seed=23)
    ev = Evidence(table[:, :1], table[:, 1:2], inputs={"mod": table})
    assert top(ev, WEIGHTS)[:2] == ("other_chunk", "W5")
    assert "other_chunk" not in named(Evidence(table[:, :1], table[:, 1:2] + 0.1, inputs={"mod": table}), WEIGHTS)


PAYLOAD = (127 * normal(20, 64, seed=24) / normal(20, 64, seed=24).abs().amax(1, keepdim=True)).double()


def test_payload() -> None:
    reference = PAYLOAD.round()
    assert top(Evidence(reference, PAYLOAD.trunc()), INTEGERS)[:2] == ("payload_truncated", "Q3")
    assert top(Evidence(reference, (2.5 * PAYLOAD).round().clamp(-127, 127)), INTEGERS)[1] == "Q2"
    one = PAYLOAD * (0.2 + 0.8 * torch.linspace(0, 1, 20, dtype=torch.float64))[:, None]
    name, class_id, explanation = top(Evidence(reference, one.round()), INTEGERS)
    assert (name, class_id) == ("payload_scale", "Q2")
    assert "largest row" in explanation.text
    noise = (reference + torch.randint(-9, 10, reference.shape)).clamp(-127, 127)
    assert explain(Evidence(reference, noise), INTEGERS) == []


def test_overflow_seen_from_outside() -> None:
    x = normal(2, 9, seed=25)
    large = Op("sum", (x,), (1e5 * x.abs() + 7e4,), {}, "norm.py:4")
    small = Op("linalg_vector_norm", (x,), (x.abs(),))
    ev = Evidence(x, torch.full_like(x, math.nan), ref_ops=[small], port_ops=[large])
    name, class_id, explanation = top(ev, NONFINITE)
    assert (name, class_id) == ("replayed_overflow", "Q1")
    assert "norm.py:4" in explanation.text
    half = Op("_to_copy", (x,), (x.half(),), {"dtype": torch.float16})
    assert top(Evidence(x, 1e5 * x, port_ops=[half]), NONFINITE)[:2] == ("beyond_half", "Q1")
    assert explain(Evidence(x, 1e5 * x), NONFINITE) == []


def test_a_mask_that_closes_with_infinity() -> None:
    mask = torch.full((3, 1, 1, 8), -1e30, dtype=torch.float64)
    mask[:2, ..., :5] = 0
    closed = mask.masked_fill(mask < 0, -math.inf)
    assert top(Evidence(mask, closed, kind="mask"), NONFINITE)[1] == "A4"
    assert "overflow" not in named(Evidence(mask[:2], closed[:2], kind="mask"), NONFINITE)
