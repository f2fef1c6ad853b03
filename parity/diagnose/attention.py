"""Attention causes: mask, causal alignment, scale, kv heads, QK-norm scope, kernels, windows (BUGS.md A1–A11)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from parity.diagnose.attending import Attention, attend, causal, expanded, find, merged, visible_keys, weights
from parity.diagnose.attention_arguments import attention_arguments, in_context
from parity.diagnose.attention_outputs import head_order, mask_record, masked_rows, tiled_heads, visible_count
from parity.diagnose.evidence import Evidence, Explanation, Hypothesis, as_float64, relative_error
from parity.diagnose.masks import describe
from parity.diagnose.norm_scopes import norm_scope, norm_skipped
from parity.diagnose.roles import (
    close,
    confidence,
    distinct,
    limit,
    memo,
    noise,
    surroundings,
)

ROWS = 24
NAMED_SCALES = (1.0, 2.0, 0.5, 4.0, 0.25, 8.0, 0.125)


def _rows(a: Attention, most: int) -> Attention:
    count = a.q.shape[2]
    return a.at(distinct(torch.linspace(0, count - 1, min(count, most)).long())) if a.rows is None else a


def _small(ev: Evidence) -> Attention | None:
    """Return the recomputed attention on a few queries that differ; None when there is none or both sides agree there."""

    def build(evidence: Evidence) -> Attention | None:
        a = find(evidence)
        if a is None or not bool(torch.isfinite(a.p).all()):
            return None
        wrong = (a.p - a.r).square().sum((0, 2))
        if float(wrong.sum()) <= 0:
            return None
        # the queries of an even grid and those with the largest error: local causes show in the latter only
        even = torch.linspace(0, len(wrong) - 1, min(len(wrong), ROWS)).long()
        return a.at(distinct(torch.cat([even, wrong.topk(min(len(wrong), 8)).indices])))

    return memo(ev, "attention rows", build)


def _residual(a: Attention, explained: Tensor) -> float:
    whole = float(torch.linalg.vector_norm(a.p - a.r))
    return float(torch.linalg.vector_norm(a.p - explained)) / whole if whole > 0 else math.nan


def _fit(
    ev: Evidence,
    a: Attention,
    how: Callable[[Attention], Tensor],
    text: str,
    class_id: str,
    best: float = 0.97,
    **values: object,
) -> Iterator[Explanation]:
    """Yield an explanation if `how`, applied to a few queries and then to many, gives the port's value."""
    if not _residual(a, how(a)) <= limit(ev):
        return
    whole = find(ev)
    assert whole is not None  # `a` is cut from it
    b, h, i, _ = whole.q.shape
    wide = (
        whole if b * h * i * whole.k.shape[2] <= 8_000_000 else whole.at(distinct(torch.linspace(0, i - 1, 96).long()))
    )
    residual = _residual(wide, how(wide))
    if residual <= limit(ev):
        yield Explanation(text, residual, confidence(ev, residual, best), values, class_id)


def softmax_scale(ev: Evidence) -> Iterable[Explanation]:
    """A5: P = softmax(c·scale·qkᵀ)v. The factor c is searched on a grid, then refined."""
    a = _small(ev)
    if a is None or a.k.shape[2] < 2:
        return
    d, h = a.q.shape[-1], a.q.shape[1]
    named = {1.0: "1", 1 / math.sqrt(d): f"1/sqrt({d})", 1 / d: f"1/{d}", 1 / math.sqrt(d * h): f"1/sqrt({d * h})"}
    named |= {a.scale**2: "the square of the scale", a.scale * math.log2(math.e): "the scale times log2(e)"}

    def at(scale: float) -> float:
        return _residual(a, attend(replace(a, scale=scale)))

    options = [
        *named,
        *(a.scale * factor for factor in NAMED_SCALES),
        *(a.scale * 2.0 ** (n / 2) for n in range(-12, 13)),
    ]
    options = [s for s in dict.fromkeys(options) if not math.isclose(s, a.scale, rel_tol=1e-9)]
    scale = min(options, key=at)
    if at(scale) > limit(ev) and at(scale) < 0.9:
        scale = _refine(at, scale)
    if math.isclose(scale, a.scale, rel_tol=1e-4):
        return
    said = next((text for value, text in named.items() if math.isclose(value, scale, rel_tol=1e-4)), f"{scale:.6g}")
    ours = next((text for value, text in named.items() if math.isclose(value, a.scale, rel_tol=1e-4)), f"{a.scale:.6g}")
    text = f"attention ran with scale {said} instead of {ours} ({scale / a.scale:.4g} times)"
    yield from _fit(ev, a, lambda x: attend(replace(x, scale=scale)), text, "A5", scale=scale, ratio=scale / a.scale)


