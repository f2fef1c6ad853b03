"""Faults of the rotary position embedding (spec D1-D3 and the list below the table)."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from einops import rearrange
from torch import Tensor

from ported.wan.faults.open_parts import OpenProcessor, processors
from ported.wan.faults.record import Port, PortFault, patched, recast


@contextmanager
def rope_split_thirds(port: Port) -> Iterator[None]:
    """The table is built per axis of 2·(D//6), but cut at D//3: the axes meet at the wrong channel."""
    rope = port.dit.rope
    third = rope.attention_head_dim // 3
    with ExitStack() as stack:
        for name, width in (("t_dim", rope.attention_head_dim - 2 * third), ("h_dim", third), ("w_dim", third)):
            stack.enter_context(patched(rope, name, width))
        yield


@contextmanager
def rope_tables_bf16(port: Port) -> Iterator[None]:
    """`.to(bfloat16)` on the model casts the cos and sin buffers with it."""
    rope = port.dit.rope
    kept = rope.freqs_cos, rope.freqs_sin
    rope.freqs_cos, rope.freqs_sin = (table.bfloat16() for table in kept)
    try:
        yield
    finally:
        rope.freqs_cos, rope.freqs_sin = kept


class _GridTimesRanks(WanRotaryPosEmbed):
    RANKS = 2

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(hidden_states.repeat(1, 1, self.RANKS, 1, 1))


@contextmanager
def rope_frames_times_ranks(port: Port) -> Iterator[None]:
    """The grid is multiplied by the sequence-parallel world size although each rank holds the whole sequence."""
    with recast([port.dit.rope], _GridTimesRanks):
        yield


class _HalfSplit(OpenProcessor):
    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, dim=-1)
        cos, sin = cos[..., 0::2], sin[..., 1::2]
        return torch.cat([x1 * cos - x2 * sin, x1 * sin + x2 * cos], dim=-1).type_as(x)


@contextmanager
def rope_half_split(port: Port) -> Iterator[None]:
    """Pairs are (i, i + D/2) instead of adjacent elements."""
    with processors(port.dit, "attn1", _HalfSplit):
        yield


class _Conjugate(OpenProcessor):
    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return super().rotate(x, cos, -sin)


@contextmanager
def rope_sign(port: Port) -> Iterator[None]:
    """Rotation by the negative angle."""
    with processors(port.dit, "attn1", _Conjugate):
        yield


class _HeightWidthSwapped(WanRotaryPosEmbed):
    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        height, width = hidden_states.shape[3] // self.patch_size[1], hidden_states.shape[4] // self.patch_size[2]
        tables = super().forward(hidden_states.transpose(3, 4))
        pattern = "1 (f w h) 1 d -> 1 (f h w) 1 d"
        return tuple(rearrange(table, pattern, h=height, w=width) for table in tables)


@contextmanager
def rope_height_width_swapped(port: Port) -> Iterator[None]:
    """Token (f, h, w) gets the height table at w and the width table at h."""
    with recast([port.dit.rope], _HeightWidthSwapped):
        yield


class _RestartsAtHalf(WanRotaryPosEmbed):
    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        tables = super().forward(hidden_states)
        half = (tables[0].shape[1] + 1) // 2
        return tuple(torch.cat([table[:, :half], table[:, : table.shape[1] - half]], dim=1) for table in tables)


@contextmanager
def rope_restarts_at_half(port: Port) -> Iterator[None]:
    """Each of two ranks counts its tokens from position 0."""
    with recast([port.dit.rope], _RestartsAtHalf):
        yield


FAULTS: tuple[PortFault, ...] = (
    PortFault(
        "rope_split_thirds",
        "D1",
        "P3",
        "rotary tables cut at head_dim//3 instead of 2*(head_dim//6) per axis",
        rope_split_thirds,
        "dit",
        {"head_dim": 40},
    ),
    PortFault(
        "rope_tables_bf16",
        "D2",
        "P6",
        "rotary cos and sin tables cast to bfloat16 with the model",
        rope_tables_bf16,
        "dit",
    ),
    PortFault(
        "rope_frames_times_ranks",
        "D3",
        "P2",
        "rotary grid multiplied by the sequence-parallel world size",
        rope_frames_times_ranks,
        "dit",
        outcome="error",
    ),
    PortFault("rope_half_split", "D+", "P1", "half-split instead of adjacent-pair rotation", rope_half_split, "dit"),
    PortFault("rope_sign", "B", "P7", "rotation by the negative angle", rope_sign, "dit"),
    PortFault(
        "rope_height_width_swapped",
        "D+",
        "P3",
        "height and width rotary tables exchanged",
        rope_height_width_swapped,
        "dit",
        {"unequal_grid": True},
    ),
    PortFault(
        "rope_restarts_at_half",
        "D+",
        "P2",
        "positions restart at 0 in the second half of the tokens",
        rope_restarts_at_half,
        "dit",
    ),
)
