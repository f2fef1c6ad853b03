"""Parallel execution: a bias counted by every rank, one shard on all ranks, shards in another order, statistics per
shard.

Classes: D1 D2 D3 D4 and the tensor-parallel form of A7 of the bug list.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from parity.capture.operations import Op

from .axes import axis_name, kind_of, roles
from .candidates import vectors
from .evidence import Evidence, Explanation, Hypothesis, as_float64
from .fits import accept, allowance, comparable, grouped_affine, grouped_scale, near, noise_level, number, sure
from .terms import bias_multiple

WORLD = (2, 3, 4, 5, 6, 8, 12, 16)


def bias_per_rank(ev: Evidence) -> Iterator[Explanation]:
    """d == (N − 1)·b for a parameter vector b, the same for all tokens: the bias is added by every one of N ranks
    (D1).
    """
    k, name, residual = bias_multiple(ev)
    if name and vectors(ev)[name].numel() not in {ev.r.shape[-1], ev.r.shape[min(1, ev.r.ndim - 1)]}:
        return  # a table over tokens is added, not a bias
    if name and k > 0.5 and near(k, round(k), 0.01):
        ranks = round(k) + 1
        text = (
            f"P − R is {round(k)} times {name} at every token: it is added {ranks} times, as by "
            f"{ranks} ranks that are summed"
        )
        yield Explanation(text, residual, sure(ev, residual, 0.96), {"vector": name, "times": ranks})


def same_shard(ev: Evidence) -> Iterator[Explanation]:
    """P's N equal shards along an axis are one and the same shard of R (D2)."""
    if not comparable(ev, 8):
        return
    names = roles(ev.r.shape, kind_of(ev))
    if ev.kind in {"mask", "kv", "schedule"}:
        return
    for axis, size in enumerate(ev.r.shape):
        for n in WORLD if names[axis] not in {"b", "f", "h", "w"} else ():
            if n == size and ev.kind != "weight":
                continue  # every slice the same: a frozen or shared buffer, not shards
            if size % n or size // n < 1 or ev.r.numel() // n < 4 or (size == n and ev.r.numel() // n < 8):
                continue
            shards = ev.p.chunk(n, axis)
            scale = float(torch.linalg.vector_norm(shards[0]))
            if (
                scale == 0
                or float(shards[0].std()) == 0
                or any(
                    float(torch.linalg.vector_norm(s - shards[0])) > (1e-6 + 3 * noise_level(ev)) * scale
                    for s in shards[1:]
                )
            ):
                continue
            for source, shard in enumerate(ev.r.chunk(n, axis)):
                residual = accept(ev, torch.cat([shard] * n, axis))
                if residual is not None and ev.kind != "weight" and (part := _captured_part(ev, n, axis, source)):
                    text = (
                        f"P holds a copy of another part where R holds {part} "
                        f"({axis_name(axis, ev.r.shape, kind_of(ev))})"
                    )
                    yield Explanation(text, residual, sure(ev, residual, 0.96), {"part": part}, "C5")
                    return
                if residual is not None:
                    where = axis_name(axis, ev.r.shape, kind_of(ev))
                    text = f"all {n} shards of {where} are R's shard {source}: every rank loaded or kept the same one"
                    yield Explanation(
                        text, residual, sure(ev, residual, 0.95), {"axis": axis, "shards": n, "source": source}
                    )
                    return


def _captured_part(ev: Evidence, n: int, axis: int, source: int) -> str:
    """Name of the captured tensor that one of R's other parts is, or ""."""
    for i, shard in enumerate(ev.r.chunk(n, axis)):
        for name, x in ev.inputs.items() if i != source else ():
            if tuple(x.shape) == tuple(shard.shape) and x.is_floating_point() and torch.equal(as_float64(x), shard):
                return name
    return ""


