"""Attention calls compared argument by argument: which of q, k, v, scale and mask the port passed otherwise, and why."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from parity.diagnose.attending import Attention, attend, expanded
from parity.diagnose.attention_bias import biases, head_order
from parity.diagnose.attention_calls import Call, calls
from parity.diagnose.evidence import Evidence, Explanation, relative_error
from parity.diagnose.fits import scalar_fit
from parity.diagnose.masks import Change, describe
from parity.diagnose.roles import close, isolated, memo, noise, surroundings

SLACK = 1e-5


def pair_of_calls(ev: Evidence) -> tuple[Call, Call] | None:
    """Return the first attention call on both sides whose results differ; None when the sides made another number of calls."""

    def build(evidence: Evidence) -> tuple[Call, Call] | None:
        ours = calls(evidence.ref_ops)
        theirs = calls(evidence.port_ops) if ours else []
        if not ours or len(ours) != len(theirs):
            return None
        for a, b in zip(ours, theirs, strict=True):
            if a.out.shape != b.out.shape or not close(b.out, a.out, _near(evidence)):
                return a, b
        return None

    return memo(ev, "attention calls", build)


def _near(ev: Evidence) -> float:
    return max(1e-7 if isolated(ev) else SLACK, 2 * noise(ev))


def attention_arguments(ev: Evidence) -> Iterable[Explanation]:
    """A1–A3, A5–A7, A10, A11, K3, K6: name the argument of the port's attention call that differs; the others agree."""
    pair = pair_of_calls(ev)
    if pair is None:
        return
    ours, theirs = pair
    if not bool(torch.isfinite(theirs.out).all()) or theirs.faithful > max(1e-4, 3 * noise(ev)):
        return
    a, b = ours.attention, theirs.attention
    if a.q.shape != b.q.shape:
        yield from _other_heads(a, b)
        return
    near = _near(ev)
    found: list[Explanation] = []
    alone = _alone(a, b, theirs.out)
    if not close(b.q, a.q, near):
        found += list(_operand(ev, a.q, b.q, "queries"))
    if a.k.shape[2] != b.k.shape[2]:
        found += list(_other_keys(a, b, near))
    else:
        found += list(_keys_and_values(ev, a, b, near))
    # beside a bias, or a mask that the other side has not, the scale is a fit
    exact = 1e-5 if a.bias is None and b.bias is None else 1e-2
    if not math.isclose(a.scale, b.scale, rel_tol=exact):
        text = f"attention ran with scale {b.scale:.6g} instead of {a.scale:.6g} ({b.scale / a.scale:.4g} times)"
        found.append(Explanation(text, 0.0, 0.97, {"scale": b.scale, "ratio": b.scale / a.scale}, "A5"))
    if a.k.shape[2] == b.k.shape[2]:
        change = in_context(ev, describe(_keep(a), _keep(b)), a.q.shape[2], a.k.shape[2])
        if change is not None:
            found.append(Explanation(change.text, 0.0, change.confidence, change.parameters, change.class_id))
        found += list(biases(a, b, near))
    # an argument that is alone in differing explains everything; several share the blame
    one_cause = len({explanation.class_id for explanation in found}) == 1
    for explanation in found:
        yield explanation if alone or one_cause else replace(explanation, confidence=0.8 * explanation.confidence)


def in_context(ev: Evidence, change: Change | None, queries: int, keys: int) -> Change | None:
    """Call it padding (A2), not history (K6), where there are no more keys than queries or a padding mask is around."""
    if change is None or change.class_id != "K6":
        return change
    for name, mask in surroundings(ev):
        if _padding_like(mask, keys) and change.parameters.get("port") in (
            int(mask.sum(-1).max()),
            int((~mask).sum(-1).max()),
        ):
            text = f"{change.text} (those are set by the mask {name}: padding masked out, or its meaning inverted)"
            return replace(change, class_id="A2", text=text, confidence=0.95)
    if keys <= queries or any(_padding_like(v, keys) for _, v in surroundings(ev)):
        return replace(change, class_id="A2")
    return change


def _padding_like(mask: Tensor, keys: int) -> bool:
    return mask.dtype == torch.bool and 1 <= mask.dim() <= 2 and mask.shape[-1] == keys