def _refine(at: Callable[[float], float], start: float) -> float:
    low, high = math.log(start) - 0.4, math.log(start) + 0.4
    for _ in range(32):
        third = (high - low) / 3
        if at(math.exp(low + third)) < at(math.exp(high - third)):
            high -= third
        else:
            low += third
    return math.exp((low + high) / 2)


def attention_mask(ev: Evidence) -> Iterable[Explanation]:
    """A1, A2, A3, A11, K3, K6: P is the same attention with other visible keys; the likely masks first, then read off P itself."""
    a = _small(ev)
    if a is None or a.k.shape[2] < 2:
        return
    whole = find(ev)
    assert whole is not None
    i, j = whole.q.shape[2], whole.k.shape[2]
    for keep in _likely_masks(ev, whole):
        small = a if keep is None else replace(a, keep=keep if keep.shape[-2] == 1 else keep[..., a.query_index(), :])
        if keep is None:
            small = replace(a, keep=None)
        if _residual(a, attend(small)) > limit(ev):
            continue
        change = in_context(ev, describe(_full(whole.keep, i, j), _full(keep, i, j)), i, j)
        if change is None:
            continue

        def masked(x: Attention, keep: Tensor | None = keep) -> Tensor:
            if keep is None or keep.shape[-2] == 1 or x.rows is None:
                return attend(replace(x, keep=keep))
            return attend(replace(x, keep=keep[..., x.rows, :]))

        yield from _fit(ev, a, masked, change.text, change.class_id, change.confidence, **change.parameters)
        return
    yield from _read_mask(ev, a)


def _full(keep: Tensor | None, i: int, j: int) -> Tensor:
    if keep is None:
        return torch.ones(1, 1, i, j, dtype=torch.bool)
    return keep.expand(*keep.shape[:2], i, j)


def _likely_masks(ev: Evidence, a: Attention) -> Iterator[Tensor | None]:
    i, j = a.q.shape[2], a.k.shape[2]
    if a.keep is not None:
        yield None
        yield ~a.keep
    base = torch.ones(1, 1, 1, j, dtype=torch.bool) if a.keep is None else a.keep
    if i > 1:
        yield base & causal(i, j)
        if i != j:
            yield base & causal(i, j, bottom_right=True)
        yield causal(i, j)
        yield causal(i, j, bottom_right=True)
    elif i == 1:
        yield causal(1, j)
    for _, value in surroundings(ev)[:32]:
        if value.dtype == torch.bool and value.dim() in (1, 2) and value.shape[-1] == j:
            mask = value.cpu()
            mask = mask[None, None, None] if mask.dim() == 1 else mask[:, None, None]
            if mask.shape[0] in (1, a.q.shape[0]):
                yield mask
                yield ~mask


def _read_mask(ev: Evidence, a: Attention) -> Iterator[Explanation]:
    """Solve for the keys that the port used, and say how they differ from the reference's."""
    seen = visible_keys(replace(a, keep=None))
    if seen is None:
        return
    i, j = a.q.shape[2], a.k.shape[2]
    explained = _weighted(a, seen)
    residual = _residual(a, explained)
    if residual > limit(ev):
        return
    ours, theirs = _full(a.keep, i, j)[:, 0].expand(seen.shape), seen > 0
    sure = confidence(ev, residual, 0.95)
    if bool((seen > 1).any()):
        twice = torch.nonzero((seen > 1).any(0).any(0)).flatten()
        text = f"{len(twice)} keys are attended more than once: a copy was appended to the cache"
        yield Explanation(text, residual, 0.9 * sure, {"twice": twice.tolist()[:64]}, "K3")
        return
    own = torch.zeros(j, dtype=torch.bool)
    count = find(ev).q.shape[2]  # type: ignore[union-attr]
    if j > count:
        own[j - count :] = True
        if bool(ours.all()) and bool((theirs == own).all()):
            text = f"only the newest {count} keys are visible, the query's own: the cached history is not used"
            yield Explanation(text, residual, sure, {"visible": count}, "K3")
            return
    change = in_context(ev, describe(ours, theirs), count, j)
    if change is not None:
        yield Explanation(change.text, residual, sure * change.confidence, change.parameters, change.class_id)


def _weighted(a: Attention, counts: Tensor) -> Tensor:
    """Attend with key multiplicities [b, i, j]."""
    free = replace(a, keep=None)
    w = weights(free) * counts[:, None]
    w = w / w.sum(-1, keepdim=True).clamp_min(1e-300)
    return merged(a, w @ expanded(a.v, a.q.shape[1], "repeat"))


