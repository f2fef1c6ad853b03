"""Solver steps: which update formula turned x and the output into the next latent (BUGS.md T4, T7, T8, T9)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import combinations

import torch
from torch import Tensor

from parity.diagnose.evidence import Evidence, Explanation, as_float64, relative_error
from parity.diagnose.roles import (
    agreement,
    comparable,
    confidence,
    fitted,
    like_reference,
    limit,
    memo,
    surroundings,
)


def _combination(ev: Evidence, target: Tensor, parts: list[Tensor], tolerance: float) -> Tensor | None:
    """Return the coefficients with target ≈ Σ c_i·parts_i to `tolerance` (relative), first on a sample, else None."""
    every = max(1, target.numel() // 8192)

    def solve(step: int) -> tuple[Tensor, float]:
        columns = torch.stack([part.flatten()[::step] for part in parts], 1)
        goal = target.flatten()[::step]
        answer = torch.linalg.lstsq(columns, goal[:, None]).solution[:, 0]
        return answer, relative_error(columns @ answer, goal)

    coefficients, error = solve(every)
    if error > tolerance:
        return None
    coefficients, error = solve(max(1, target.numel() // 200_000))
    return coefficients if error <= tolerance else None


def step_of(ev: Evidence) -> tuple[Tensor, Tensor, float, float, str] | None:
    """Return (x, v, α, β, name of v) with R = α·x + β·v for two tensors around R: a one-step solver."""

    def build(evidence: Evidence) -> tuple[Tensor, Tensor, float, float, str] | None:
        if not comparable(evidence) or evidence.reference.numel() < 16 or not evidence.reference.is_floating_point():
            return None
        if evidence.kind not in ("latent", "activation", "output", "input"):
            return None
        pool = like_reference(evidence)[:8]
        for (name_a, a), (name_b, b) in combinations(pool, 2):
            if abs(float((a * b).sum())) > 0.9999 * float(a.norm() * b.norm()):
                continue
            found = _combination(evidence, evidence.r, [a, b], agreement(evidence))
            if found is None or float(found.abs().min()) < 1e-9:
                continue
            first, second = float(found[0]), float(found[1])
            if abs(first - 1) <= abs(second - 1):
                return a, b, first, second, name_b
            return b, a, second, first, name_a
        return None

    return memo(ev, "solver step", build)


def surviving_history(ev: Evidence) -> Iterable[Explanation]:
    """T7: a latent is right in every earlier request and wrong in a later one: solver state survives from request to request."""
    request = ev.coords.get("request", 0)
    if ev.kind != "latent" or not comparable(ev) or request < 1 or not ev.table:
        return
    before = [row for row in ev.table if row[1].get("request", request) < request]
    here = [row for row in before if row[1].get("step") == ev.coords.get("step")]
    if here and all(error <= floor for _, _, error, floor in before):
        text = f"{len(before)} values of earlier requests are right, request {request} is not: solver history survives from one request to the next"
        yield Explanation(text, 0.5, 0.97, {"request": request, "right": len(before)}, "T7")


def solver_step(ev: Evidence) -> Iterable[Explanation]:
    """T4, T8: R = x + (σ' − σ)·v. P is in the plane of x and v too: sign, x0 reading, or another step; or it leaves the plane."""
    step = step_of(ev)
    if step is None:
        others = list(_other_coefficients(ev)) if ev.kind != "activation" or "step" in ev.coords else []
        yield from others or _plain_step_in_port(ev)
        return
    x, v, alpha, beta, _ = step
    found = _combination(ev, ev.p, [x, v], max(agreement(ev), limit(ev) * ev.error))
    if found is None:
        yield from _leaves_the_plane(ev, x, v, alpha, beta)
        return
    a, b = float(found[0]), float(found[1])
    explained = a * x + b * v
    values = {"reference": (alpha, beta), "port": (a, b)}
    slack = 1e-3 * max(abs(beta), 1e-6)
    if abs(alpha - 1) < 1e-4 and abs(a - 1) < 1e-4:
        if abs(b + beta) < slack:
            text = f"the solver step has the opposite sign: x − (σ' − σ)·v, step {b:.5g} instead of {beta:.5g}"
            yield from fitted(ev, x - beta * v, text, 0.985, "T8", **values)
            return
        near = _named_difference(ev, b)
        text = f"the solver steps by {b:.6g} instead of {beta:.6g}{near}"
        yield from fitted(ev, explained, text, 0.95 if near else 0.92, "T4", **values)
        return
    if abs(alpha - 1) < 1e-4 and abs(a + b - 1) < 1e-3:
        text = f"the model's output is taken as x0: P = {a:.5g}·x + {b:.5g}·output, where the reference adds {beta:.5g}·output"
        yield from fitted(ev, explained, text, 0.94, "T8", **values)
        return
    if abs(a) < 1e-6 and abs(b - 1) < 1e-4:
        yield from fitted(
            ev, v, "the port's latent is the model's output: no solver step was made", 0.9, "T4", **values
        )
        return
    text = f"the solver's update is {a:.5g}·x + {b:.5g}·v instead of {alpha:.5g}·x + {beta:.5g}·v"
    yield from fitted(ev, explained, text, 0.82, "T4", **values)


def _named_difference(ev: Evidence, step: float) -> str:
    """Say which two entries of a schedule around R the step is the difference of."""
    for name, table in surroundings(ev):
        values = as_float64(table).flatten()
        if not 3 <= values.numel() <= 256 or not table.is_floating_point():
            continue
        for i in range(values.numel() - 1):
            if math.isclose(float(values[i + 1] - values[i]), step, rel_tol=1e-3):
                return f": that of step {i} of the schedule ({name})"
    return ""


def _leaves_the_plane(ev: Evidence, x: Tensor, v: Tensor, alpha: float, beta: float) -> Iterator[Explanation]:
    """P needs a third tensor: an older output (another order, or history that survived), or noise added by a stochastic solver."""
    older = [(n, t) for n, t in [*like_reference(ev), *_earlier(ev)] if t is not x and t is not v]
    for name, third in older[:12]:
        found = _combination(ev, ev.p, [x, v, third], max(agreement(ev), 0.5 * limit(ev) * ev.error))
        if found is None or abs(float(found[2])) * float(third.norm()) < 0.1 * float(ev.d.norm()):
            continue
        explained = found[0] * x + found[1] * v + found[2] * third
        values = {"reference": (alpha, beta), "port": found.tolist(), "history": name}
        if ev.coords.get("step") == 0:
            text = f"the first step already uses an older output ({name}): solver history of an earlier run survives"
            yield from fitted(ev, explained, text, 0.85, "T7", **values)
        else:
            text = f"the port's step uses an older output too ({name}): a multistep solver where the reference makes one step of x and v"
            yield from fitted(ev, explained, text, 0.88, "T4", **values)
        return


def _earlier(ev: Evidence) -> Iterator[tuple[str, Tensor]]:
    for name, value in ev.earlier.items():
        if tuple(value.shape) == tuple(ev.reference.shape) and value.is_floating_point():
            yield name, as_float64(value)


def _other_coefficients(ev: Evidence) -> Iterator[Explanation]:
    """T4: R and P are the same three tensors added up with other coefficients: a multistep update with a wrong ratio or order."""
    if not comparable(ev) or ev.reference.numel() < 64 or ev.kind not in ("latent", "activation", "output"):
        return
    for parts in combinations(like_reference(ev)[:10], 3):
        tensors = [part for _, part in parts]
        ours = _combination(ev, ev.r, tensors, agreement(ev))
        if ours is None or float(ours.abs().min()) < 1e-6:
            continue
        theirs = _combination(ev, ev.p, tensors, max(agreement(ev), 0.5 * limit(ev) * ev.error))
        if theirs is None:
            continue
        explained = sum((c * t for c, t in zip(theirs, tensors, strict=True)), torch.zeros_like(ev.p))
        names = ", ".join(name for name, _ in parts)
        said = [", ".join(f"{float(c):.5g}" for c in some) for some in (theirs, ours)]
        text = f"the update adds up {names} with {said[0]} instead of {said[1]}"
        yield from fitted(ev, explained, text, 0.9, "T4", reference=ours.tolist(), port=theirs.tolist())
        return


def _plain_step_in_port(ev: Evidence) -> Iterator[Explanation]:
    """T4: R is no combination of two tensors around it, P is x + c·v: a plain Euler step in place of the reference's solver."""
    if not comparable(ev) or ev.kind not in ("latent", "output") or ev.reference.numel() < 64 or ev.error < 5e-3:
        return
    pool = [*like_reference(ev)[:8], *list(_earlier(ev))[-1:]]  # a step begins at the latent before
    for (_, a), (_, b) in combinations(pool, 2):
        found = _combination(ev, ev.p, [a, b], agreement(ev) * 0.1)
        if found is None or float(found.abs().min()) < 1e-6:
            continue
        first, second = float(found[0]), float(found[1])
        if min(abs(first - 1), abs(second - 1)) < 1e-4:
            text = f"the port makes a plain Euler step (x {second if abs(first - 1) < 1e-4 else first:+.5g}·v); the reference's step is not one"
            yield from fitted(ev, found[0] * a + found[1] * b, text, 0.88, "T4", port=(first, second))
            return


def solver_rounding(ev: Evidence) -> Iterable[Explanation]:
    """T9: P = bf16(R), or the step computed in bf16/fp16, for latents; the reverse: R is rounded and P is not."""
    if ev.kind != "latent" or not ev.same_shape or ev.error <= ev.floor or not ev.reference.is_floating_point():
        return
    if not bool(torch.isfinite(ev.r).all() and torch.isfinite(ev.p).all()) or ev.error > 0.05:
        return
    step = step_of(ev) if comparable(ev) else None
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):

        def low(t: Tensor, dtype: torch.dtype = dtype) -> Tensor:
            return t.to(dtype).to(torch.float64)

        options = [(low(ev.r), f"the latent is rounded to {name} after the step")]
        if step is not None:
            x, v, alpha, beta, _ = step
            options += [
                (
                    low(low(alpha * x) + low(low(v) * float(low(torch.tensor(beta))))),
                    f"the solver's arithmetic is in {name}",
                ),
                (alpha * x + beta * low(v), f"the model's output is rounded to {name} before the step"),
            ]
        for explained, text in options:
            if torch.equal(explained, ev.r):
                continue
            residual = ev.residual(explained)
            if residual <= 0.02:
                yield Explanation(text, residual, 0.9, {"dtype": name}, "T9")
                return
        if bool((low(ev.p) == ev.r).all()) and not torch.equal(ev.p, ev.r):
            text = f"the reference's latent is the port's rounded to {name}: the port keeps a higher precision in the solver"
            yield Explanation(text, 0.0, 0.85, {"dtype": name}, "T9")
            return


def parametrisation(ev: Evidence) -> Iterable[Explanation]:
    """T8: P = ±R + c·x (or c·noise): the output was turned into another parametrisation (ε, v, x0)."""
    if (
        not comparable(ev)
        or ev.kind not in ("output", "latent")
        or ev.reference.numel() < 64
        or step_of(ev) is not None
    ):
        return
    for name, x in like_reference(ev)[:6]:
        found = _combination(ev, ev.p, [ev.r, x], max(agreement(ev), 0.5 * limit(ev) * ev.error))
        if found is None or abs(float(found[1])) < 1e-2 or abs(float(found[0])) < 1e-2:
            continue
        a, b = float(found[0]), float(found[1])
        simple = any(math.isclose(abs(value), 1.0, rel_tol=1e-3) for value in (a, b))
        if not simple:
            continue
        text = f"P = {a:.4g}·R {b:+.4g}·{name}: the output is in another parametrisation (ε, v or x0)"
        explained = a * ev.r + b * x
        residual = ev.residual(explained)
        if residual <= limit(ev):
            yield Explanation(text, residual, confidence(ev, residual, 0.8), {"coefficients": (a, b)}, "T8")
            return
