"""Operations that differ on equal tensors: order of parts, padding, slices, norms; and what hides under a sum."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from recognise import explain, named, normal, top
from torch import Tensor
from torch.nn import functional

from parity.capture.operations import Op
from parity.diagnose.evidence import Evidence
from parity.diagnose.layout import HYPOTHESES as LAYOUT
from parity.diagnose.nonfinite import HYPOTHESES as NONFINITE
from parity.diagnose.operations import HYPOTHESES


def cat(parts: list[Tensor], dim: int) -> Op:
    return Op("cat", tuple(parts), (torch.cat(parts, dim),), {"dim": dim}, "model.py:3")


def both(ref: list[Op], port: list[Op], kind: str = "activation", **more: object) -> Evidence:
    return Evidence(ref[-1].outputs[0], port[-1].outputs[0], kind=kind, ref_ops=ref, port_ops=port, **more)


PARTS = [normal(2, n, 16, seed=n) for n in (5, 6, 7)]
CLIP = normal(2, 3, 5, 8, 10, seed=4)


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


def group_norm(x: Tensor, groups: int, eps: float = 1e-5) -> Op:
    return Op("native_group_norm", (x,), (functional.group_norm(x, groups, eps=eps),), {"group": groups, "eps": eps})


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


def test_a_mask_that_closes_with_infinity() -> None:
    mask = torch.full((3, 1, 1, 8), -1e30, dtype=torch.float64)
    mask[:2, ..., :5] = 0
    closed = mask.masked_fill(mask < 0, -math.inf)
    assert top(Evidence(mask, closed, kind="mask"), NONFINITE)[1] == "A4"
    assert "overflow" not in named(Evidence(mask[:2], closed[:2], kind="mask"), NONFINITE)