def zero_keys(ev: Evidence) -> Iterable[Explanation]:
    """A2: n zero keys and values are attended too (padding, unwritten slots): P/R = Z/(Z + n) per query and head."""
    a = _small(ev)
    if a is None or a.project is not None:
        return
    k = expanded(a.k, a.q.shape[1], "repeat")
    logits = a.scale * a.q @ k.transpose(-1, -2) + (a.bias if a.bias is not None else 0.0)
    if a.keep is not None:
        logits = logits.masked_fill(~a.keep, -math.inf)
    mass = torch.logsumexp(logits, -1)  # [b, h, i]
    r, p = a.heads(a.r), a.heads(a.p)
    ratio = (r * p).sum(-1) / r.square().sum(-1).clamp_min(1e-300)
    extra = mass.exp() * (1 / ratio.clamp_min(1e-12) - 1)
    count = float(extra.median())
    if not 0.5 < count < 1e6:
        return
    n = round(count)
    j = a.k.shape[2]
    where = f": {j} keys padded to {j + n}" if (j + n) % 16 == 0 else " (padding or unwritten cache slots)"
    text = f"{n} zero keys and values are attended besides the {j} real ones{where}"

    def with_zeros(x: Attention) -> Tensor:
        keys = expanded(x.k, x.q.shape[1], "repeat")
        values = x.scale * x.q @ keys.transpose(-1, -2) + (x.bias if x.bias is not None else 0.0)
        if x.keep is not None:
            values = values.masked_fill(~x.keep, -math.inf)
        total = torch.logsumexp(values, -1)
        damped = x.heads(x.r) * torch.sigmoid(total - math.log(n))[..., None]
        return merged(x, damped)

    yield from _fit(ev, a, with_zeros, text, "A2", zero_keys=n)


def kv_expansion(ev: Evidence) -> Iterable[Explanation]:
    """A6: kv heads tiled (h mod g) instead of repeated (h // n), or the reverse; heads with h//n == h%g agree."""
    a = _small(ev)
    if a is not None and 1 < a.kv_heads < a.q.shape[1]:
        text = f"the {a.kv_heads} kv heads are tiled (h % {a.kv_heads}) instead of repeated for the {a.q.shape[1]} query heads"
        yield from _fit(ev, a, lambda x: attend(x, "tile"), text, "A6", kv_heads=a.kv_heads)
        return
    if a is not None:
        h = a.q.shape[1]
        for groups in [g for g in range(2, h) if h % g == 0]:
            for made, how in (("repeat", "tiled instead of repeated"), ("tile", "repeated instead of tiled")):
                index = torch.arange(h) // (h // groups) if made == "repeat" else torch.arange(h) % groups
                first = torch.stack([torch.nonzero(index == g)[0, 0] for g in range(groups)])
                if not torch.equal(a.k[:, first][:, index], a.k):
                    continue
                other = torch.arange(h) % groups if made == "repeat" else torch.arange(h) // (h // groups)

                def exchanged(x: Attention, pick: Tensor = first[other]) -> Tensor:
                    return attend(replace(x, k=x.k[:, pick], v=x.v[:, pick]))

                yield from _fit(ev, a, exchanged, f"the {groups} kv heads are {how}", "A6", kv_heads=groups)


def other_operands(ev: Evidence) -> Iterable[Explanation]:
    """A8/K family: the same attention with other keys or values: k and v exchanged, heads across tokens, tensors of another record."""
    a = _small(ev)
    if a is None:
        return
    if a.k.shape == a.v.shape:
        yield from _fit(ev, a, lambda x: attend(replace(x, k=x.v, v=x.k)), "keys and values are exchanged", "W3", 0.95)
    yield from _across_heads(ev, a)
    yield from _values_of_other_heads(ev, a)
    for name, x in _like(ev, a.k):
        text = f"the keys of another tensor ({name}) were used"
        class_id = "K5"
        if close(x.norm(dim=-1), a.k.norm(dim=-1), 1e-4):
            text, class_id = "keys before the rotary embedding were used (cached or passed before it)", "K7"
        yield from _fit(ev, a, _with(k=x), text, class_id, 0.93, tensor=name)
    for name, x in _like(ev, a.v):
        text = f"the values of another tensor ({name}) were used"
        yield from _fit(ev, a, _with(v=x), text, "K5", 0.9, tensor=name)


def _with(k: Tensor | None = None, v: Tensor | None = None) -> Callable[[Attention], Tensor]:
    return lambda a: attend(replace(a, k=a.k if k is None else k, v=a.v if v is None else v))


def _across_heads(ev: Evidence, a: Attention) -> Iterator[Explanation]:
    whole = find(ev)
    assert whole is not None
    if a.project is not None or a.keep is not None or whole.q.shape[:3] != whole.k.shape[:3] or whole.q.shape[1] < 2:
        return
    q, k, v = (x.transpose(1, 2) for x in (whole.q, whole.k, whole.v))
    if q.numel() > 4_000_000:
        return
    out = torch.softmax(whole.scale * q @ k.transpose(-1, -2), -1) @ v  # [b, i, h, e]
    explained = out.flatten(2)

    def across(x: Attention) -> Tensor:
        return explained if x.rows is None else explained[:, x.rows]

    text = (
        "attention runs across the heads of each token instead of across tokens: head and sequence axes are exchanged"
    )
    yield from _fit(ev, a, across, text, "A10", 0.97)


