"""Sparse-linear attention over gathered key blocks (spec 8.5).

Only the kept blocks are multiplied: on a CPU by gathering them, on a GPU by flex attention with a block mask. Softmax in
base 2, probabilities rounded to the dtype of v before they meet it, sums in float32.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ported.interp.lora import LoRALinear

LOG2E = math.log2(math.e)


class Blocks(NamedTuple):
    """Pooled queries and keys `(b, h, blocks, d)`, their scores, and a mask of the kept blocks."""

    pooled_q: Tensor
    pooled_k: Tensor
    score: Tensor
    kept: Tensor


def block_means(x: Tensor, size: int) -> Tensor:
    """Means of blocks of rows `(b, h, l, d)`, summed in float32; the last block over its real rows."""
    length = x.shape[2]
    blocks = -(-length // size)
    padded = F.pad(x.float(), (0, 0, 0, blocks * size - length))
    rows = torch.full((blocks,), float(size), device=x.device)
    rows[-1] = length - (blocks - 1) * size
    return (padded.unflatten(2, (blocks, size)).sum(dim=3) / rows[:, None]).to(x.dtype)


def linear_as(layer: nn.Linear, x: Tensor) -> Tensor:
    """A Linear in the dtype of its input."""
    return F.linear(x, layer.weight.to(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype))


class SparseLinearAttention(nn.Module):
    """q, k, v `(b, l, h, d)`. `keep_one`: at least one key block stays, however short the sequence."""

    def __init__(
        self,
        head_dim: int,
        topk: float,
        feature_map: str = "softmax",
        BLKQ: int = 64,
        BLKK: int = 64,
        compute_dtype: torch.dtype = torch.bfloat16,
        keep_one: bool = True,
    ) -> None:
        super().__init__()
        maps = {"softmax": lambda x: x.softmax(dim=-1), "elu": lambda x: F.elu(x) + 1, "relu": F.relu}
        if feature_map not in maps:
            raise ValueError(f"unknown feature map {feature_map!r}, expected one of {sorted(maps)}")
        self.topk, self.feature_map, self.sizes = topk, feature_map, (BLKQ, BLKK)
        self.compute_dtype, self.keep_one = compute_dtype, keep_one
        self.proj_l = nn.Linear(head_dim, head_dim)
        nn.init.zeros_(self.proj_l.weight)
        nn.init.zeros_(self.proj_l.bias)

    def kept_blocks(self, blocks: int) -> int:
        """Number of key blocks of every query block."""
        return min(blocks, max(int(self.topk * blocks), int(self.keep_one)))

    def table(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pooled q and k, scores, and the kept blocks of every query block `(b, h, query blocks, m)`, unsorted."""
        pooled_q = block_means(q, self.sizes[0])
        pooled_k = block_means(k - k.mean(dim=2, keepdim=True), self.sizes[1])
        score = torch.matmul(pooled_q, pooled_k.mT)
        return pooled_q, pooled_k, score, score.topk(self.kept_blocks(score.shape[-1]), dim=-1, sorted=False).indices

    def select(self, q: Tensor, k: Tensor) -> Blocks:
        """The same with a mask instead of the table."""
        pooled_q, pooled_k, score, lut = self.table(q, k)
        return Blocks(pooled_q, pooled_k, score, torch.zeros_like(score, dtype=torch.bool).scatter(-1, lut, True))

    def sparse(self, q: Tensor, k: Tensor, v: Tensor, lut: Tensor) -> Tensor:
        """Attention to the blocks of the table: `(b, h, l, d)`."""
        if q.is_cuda and lut.shape[-1] > 0:
            return flex_sparse(q, k, v, lut, self.sizes)
        return gathered_sparse(q, k, v, lut, self.sizes)

    def linear(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The linear branch over all keys, before its projection."""
        phi = {"softmax": lambda x: x.softmax(dim=-1), "elu": lambda x: F.elu(x) + 1, "relu": F.relu}[self.feature_map]
        fq, fk = phi(q), phi(k)
        total = (fq * fk.sum(dim=2, keepdim=True)).sum(dim=-1, keepdim=True)
        return torch.matmul(fq, torch.matmul(fk.mT, v)) / (1e-5 + total)

    def project(self, o: Tensor) -> Tensor:
        """`proj_l` in the dtype of its input, with its adapter when it has one."""
        if isinstance(self.proj_l, LoRALinear):
            low = linear_as(self.proj_l.lora_B, linear_as(self.proj_l.lora_A, o))
            return linear_as(self.proj_l.base, o) + self.proj_l.scale * low
        return linear_as(self.proj_l, o)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        dtype = q.dtype
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        lut = self.table(q, k)[-1]
        q, k, v = (x.to(self.compute_dtype) for x in (q, k, v))
        return (self.sparse(q, k, v, lut) + self.project(self.linear(q, k, v))).to(dtype).transpose(1, 2)

    def sparsity(self, length: int) -> float:
        """Share of the key blocks that are kept."""
        blocks = -(-length // self.sizes[1])
        return self.kept_blocks(blocks) / blocks


def gathered_sparse(q: Tensor, k: Tensor, v: Tensor, lut: Tensor, sizes: tuple[int, int]) -> Tensor:
    """Gather the kept key blocks of one query block of all heads at a time and attend to them."""
    b, h, length, d = q.shape
    rows, columns = sizes
    kept = lut.shape[-1]
    pad = -length % columns
    k, v = (F.pad(x, (0, 0, 0, pad)).unflatten(2, (-1, columns)) for x in (k, v))
    place = torch.arange(columns, device=q.device)
    out = torch.empty_like(q)
    for block, part in enumerate(q.split(rows, dim=2)):
        chosen = lut[:, :, block]
        index = chosen[..., None, None].expand(b, h, kept, columns, d)
        keys, values = (x.gather(2, index).flatten(2, 3) for x in (k, v))
        scores = torch.matmul(part.float(), keys.float().mT) * (d**-0.5 * LOG2E)
        if pad:
            beyond = (chosen[..., None] * columns + place >= length).flatten(2)[:, :, None]
            scores = scores.masked_fill(beyond, -math.inf)
        if kept == 0:
            scores = scores.new_full((*scores.shape[:-1], 1), math.nan)
            values = v.new_zeros(b, h, 1, d)
        weights = torch.exp2(scores - scores.amax(dim=-1, keepdim=True))
        total = weights.sum(dim=-1, keepdim=True)
        out[:, :, block * rows : block * rows + part.shape[2]] = (
            torch.matmul(weights.to(v.dtype).float(), values.float()) / total
        ).to(v.dtype)
    return out


def flex_sparse(q: Tensor, k: Tensor, v: Tensor, lut: Tensor, sizes: tuple[int, int]) -> Tensor:
    """The same through flex attention; compiled on a GPU, so that dropped blocks cost nothing."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    blocks = -(-k.shape[2] // sizes[1])
    kept = torch.zeros(*lut.shape[:3], blocks, dtype=torch.bool, device=q.device).scatter(-1, lut, True)

    def allowed(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return kept[b, h, i // sizes[0], j // sizes[1]]

    count = torch.full(lut.shape[:3], lut.shape[-1], dtype=torch.int32, device=q.device)
    order = torch.cat((lut.sort(dim=-1).values, (~kept).int().argsort(dim=-1, descending=True, stable=True)), dim=-1)
    mask = BlockMask.from_kv_blocks(
        count,
        order[..., :blocks].int().contiguous(),
        BLOCK_SIZE=sizes,
        mask_mod=allowed,
        seq_lengths=(q.shape[2], k.shape[2]),
    )
    run = compiled_flex(flex_attention) if q.is_cuda else flex_attention
    return run(q, k, v, block_mask=mask)


def compiled_flex(function: object) -> object:
    """Compile once."""
    if not hasattr(compiled_flex, "cache"):
        compiled_flex.cache = torch.compile(function)
    return compiled_flex.cache