def _alone(a: Attention, b: Attention, out: Tensor) -> bool:
    """Say whether exchanging one argument of the reference's call is enough to give the port's result."""
    options = [replace(a, q=b.q), replace(a, scale=b.scale)]
    if a.k.shape[2] == b.k.shape[2]:
        options += [
            replace(a, k=b.k),
            replace(a, v=b.v),
            replace(a, k=b.k, v=b.v),
            replace(a, keep=b.keep, bias=b.bias),
        ]
    return any(relative_error(attend(option), out) < 1e-4 for option in options)


def _keep(a: Attention) -> Tensor:
    b, h, i, _ = a.q.shape
    keep = torch.ones(1, 1, 1, a.k.shape[2], dtype=torch.bool) if a.keep is None else a.keep
    heads = keep[:, :1] if bool((keep == keep[:, :1]).all()) else keep.expand(-1, h, -1, -1)
    whole = heads.expand(-1, -1, i, -1)
    return whole[:1] if bool((whole == whole[:1]).all()) else whole.expand(b, -1, -1, -1)


def _other_heads(a: Attention, b: Attention) -> Iterator[Explanation]:
    h, g = a.q.shape[1], b.q.shape[1]
    if a.q.numel() == b.q.numel() and h != g:
        if a.q.shape[2] == g and b.q.shape[2] == h:
            text = "attention runs across heads instead of across tokens: head and sequence axes are exchanged"
            yield Explanation(text, 0.0, 0.96, {"heads": g}, "A10")
        else:
            text = f"attention is cut into {g} heads of {b.q.shape[-1]} instead of {h} of {a.q.shape[-1]}"
            yield Explanation(text, 0.0, 0.95, {"reference": h, "port": g}, "A10")
    elif h == g and a.q.shape[:3] == b.q.shape[:3] and b.q.shape[-1] < a.q.shape[-1]:
        d = b.q.shape[-1]
        if all(scalar_fit(y, x[..., :d])[1] < 1e-4 for x, y in ((a.q, b.q), (a.k, b.k)) if x.shape[:3] == y.shape[:3]):
            text = f"the scores are made of {d} of the {a.q.shape[-1]} entries of a head: the kernel cuts the head dimension"
            yield Explanation(text, 0.0, 0.96, {"reference": a.q.shape[-1], "port": d}, "A9")
    elif a.q.shape[2] == b.q.shape[2] and a.q.shape[-1] == b.q.shape[-1]:
        yield Explanation(f"the port attends with {g} heads, the reference with {h}", 0.0, 0.85, {"port": g}, "A10")