def shard_statistics(ev: Evidence) -> Iterator[Explanation]:
    """P/R constant per token and shard of the channels (A7: a norm's statistics taken by each rank over its own
    shard).
    """
    if not comparable(ev, 64) or ev.r.ndim < 2 or ev.kind in {"weight", "mask", "schedule"} or not bool(ev.p.any()):
        return
    channels = ev.r.shape[-1]
    if (residual := _one_ratio(ev, 1)) is not None:
        yield from _own_statistics(ev, residual)
        return  # one factor per token: eps or scale, not shards of this record
    yield from _heads_statistics(ev)
    for n in WORLD:
        if channels % n or channels // n < 6:
            continue
        residual = _one_ratio(ev, n)
        if residual is None:
            continue
        checked = _recomputed(ev, n)
        text = (
            f"P/R is one number per token and per {channels // n} of {channels} channels: "
            f"statistics are taken by each of {n} shards"
        )
        text += f" (the root mean square of {checked} over each shard gives P)" if checked else ""
        yield Explanation(
            text,
            residual,
            sure(ev, residual, 0.95 if checked else 0.85),
            {"shards": n, "verified": bool(checked)},
            "A7",
        )
        return


def _one_ratio(ev: Evidence, n: int) -> float | None:
    shape = (*ev.r.shape[:-1], n, ev.r.shape[-1] // n)
    r, p = ev.r.reshape(shape), ev.p.reshape(shape)
    rows = r.reshape(-1, shape[-1]), p.reshape(-1, shape[-1])
    if rows[0].shape[0] > 4096:  # a cheap look first
        some = rows[0][:2048], rows[1][:2048]
        scale = grouped_scale(some[1], some[0], [0])
        whole = float(torch.linalg.vector_norm(some[1] - some[0]))
        if whole > 0 and float(torch.linalg.vector_norm(some[1] - scale * some[0])) > 3 * allowance(ev) * whole:
            return None
    scale = grouped_scale(p, r, list(range(len(shape) - 1)))
    return accept(ev, (scale * r).reshape(ev.r.shape))


def _own_statistics(ev: Evidence, residual: float) -> Iterator[Explanation]:
    """P/R one number per token, and P has the same mean square at every token where R has not: P's norm saw this
    record alone.
    """
    token_axes = {i for i, role in enumerate(roles(ev.r.shape, kind_of(ev))) if role in {"b", "n"}}
    rest = [i for i in range(ev.r.ndim) if i not in token_axes]
    if len(rest) == ev.r.ndim or not rest or ev.r.ndim < 3:
        return
    if ev.r.numel() <= 4_000_000 and (name := _shard_input(ev, rest)):
        text = f"P is normalised by the mean square of this shard of {name} alone, R by more"
        yield Explanation(text, residual, sure(ev, residual, 0.95), {"shards": 0, "verified": True}, "A7")
        return
    squares = [x.square().mean(dim=rest).reshape(-1) for x in (ev.r, ev.p)]
    if len(squares[0]) < 4:
        return
    ours, theirs = (float(s.std() / s.mean().clamp_min(1e-300)) for s in squares)
    if theirs < 0.25 * ours and ours > 1e-3:
        text = (
            "P/R is one number per token, and P's mean square is the same at every token "
            f"({theirs:.1%}) where R's varies by {ours:.1%}: the norm's statistics are those of this shard "
            "alone"
        )
        yield Explanation(text, residual, sure(ev, residual, 0.86), {"shards": 0, "verified": False}, "A7")


def _shard_input(ev: Evidence, rest: list[int]) -> str:
    """The input x of which ‖P‖² = ‖x·w‖²/mean(x²) at every token and ‖R‖² is not, for a chunk of x as wide as the
    record (rotations keep it).
    """
    width = 1
    for i in rest:
        width *= ev.r.shape[i]
    theirs, ours = (x.square().sum(dim=rest).reshape(-1) for x in (ev.p, ev.r))
    gains = [
        as_float64(v).reshape(-1)
        for pair in ev.parameters.values()
        for v in pair[:1]
        if v is not None and v.numel() == width
    ]
    for name, value in ev.inputs.items():
        if (
            not value.is_floating_point()
            or value.numel() % width
            or value.numel() < ev.r.numel()
            or value.shape[-1] % width
        ):
            continue
        for x in torch.split(as_float64(value).reshape(-1, value.shape[-1]), width, -1):
            if len(x) != len(theirs):
                continue
            mean = x.square().mean(-1)
            for gain in [torch.ones(width, dtype=torch.float64), *gains]:
                wanted = (x * gain).square().sum(-1) / mean.clamp_min(1e-300)
                scale = float(torch.linalg.vector_norm(wanted))
                left, right = (float(torch.linalg.vector_norm(wanted - x)) for x in (theirs, ours))
                if left < 1e-4 * scale and right > 1e-3 * scale:  # else an eps
                    return name
    return ""


def split_norm(ev: Evidence) -> Iterator[Explanation]:
    """The port normalises parts one by one, and one norm over the joined parts gives what the reference has (D4), by
    recomputation.
    """
    calls = [
        op
        for op in ev.port_ops
        if op.name in {"native_group_norm", "group_norm"} and op.inputs and op.inputs[0].ndim >= 3
    ]
    parts = [op.inputs[0] for op in calls]
    if not 2 <= len(parts) <= 16 or any(p.ndim != parts[0].ndim for p in parts):
        return
    groups = int(calls[0].scalars.get("group", calls[0].scalars.get("num_groups", 0)) or 0)
    for axis in range(2, parts[0].ndim):
        if groups < 1 or any(p.shape[i] != parts[0].shape[i] for p in parts for i in range(p.ndim) if i != axis):
            continue
        whole = torch.nn.functional.group_norm(torch.cat([as_float64(p) for p in parts], axis), groups)
        wanted = torch.split(whole, [p.shape[axis] for p in parts], axis)
        if _occurs(wanted[0], ev, calls[0]):
            text = (
                f"the port normalises {len(parts)} parts one by one; one norm over the parts joined "
                f"along axis {axis} gives the reference's values"
            )
            yield Explanation(text, 0.0, 0.96, {"parts": len(parts), "axis": axis, "groups": groups})
            return


def _occurs(wanted: torch.Tensor, ev: Evidence, call: Op) -> bool:
    """Whether a reference operation made that value, before or after the norm's own gain and bias."""
    shape = [1, -1] + [1] * (wanted.ndim - 2)
    vectors = [as_float64(x).reshape(shape) for x in call.inputs[1:3] if x.numel() == wanted.shape[1]]
    forms = [wanted] + ([wanted * vectors[0] + (vectors[1] if len(vectors) > 1 else 0)] if vectors else [])
    for op in ev.ref_ops:
        for x in op.outputs:
            if x.numel() == wanted.numel() and x.is_floating_point():
                value = as_float64(x).reshape(wanted.shape)
                if any(float((value - form).abs().max()) < 1e-5 * float(form.abs().max()) for form in forms):
                    return True
    return False


def _heads_statistics(ev: Evidence) -> Iterator[Explanation]:
    """P/R constant per token and group of heads in a record with a head axis, several heads to a group."""
    names = roles(ev.r.shape, kind_of(ev))
    if ev.r.ndim != 4:
        return
    for axis in (1, 2):
        heads = ev.r.shape[axis]
        for n in WORLD:
            if heads > 128 or heads % n or n > heads or (n == heads and ev.kind not in {"rope", "activation"}):
                continue
            r, p = (x.reshape(*x.shape[:axis], n, heads // n, *x.shape[axis + 1 :]) for x in (ev.r, ev.p))
            keep = [i for i in range(r.ndim) if i not in {axis + 1, r.ndim - 1}]
            small_r, small_p = (x[:1].narrow(3 if axis == 1 else 1, 0, min(64, ev.r.shape[3 - axis])) for x in (r, p))
            rough = grouped_scale(small_p, small_r, keep) * small_r
            size = float(torch.linalg.vector_norm(small_p - small_r))
            if size > 0 and float(torch.linalg.vector_norm(small_p - rough)) > 3 * allowance(ev) * size:
                continue  # a cheap look at some tokens
            scale = grouped_scale(p, r, keep)
            residual = accept(ev, (scale * r).reshape(ev.r.shape))
            if residual is None or r.numel() // scale.numel() < 6:
                continue
            text = (
                f"P/R is one number per token and group of {heads // n} of {heads} heads "
                f"({names[axis]}): statistics are taken by each of {n} shards"
            )
            yield Explanation(
                text, residual, sure(ev, residual, 0.85 if n < heads else 0.7), {"shards": n, "verified": False}, "A7"
            )
            return


def _recomputed(ev: Evidence, n: int) -> str:
    """Name of the input x with P/R == rms(x)/rms_shard(x), or ""."""
    for name, x in ev.inputs.items():
        if tuple(x.shape) != tuple(ev.r.shape) or not x.is_floating_point():
            continue
        x = as_float64(x)
        squares = x.square().reshape(*x.shape[:-1], n, -1)
        whole = squares.mean((-1, -2), keepdim=True)
        ratio = (whole / squares.mean(-1, keepdim=True).clamp_min(1e-300)).sqrt().expand_as(squares).reshape(x.shape)
        if accept(ev, ratio * ev.r) is not None:
            return name
    return ""


def spatial_statistics(ev: Evidence) -> Iterator[Explanation]:
    """P == a·R + b with one (a, b) per channel in each of N stripes of a spatial axis or of the tokens (D4: statistics
    per shard).
    """
    if not comparable(ev, 256) or ev.r.ndim < 4 or ev.kind == "weight":
        return
    names = roles(ev.r.shape, kind_of(ev))
    channel = next((i for i, role in enumerate(names) if role == "c"), None)
    for axis, role in enumerate(names):
        if role not in {"h", "w"} or channel is None:
            continue
        for n in (2, 4, 8):
            if ev.r.shape[axis] % n or ev.r.shape[axis] // n < 2:
                continue
            residual = _striped(ev, axis, channel, n)
            if residual is not None and _striped(ev, axis, channel, 1) is None:
                text = (
                    f"P is one affine map of R per channel in each of {n} stripes of "
                    f"{axis_name(axis, ev.r.shape, kind_of(ev))}: statistics are taken per shard"
                )
                yield Explanation(text, residual, sure(ev, residual, 0.85), {"axis": axis, "shards": n})
                return


def _striped(ev: Evidence, axis: int, channel: int, n: int) -> float | None:
    if n > 1:  # a cheap look at one stripe of one batch entry
        r, p = ev.r[:1].chunk(n, axis)[0], ev.p[:1].chunk(n, axis)[0]
        a, b = grouped_affine(p, r, [channel])
        if float(torch.linalg.vector_norm(p - a * r - b)) > 3 * allowance(ev) * (
            float(torch.linalg.vector_norm(p - r)) + 1e-6 * float(torch.linalg.vector_norm(r))
        ):
            return None
    pieces = []
    for r, p in zip(ev.r.chunk(n, axis), ev.p.chunk(n, axis), strict=True):
        reduced = [i for i in range(r.ndim) if i not in {0, channel}]
        mr, mp = r.mean(reduced, keepdim=True), p.mean(reduced, keepdim=True)
        a = ((r - mr) * (p - mp)).mean(reduced, keepdim=True) / ((r - mr) ** 2).mean(reduced, keepdim=True).clamp_min(
            1e-300
        )
        pieces.append(a * (r - mr) + mp)
    return accept(ev, torch.cat(pieces, axis))


def short_tail(ev: Evidence) -> Iterator[Explanation]:
    """Only the last few tokens differ, the others are equal: the remainder of a sequence split over ranks (D3, a
    hint).
    """
    if not comparable(ev, 32) or ev.kind in {"weight", "mask", "schedule"}:
        return
    names = roles(ev.r.shape, kind_of(ev))
    axis = next((i for i, role in enumerate(names) if role == "n"), None)
    if axis is None or ev.r.shape[axis] < 8:
        return
    rest = tuple(i for i in range(ev.r.ndim) if i != axis)
    size = torch.linalg.vector_norm(ev.d, dim=rest)
    own = torch.linalg.vector_norm(ev.r, dim=rest)
    wrong = torch.nonzero(size > (1e-7 + 4 * noise_level(ev)) * own.clamp_min(1e-12)).reshape(-1)
    n, tokens = len(wrong), ev.r.shape[axis]
    if 0 < n <= 0.2 * tokens and int(wrong[0]) == tokens - n and n < tokens // 2:
        text = (
            f"only the last {n} of {tokens} tokens differ, the others are equal: a remainder or padding of the sequence"
        )
        yield Explanation(text, 0.0, 0.45, {"axis": axis, "tail": n, "error": number(ev.error)})


HYPOTHESES: tuple[Hypothesis, ...] = (
    Hypothesis("bias_per_rank", "D1", bias_per_rank, 0.95),
    Hypothesis("same_shard", "D2", same_shard, 0.9),
    Hypothesis("shard_statistics", "A7", shard_statistics, 0.6),
    Hypothesis("spatial_statistics", "D4", spatial_statistics, 0.5),
    Hypothesis("split_norm", "D4", split_norm, 0.8),
    Hypothesis("short_tail", "D3", short_tail, 0.1),
)