def _values_of_other_heads(ev: Evidence, a: Attention) -> Iterator[Explanation]:
    """Head i attends as it should but to the values of head π(i): the weights of each head tell which values it read."""
    h = a.q.shape[1]
    if a.project is not None or not 2 <= h <= 64:
        return
    w, v, p = weights(a), expanded(a.v, h, "repeat"), a.heads(a.p)
    if v.shape[-1] * h != a.p.shape[-1]:
        return
    norms = [torch.linalg.vector_norm(w[:, i : i + 1] @ v - p[:, i : i + 1], dim=(0, 2, 3)) for i in range(h)]
    order = torch.stack(norms).argmin(1)
    if len(set(order.tolist())) < h or order.tolist() == list(range(h)):
        return
    text = f"the heads of the values are in another order: {order.tolist()[:16]}"
    yield from _fit(
        ev,
        a,
        lambda x: merged(x, weights(x) @ expanded(x.v, h, "repeat")[:, order]),
        text,
        "A10",
        0.95,
        order=order.tolist(),
    )


def _like(ev: Evidence, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    for name, value in surroundings(ev)[:32]:
        if value.dim() != 4 or not value.is_floating_point():
            continue
        for view in (value, value.transpose(1, 2)):
            y = as_float64(view)
            if y.shape == x.shape and not torch.equal(y, x):
                yield name, y
                break


def kernel_fault(ev: Evidence) -> Iterable[Explanation]:
    """A8, A9: recomputing attention from the captured q, k, v gives R; the port's kernel got the same operands and gave something else."""
    a = find(ev)
    if a is None:
        return
    finite = bool(torch.isfinite(a.p).all())
    if not finite and bool(torch.isfinite(a.r).all()):
        worst = max(float(x.abs().max()) for x in (a.q, a.k, a.v))
        text = f"the attention kernel gives non-finite values from finite q, k and v (largest {worst:.3g}); recomputing is finite"
        yield Explanation(text, 0.0, 0.9, {"largest": worst}, "A9")
        return
    if _same_operands(ev) and not any(True for test in _EXPLAINING for _ in test(ev)):
        text = "the attention kernel got the operands of the reference (checked) and gave another result: kernel or stride fault"
        yield Explanation(text, 1.0, 0.55, {}, "A8")


def _same_operands(ev: Evidence) -> bool:
    """Say whether both sides made one fused attention call on equal tensors with equal arguments."""
    from parity.diagnose.attending import kernels

    ours, theirs = kernels(list(ev.ref_ops)), kernels(list(ev.port_ops))
    if len(ours) != 1 or len(theirs) != 1 or len(ours[0].inputs) != len(theirs[0].inputs):
        return False
    if any(x.shape != y.shape for x, y in zip(ours[0].inputs, theirs[0].inputs, strict=True)):
        return False
    same = all(
        relative_error(as_float64(y), as_float64(x)) <= max(1e-6, 2 * noise(ev))
        for x, y in zip(ours[0].inputs, theirs[0].inputs, strict=True)
    )
    keys = ("scale", "is_causal")
    return same and all(ours[0].scalars.get(key) == theirs[0].scalars.get(key) for key in keys)


_EXPLAINING = (softmax_scale, attention_mask, zero_keys, kv_expansion, other_operands)

HYPOTHESES: tuple[Hypothesis, ...] = (
    Hypothesis("attention arguments", "A5", attention_arguments, 0.85),
    Hypothesis("softmax scale", "A5", softmax_scale, 0.8),
    Hypothesis("attention mask", "A2", attention_mask, 0.75),
    Hypothesis("zero keys attended", "A2", zero_keys, 0.8),
    Hypothesis("kv head expansion", "A6", kv_expansion, 0.8),
    Hypothesis("other keys or values", "K5", other_operands, 0.6),
    Hypothesis("tiled heads", "A6", tiled_heads, 0.4),
    Hypothesis("norm scope", "A7", norm_scope, 0.7),
    Hypothesis("QK-norm missing", "A7", norm_skipped, 0.85),
    Hypothesis("head axis", "A10", head_order, 0.7),
    Hypothesis("fully masked rows", "A4", masked_rows, 0.6),
    Hypothesis("attention kernel", "A9", kernel_fault, 0.3),
    Hypothesis("mask", "A2", mask_record, 0.8),
    Hypothesis("visible keys", "K6", visible_count, 0.5),
)
