"""Values that were cut, rounded, or replaced by a constant: ranges, bytes, dropped conditions (BUGS.md C1, C8, N8, V10)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from .evidence import Evidence, Explanation, Hypothesis, as_float64, relative_error
from .fits import accept, affine_fit, comparable, number

CURVES: dict[str, Callable[[Tensor], Tensor]] = {
    "sign": torch.sign,
    "tanh": torch.tanh,
    "clamp to -1..1": lambda x: x.clamp(-1, 1),
    "clamp to 0..1": lambda x: x.clamp(0, 1),
    "round": torch.round,
}
BYTES = frozenset(["frame", "video", "image"])


def clipped(ev: Evidence) -> Iterator[Explanation]:
    """P == clip(a·R + b) with both ends reached or one: the range was cut before it was brought to where the reference has it (C8)."""
    if not comparable(ev, 64):
        return
    low, high = float(ev.p.min()), float(ev.p.max())
    inside = (ev.p > low) & (ev.p < high)
    cut = float(1 - inside.double().mean())
    if not 0.05 <= cut <= 0.98 or int(inside.sum()) < 16:
        return
    a, b = affine_fit(ev.p, ev.r)
    if accept(ev, a * ev.r + b) is not None:
        return  # not cut: the reference has the same ends
    a, b = affine_fit(ev.p[inside], ev.r[inside])
    if ev.kind in BYTES and float((ev.r - ev.r.round()).abs().max()) == 0:
        slack = max(1.0, abs(a)) / max(1e-12, float((ev.p - ev.r).abs().mean()))  # the reference is rounded to bytes
    else:
        slack = 0.0
    explained = (a * ev.r + b).clamp(low, high)
    residual = ev.residual(explained)
    if abs(a) < 1e-9 or residual > max(0.02, min(0.1, slack)):
        return
    text = f"P is {number(a)}·R {'+' if b >= 0 else '−'} {number(abs(b))}, cut to {number(low)}..{number(high)}: {100 * cut:.0f} % of the values are at an end"
    yield Explanation(text, residual, 0.9, {"factor": a, "offset": b, "low": low, "high": high})


def truncated(ev: Evidence) -> Iterator[Explanation]:
    """Bytes that are one lower, never higher: cut off where the reference rounds, or the other way round (V10)."""
    if not comparable(ev, 64) or ev.kind not in BYTES | {"activation", "output"}:
        return
    if (
        float((ev.r - ev.r.round()).abs().max()) > 0
        or float((ev.p - ev.p.round()).abs().max()) > 1e-3
        or float(ev.r.abs().max()) <= 2
    ):
        return
    d = (ev.p - ev.r).round()
    steps = set(d.unique().tolist())
    share = float((d != 0).double().mean())
    if steps == {-1.0, 0.0} and 0.1 < share < 0.9:
        text = f"{100 * share:.0f} % of the bytes are one lower, none is higher: truncated where the reference rounds"
        yield Explanation(text, 0.0, 0.95, {"share": share})
    elif steps == {0.0, 1.0} and 0.1 < share < 0.9:
        text = f"{100 * share:.0f} % of the bytes are one higher, none is lower: rounded where the reference truncates"
        yield Explanation(text, 0.0, 0.95, {"share": share})


def curve_over_calls(ev: Evidence) -> Iterator[Explanation]:
    """R_i == f(P_i) over all calls, for values too small to show it in one (C8): the port takes a value raw."""
    if ev.reference.numel() > 8 or not ev.reference.is_floating_point() or not ev.same_shape:
        return
    pairs = list(_over_calls(ev))
    if len(pairs) < 3:
        return
    r, p = torch.cat([r for r, _ in pairs]), torch.cat([p for _, p in pairs])
    if torch.unique(p).numel() < 3 or torch.allclose(r, p):
        return
    for side, x, y in (("reference", p, r), ("port", r, p)):
        for name, curve in CURVES.items():
            if torch.allclose(curve(x), y, rtol=1e-6, atol=1e-9) and torch.unique(y).numel() >= 2:
                raw = "takes the value raw" if side == "reference" else f"applies {name} to it"
                text = f"over {len(pairs)} calls the {side}'s value is {name} of the other's: the port {raw}"
                yield Explanation(text, 0.0, 0.93, {"curve": name, "calls": len(pairs)})
                return


def _over_calls(ev: Evidence) -> Iterator[tuple[Tensor, Tensor]]:
    for site, coords, _, _ in list(ev.table)[:256]:
        r, p = ev.ref_at(site, coords), ev.port_at(site, coords)
        if site == ev.site and r is not None and p is not None and r.shape == p.shape == ev.reference.shape:
            yield as_float64(r).flatten(), as_float64(p).flatten()


def constant_condition(ev: Evidence) -> Iterator[Explanation]:
    """P is one and the same where R changes from call to call: a null embedding or zeros stand for the condition (C1); at some
    calls only, without order: dropped at random, as in training (N8).
    """
    if not comparable(ev, 8) or ev.kind not in ("input", "activation"):
        return
    calls = list(_calls(ev))
    wrong = [(r, p) for _, r, p, same in calls if not same]
    right = [r for _, r, _, same in calls if same]
    if len(wrong) < 2 or not all(torch.equal(p, wrong[0][1]) for _, p in wrong):
        return
    constant = "zeros" if not bool(wrong[0][1].any()) else "the same values"
    rows = _one_row(wrong[0][1])
    if right and _no_order([(coords, same) for coords, _, _, same in calls]):
        text = f"at {len(wrong)} of {len(calls)} calls, in no order, {constant} stand for the condition: it is dropped at random, as in training"
        yield Explanation(text, 0.0, 0.93, {"calls": len(calls), "dropped": len(wrong)}, "N8")
    elif not right and (rows or len({tuple(r.flatten()[:16].tolist()) for r, _ in wrong}) > 1):
        text = f"P is {constant} at all {len(calls)} calls{' and for every token' if rows else ''}, where R changes: the condition is replaced by a constant"
        yield Explanation(text, 0.0, 0.85, {"calls": len(calls)}, "C1")


def _calls(ev: Evidence) -> Iterator[tuple[Mapping[str, int], Tensor, Tensor, bool]]:
    for site, coords, _, floor in list(ev.table)[:64]:  # the table may be of another run: what is random differs there
        r, p = ev.ref_at(site, coords), ev.port_at(site, coords)
        if site == ev.site and r is not None and p is not None and r.shape == p.shape == ev.reference.shape:
            left, right = as_float64(r), as_float64(p)
            yield coords, left, right, relative_error(right, left) <= max(floor, 1e-6)


def _one_row(value: Tensor) -> bool:
    return value.dim() >= 2 and value.shape[-2] > 1 and bool((value == value[..., :1, :]).all())


def _no_order(calls: list[tuple[Mapping[str, int], bool]]) -> bool:
    """Whether right and wrong calls come mixed: neither a first part nor a last one, nor the calls of one branch."""
    for axis in calls[0][0]:
        right, wrong = ([coords.get(axis) for coords, same in calls if same == which] for which in (True, False))
        if not set(right) & set(wrong) and len(set(right + wrong)) < len(calls):
            return False
    return sum(a != b for (_, a), (_, b) in itertools.pairwise(calls)) >= 2


HYPOTHESES = (
    Hypothesis("clipped range", "C8", clipped, 0.6),
    Hypothesis("truncated bytes", "V10", truncated, 0.8),
    Hypothesis("curve over calls", "C8", curve_over_calls, 0.7),
    Hypothesis("constant condition", "C1", constant_condition, 0.5),
)
