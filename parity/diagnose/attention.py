"""Attention causes: mask, causal alignment, scale, kv heads, QK-norm scope, kernels, windows (BUGS.md A1–A11)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from parity.diagnose.attending import Attention, attend, causal, expanded, find, merged, visible_keys, weights
from parity.diagnose.attention_arguments import attention_arguments, in_context
from parity.diagnose.evidence import Evidence, Explanation, Hypothesis, as_float64, relative_error
from parity.diagnose.masks import describe
from parity.diagnose.norm_scopes import norm_scope, norm_skipped
from parity.diagnose.roles import (
    distinct,
    close,
    comparable,
    confidence,
    fitted,
    limit,
    memo,
    noise,
    surroundings,
)

ROWS = 24
NAMED_SCALES = (1.0, 2.0, 0.5, 4.0, 0.25, 8.0, 0.125)


# --- recomputed attention -----------------------------------------------------------------------------------------------------


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


def _like(ev: Evidence, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    for name, value in surroundings(ev)[:32]:
        if value.dim() != 4 or not value.is_floating_point():
            continue
        for view in (value, value.transpose(1, 2)):
            y = as_float64(view)
            if y.shape == x.shape and not torch.equal(y, x):
                yield name, y
                break


# --- the output alone ---------------------------------------------------------------------------------------------------------


def tiled_heads(ev: Evidence) -> Iterable[Explanation]:
    """A6 from the pattern alone: exactly the heads with h // n == h % g agree (a hint; recomputing is the proof)."""
    if not comparable(ev) or ev.reference.dim() != 4 or find(ev) is not None:
        return
    for axis in (1, 2):
        heads = ev.reference.shape[axis]
        if heads < 4 or heads > 256:
            continue
        error = ev.d.square().sum([x for x in range(4) if x != axis])
        exact = error <= 1e-10 * error.max()
        index = torch.arange(heads)
        for groups in [g for g in range(2, heads) if heads % g == 0]:
            if torch.equal(exact, index // (heads // groups) == index % groups):
                text = f"only heads {torch.nonzero(exact).flatten().tolist()} agree: {groups} kv heads tiled instead of repeated"
                yield Explanation(
                    text, 1.0, 0.6, {"kv_heads": groups, "heads": torch.nonzero(exact).flatten().tolist()}
                )
                return


def head_order(ev: Evidence) -> Iterable[Explanation]:
    """A10: P is R with heads in another order, or with head and token axes merged in the wrong order."""
    if not comparable(ev) or ev.reference.dim() not in (3, 4):
        return
    if ev.reference.dim() == 4:
        _, x, y, _ = ev.r.shape
        moved = ev.r.transpose(1, 2).contiguous().reshape(ev.r.shape)
        if x != y and x > 1 and y > 1 and not torch.equal(moved, ev.r):
            text = "head and token axes were exchanged by a reshape without a permute"
            yield from fitted(ev, moved, text, 0.95, "A10")
        for axis in (1, 2):
            yield from _heads_permuted(ev, axis)
        return
    b, n, c = ev.r.shape
    for heads in [h for h in (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40) if c % h == 0 and c // h >= 4]:
        split = ev.r.reshape(b, n, heads, c // heads).transpose(1, 2)
        scrambled = split.reshape(b, n, c)
        if ev.residual(scrambled) <= limit(ev):
            text = (
                f"the {heads} heads were merged without moving the head axis back: [b, h, n, d] reshaped to [b, n, h·d]"
            )
            yield from fitted(ev, scrambled, text, 0.97, "A10", heads=heads)
            return


def _heads_permuted(ev: Evidence, axis: int) -> Iterator[Explanation]:
    heads = ev.r.shape[axis]
    if not 2 <= heads <= 64 or ev.r.numel() // heads < 8:
        return
    a = ev.r.movedim(axis, 0).flatten(1)
    b = ev.p.movedim(axis, 0).flatten(1)
    step = max(1, a.shape[1] // 4096)
    distance = torch.cdist(b[:, ::step], a[:, ::step]) / torch.linalg.vector_norm(a[:, ::step], dim=1).clamp_min(1e-300)
    source = distance.argmin(1)
    near = distance[torch.arange(heads), source] <= max(1e-5, 3 * noise(ev))
    if bool(near.all()) and len(set(source.tolist())) == heads and source.tolist() != list(range(heads)):
        explained = ev.r.index_select(axis, source)
        text = f"axis {axis} (heads) is in another order: {source.tolist()[:16]}"
        yield from fitted(ev, explained, text, 0.8, "A10", order=source.tolist())


def masked_rows(ev: Evidence) -> Iterable[Explanation]:
    """A4: rows without a visible key give NaN, 0 or the mean of the values, by backend; the other rows agree."""
    if not ev.same_shape or ev.reference.dim() < 3 or not ev.reference.is_floating_point() or ev.reference.numel() == 0:
        return
    r, p = ev.r.flatten(0, -2), ev.p.flatten(0, -2)
    kinds_r, kinds_p = _row_kind(r), _row_kind(p)
    fine = (kinds_r == 0) & (kinds_p == 0)
    odd = kinds_r != kinds_p
    if not bool(odd.any()) or not bool(fine.any()) or float(odd.sum()) > 0.5 * len(r):
        return
    tolerance = max(1e-5, 3 * noise(ev))
    if relative_error(p[fine], r[fine]) > tolerance:
        return
    names = ("a value", "0", "NaN")
    pair = {(names[int(x)], names[int(y)]) for x, y in zip(kinds_r[odd], kinds_p[odd], strict=True)}
    if len(pair) != 1 or not _some_mask_hides_all(ev):
        return
    ours, theirs = pair.pop()
    text = (
        f"{int(odd.sum())} fully masked rows are {theirs} in the port and {ours} in the reference; the other rows agree"
    )
    yield Explanation(text, 0.0, 0.85, {"rows": int(odd.sum()), "port": theirs, "reference": ours})


def _row_kind(x: Tensor) -> Tensor:
    return torch.where(torch.isnan(x).all(-1), 2, torch.where((x == 0).all(-1), 1, 0))


def _some_mask_hides_all(ev: Evidence) -> bool:
    """Say whether a mask near R has a row that is all of one value, so that it may hide every key."""
    known = [v for _, v in surroundings(ev) if v.dtype == torch.bool and v.dim() >= 1]
    return any(not bool(v.any(-1).all()) or bool(v.all(-1).any()) for v in known)


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


# --- masks as records ---------------------------------------------------------------------------------------------------------


def mask_record(ev: Evidence) -> Iterable[Explanation]:
    """A1–A4, A11, K6 on the masks themselves: kind "mask", or booleans, or 0/1 integers, or 0/−inf."""
    if ev.reference.numel() < 2 or ev.port.numel() < 2 or ev.reference.numel() > 50_000_000:
        return
    ours, theirs = _as_keep(ev.reference, ev.kind), _as_keep(ev.port, ev.kind)
    if ours is None or theirs is None:
        return
    if ours.shape[-1] > theirs.shape[-1] and bool(theirs.all()) and int(ours.sum(-1).max()) == theirs.shape[-1]:
        text = f"the port attends to {theirs.shape[-1]} keys without the reference's hidden slots: its cache is missing or laid out otherwise"
        yield Explanation(text, 0.0, 0.95, {"reference": ours.shape[-1], "port": theirs.shape[-1]}, "K3")
        return
    slots = ours.dim() == theirs.dim() == 1 and ours.shape != theirs.shape and "frame" in ev.coords
    if slots and int(ours.sum()) == int(theirs.sum()) and not bool(ours.all()):
        text = (
            f"the cache has {len(theirs)} slots instead of {len(ours)}: the window of another layer or another length"
        )
        yield Explanation(text, 0.0, 0.95, {"reference": len(ours), "port": len(theirs)}, "K6")
        return
    change = describe(ours, theirs)
    if change is None:
        return
    frame = ev.coords.get("frame")
    text = change.text + (f" (frame {frame})" if frame is not None else "")
    yield Explanation(text, 0.0, change.confidence, change.parameters, change.class_id)


def _as_keep(mask: Tensor, kind: str) -> Tensor | None:
    if mask.dtype == torch.bool:
        return mask.cpu() if kind in ("mask", "kv", "input", "activation") else None
    if kind != "mask" or mask.is_complex():
        return None
    values = as_float64(mask)
    if bool(((values == 0) | (values == 1)).all()):
        return values == 1
    if bool((values <= 0).all()) and bool((values < -1e3).any()):
        return values > -1e3
    return None


def visible_count(ev: Evidence) -> Iterable[Explanation]:
    """K6, K3, A2 on counts of visible keys (kind "mask", whole numbers): P sees n keys where R sees m."""
    if ev.kind != "mask" or not ev.same_shape or ev.reference.dtype == torch.bool or ev.reference.numel() > 64:
        return
    r, p = ev.r.flatten(), ev.p.flatten()
    if (
        r.numel() == 0
        or bool(((r == 0) | (r == 1)).all())
        or not bool((r == r.round()).all() and (p == p.round()).all())
    ):
        return
    moved = torch.nonzero(r != p).flatten()
    if not len(moved) or bool((r < 0).any()):
        return
    at = int(moved[0])
    ours, theirs = int(r[at]), int(p[at])
    few = theirs < ours
    text = f"the port sees {theirs} keys, the reference {ours}: " + (
        "history is missing" if few else "too many keys are visible"
    )
    yield Explanation(text, 0.0, 0.7, {"reference": ours, "port": theirs}, "K6")


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