def _keys_and_values(ev: Evidence, a: Attention, b: Attention, near: float) -> Iterator[Explanation]:
    h = a.q.shape[1]
    ka, kb, va, vb = (
        expanded(a.k, h, "repeat"),
        expanded(b.k, h, "repeat"),
        expanded(a.v, h, "repeat"),
        expanded(b.v, h, "repeat"),
    )
    same_k, same_v = close(kb, ka, near), close(vb, va, near)
    if same_k and same_v:
        return
    if ka.shape == kb.shape == va.shape == vb.shape and close(kb, va, near) and close(vb, ka, near):
        yield Explanation("keys and values are exchanged", 0.0, 0.97, {}, "W3")
        return
    for groups in [g for g in range(2, h) if h % g == 0]:
        index = torch.arange(h) // (h // groups)
        first = torch.arange(groups) * (h // groups)
        if torch.equal(ka[:, first][:, index], ka):
            tile = first[torch.arange(h) % groups]
            if close(kb, ka[:, tile], near) and close(vb, va[:, tile], near):
                text = f"the {groups} kv heads are tiled (h % {groups}) instead of repeated for the {h} query heads"
                yield Explanation(text, 0.0, 0.97, {"kv_heads": groups}, "A6")
                return
    if not same_k:
        yield from _operand(ev, ka, kb, "keys")
    if not same_v:
        yield from _operand(ev, va, vb, "values")


def _other_keys(a: Attention, b: Attention, near: float) -> Iterator[Explanation]:
    """Name a difference in the number of keys by which rows of the reference's the port has."""
    h = a.q.shape[1]
    ours, theirs = expanded(a.k, h, "repeat"), expanded(b.k, h, "repeat")
    if ours.shape[:2] != theirs.shape[:2] or ours.shape[-1] != theirs.shape[-1]:
        return
    n, m, i = ours.shape[2], theirs.shape[2], a.q.shape[2]
    values = {"reference": n, "port": m}
    shown = int(_keep(b).sum(-1).max()), int(_keep(a).sum(-1).max())
    if m > n and close(theirs[:, :, :n], ours, near) and not bool(theirs[:, :, n:].any()) and shown[0] > shown[1]:
        text = f"{m - n} zero keys are attended besides the {n} real ones: padded to {m} without a mask"
        yield Explanation(text, 0.0, 0.97, values, "A2")
    elif m > n and close(theirs[:, :, m - n :], ours, near):
        yield Explanation(
            f"{m - n} older keys are visible too: the window holds {m} instead of {n}", 0.0, 0.93, values, "K6"
        )
    elif m < n and m == i and close(theirs, ours[:, :, n - m :], near):
        text = f"only the query's own {m} keys are there: the cached history of {n - m} is not used"
        yield Explanation(text, 0.0, 0.94, values, "K3")
    elif m < n and close(theirs, ours[:, :, n - m :], near):
        yield Explanation(f"the oldest {n - m} of {n} keys are missing", 0.0, 0.93, values, "K6")
    elif m < n <= i and close(theirs, ours[:, :, :m], near):  # no cache: more keys than queries it has not
        yield Explanation(f"the last {n - m} of {n} keys are dropped", 0.0, 0.93, values, "A2")
    elif m < n and close(theirs, ours[:, :, :m], near):
        yield Explanation(f"the newest {n - m} of {n} keys are missing", 0.0, 0.93, values, "K3")
    elif m > n and _subset(ours, theirs, near) == 1.0:
        text = f"the port attends to {m} keys, the reference to {n} of them: more history is visible"
        yield Explanation(text, 0.0, 0.8, values, "K6")
    elif m < n and _subset(theirs, ours, near) == 1.0:
        text = f"the port attends to {m} of the reference's {n} keys: history is missing"
        yield Explanation(text, 0.0, 0.85, values, "K6")


def _subset(few: Tensor, many: Tensor, near: float) -> float:
    """Return the share of rows of `few` [b, h, n, d] that are rows of `many`."""
    a, b = few[0].transpose(0, 1).flatten(1), many[0].transpose(0, 1).flatten(1)
    if max(len(a), len(b)) > 8192:
        return 0.0
    nearest = torch.cdist(a, b).amin(1) / torch.linalg.vector_norm(a, dim=1).clamp_min(1e-300)
    return float((nearest <= max(near, 1e-6)).double().mean())


def _operand(ev: Evidence, ours: Tensor, theirs: Tensor, what: str) -> Iterator[Explanation]:
    """Test the position and norm hypotheses on one operand, with what the operations before it read as its surroundings."""
    if ours.shape != theirs.shape:
        return
    order = head_order(ours, theirs, _near(ev))
    if order is not None:
        text = f"the heads of the {what} of the attention are in another order: {order[:16]}"
        yield Explanation(text, 0.0, 0.95, {"order": order}, "A10")
        return
    around: dict[str, Tensor] = {}
    for index, (name, value) in enumerate(surroundings(ev)):
        if value.shape == ours.shape:
            around[f"{name} {index}"] = value
        elif value.dim() == 4 and value.transpose(1, 2).shape == ours.shape:
            around[f"{name} {index}"] = value.transpose(1, 2)
    around = dict(list(around.items())[:20])
    inner = Evidence(
        reference=ours,
        port=theirs,
        kind="activation",
        module=ev.module,
        floor=ev.floor,
        coords=ev.coords,
        precise=ours if isolated(ev) else None,
        inputs=around,
        parameters=ev.parameters,
        ref_ops=(),
    )
    best: Explanation | None = None
    for test, class_id in _operand_tests():
        for found in test(inner):
            if best is None or found.confidence > best.confidence:
                best = replace(found, class_id=found.class_id or class_id)
    if best is not None:
        text = f"the {what} of the attention differ: {best.text}"
        yield replace(best, text=text, confidence=0.97 * best.confidence)


def _operand_tests() -> list:  # type: ignore[type-arg]
    from parity.diagnose import norms, positions
    from parity.diagnose.norm_scopes import norm_scope, norm_skipped

    tests = [(norm_scope, "A7"), (norm_skipped, "A7")]
    return tests + [
        (h.test, h.class_id) for h in (*positions.HYPOTHESES, *norms.HYPOTHESES) if h.name not in ("gain weight",)
    ]
