"""Weights: what happened to a parameter between the checkpoint and the module that uses it.

Classes: W1 W2 W3 W4 W5 W6 W7 W8 W9 W10 W11 W12 W13 of the bug list. A divergence at a module whose parameters differ
is explained
through the parameters: each differing pair is diagnosed as a record of its own, with every test that works on two
tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from . import layout, precision, quantisation
from .evidence import Evidence, Explanation, Hypothesis, as_float64
from .fits import comparable, number, sample_index

MAX_PARAMETERS = 8
MAX_NUMEL = 40_000_000


def missing(ev: Evidence) -> Iterator[Explanation]:
    """P_w is another tensor of the checkpoint, or has the statistics of an initialiser and nothing of R_w (W2)."""
    if ev.kind != "weight" or not comparable(ev, 4):
        return
    for name, pair in ev.parameters.items():
        for side, other in zip(("reference", "port"), pair, strict=True):
            if other is None or name == ev.site or tuple(other.shape) != tuple(ev.r.shape):
                continue
            residual = ev.residual(as_float64(other))
            if residual < 1e-6 and (not other.is_floating_point() or other.element_size() == 1):
                text = f"P is the quantised payload {name} itself: its scale was never applied"
                yield Explanation(text, residual, 0.98, {"equals": name}, "W1")
                return
            if residual < 1e-6:
                yield Explanation(
                    f"P is the {side}'s {name}, not its own tensor: tied or mapped wrongly",
                    residual,
                    0.95,
                    {"equals": name},
                )
                return
    for name, other in ev.weights.items():
        if tuple(other.shape) == tuple(ev.r.shape) and ev.r.ndim >= 2 and ev.residual(as_float64(other)) < 1e-6:
            yield Explanation(f"P is the reference's {name}: tied or mapped wrongly", 0.0, 0.95, {"equals": name})
            return
    flat = ev.p.reshape(-1)
    if bool((flat == 1).all()) and float(ev.r.std()) > 0:
        yield Explanation(
            "P is one everywhere, as a norm's gain is made: the stored gain was never loaded",
            0.0,
            0.93,
            {"init": "ones"},
        )
        return
    init = _initialiser(ev)
    if init:
        yield Explanation(f"P has nothing of R and the statistics of {init}: never loaded", 0.0, 0.86, {"init": init})


def _initialiser(ev: Evidence) -> str:
    """Name the initialiser that P looks drawn from, when P is unrelated to R: torch's uniform of a linear layer, or
    N(0, 0.02).
    """
    if ev.p.numel() < 256 or ev.p.ndim < 2:
        return ""
    cosine = float((ev.p * ev.r).sum() / (torch.linalg.vector_norm(ev.p) * torch.linalg.vector_norm(ev.r) + 1e-300))
    if abs(cosine) > 5 / ev.p.numel() ** 0.5 + 0.01:
        return ""
    bound = (ev.p[0].numel()) ** -0.5
    top, std = float(ev.p.abs().max()), float(ev.p.std())
    if 0.97 * bound < top <= bound * 1.0001 and abs(std / bound * 3**0.5 - 1) < 0.05:
        return f"torch's default uniform initialisation (±{number(bound)})"
    if abs(std / 0.02 - 1) < 0.05 and abs(float(ev.p.mean())) < 0.002:
        return "a normal initialisation of std 0.02"
    return ""


def damaged(ev: Evidence) -> Iterator[Explanation]:
    """Bit-equal but for a few elements or rows with unrelated values (W13)."""
    if ev.kind != "weight" or not comparable(ev, 64):
        return
    wrong = ev.p != ev.r
    share = float(wrong.double().mean())
    if not 0 < share < 0.2:
        return
    rows = wrong.reshape(wrong.shape[0], -1).any(dim=1)
    flat = torch.nonzero(wrong.reshape(-1)).reshape(-1)
    span = int(flat[-1] - flat[0]) + 1
    if float(rows.double().mean()) > 0.5 and span > 4 * len(flat):
        return
    where = f"rows {torch.nonzero(rows).reshape(-1).tolist()[:8]}" if wrong.ndim > 1 else f"entries {flat[:8].tolist()}"
    text = f"P is bit-equal to R but for {len(flat)} of {wrong.numel()} elements ({where}): a damaged or patched file"
    yield Explanation(text, 0.0, 0.8, {"count": len(flat), "first": int(flat[0]), "last": int(flat[-1])})


# What is asked about one differing parameter. Each works on two tensors, kind "weight".
ONE_WEIGHT: tuple[Hypothesis, ...] = (
    Hypothesis("missing_weight", "W2", missing, 0.9),
    Hypothesis("damaged_weight", "W13", damaged, 0.5),
)
ALL_TESTS: tuple[Hypothesis, ...] = (*ONE_WEIGHT, *layout.HYPOTHESES, *precision.HYPOTHESES, *quantisation.HYPOTHESES)


def differing(ev: Evidence) -> list[tuple[str, Tensor, Tensor, float]]:
    """Parameters whose values differ by more than their stored dtype explains: name, both, relative error, largest
    error first.
    """
    found = []
    for name, (ref, port) in ev.parameters.items():
        if ref is None or port is None or tuple(ref.shape) != tuple(port.shape) or not 0 < ref.numel() <= MAX_NUMEL:
            continue
        if not ref.is_floating_point() or ref is port:
            continue
        index = sample_index(ref.numel(), 65536)
        r, p = as_float64(ref.reshape(-1)[index]), as_float64(port.reshape(-1)[index])
        if torch.equal(r, p) and (ref.numel() <= 65536 or torch.equal(ref.double(), port.double())):
            continue
        error = float(torch.linalg.vector_norm(p - r)) / (float(torch.linalg.vector_norm(r)) or 1.0)
        found.append((name, ref, port, error if error == error else float("inf")))
    return sorted(found, key=lambda item: -item[3])


def in_parameters(ev: Evidence) -> Iterator[Explanation]:
    """A parameter of the culprit differs: diagnose that pair and say which parameter (W1 to W13)."""
    if ev.kind == "weight":
        return
    pairs = differing(ev)
    if not pairs:
        return
    same_cast = _common_cast(pairs)
    if same_cast:
        everywhere = len(pairs) == sum(r is not None and r.is_floating_point() for r, _ in ev.parameters.values())
        if not everywhere or ev.error < 0.05:
            names = [name for name, *_ in pairs]
            text = (
                f"{_listed(names)} {'is' if len(names) == 1 else 'are'} the reference's rounded to "
                f"{same_cast} (keep them in full precision)"
            )
            parameters = {"parameter": names[0], "all": names[:16], "dtype": same_cast}
            stored = any(port.element_size() <= 2 for _, _, port, _ in pairs)  # else rounded, then widened again
            trust = 0.93 if not everywhere else 0.6 if stored else 0.88
            yield Explanation(text, 0.05, trust, parameters, "W11")
        return
    for name, ref, port, error in pairs[:MAX_PARAMETERS]:
        best = diagnose_one(ev, name, ref, port)
        if best is not None:
            hypothesis, found = best
            # the parameter is the cause, what its effect looks like is not
            trust = min(0.98, found.confidence + 0.05) if len(pairs) <= 4 else found.confidence * 0.95
            yield replace(
                found,
                text=f"parameter {name}: {found.text}",
                confidence=trust,
                parameters={"parameter": name, "how": hypothesis.name, **found.parameters},
                class_id=found.class_id or hypothesis.class_id,
            )
        elif error > 1e-6:
            text = f"parameter {name} differs (relative error {number(error)}), which explains a difference here"
            yield Explanation(text, 0.5, 0.55, {"parameter": name, "error": error}, "W13")


def diagnose_one(ev: Evidence, name: str, ref: Tensor, port: Tensor) -> tuple[Hypothesis, Explanation] | None:
    """The best explanation of one parameter pair, or None."""
    pair = Evidence(ref, port, site=name, kind="weight", module=ev.module, parameters=ev.parameters, weights=ev.weights)
    found: list[tuple[float, Hypothesis, Explanation]] = []
    for hypothesis in ALL_TESTS:
        for explanation in hypothesis.test(pair):
            if explanation.confidence >= 0.5:
                found.append((explanation.confidence + 0.05 * hypothesis.simplicity, hypothesis, explanation))
    if not found:
        return None
    _, hypothesis, explanation = max(found, key=lambda item: item[0])
    return hypothesis, explanation


def _common_cast(pairs: Iterable[tuple[str, Tensor, Tensor, float]]) -> str:
    """The dtype to which every differing port parameter is the reference's rounding, or ""."""
    pairs = list(pairs)
    for dtype, name in ((torch.bfloat16, "bfloat16"), (torch.float16, "float16")):
        if all(torch.equal(as_float64(ref.to(dtype)), as_float64(port)) for _, ref, port, _ in pairs):
            return name
    return ""


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def absent(ev: Evidence) -> Iterator[Explanation]:
    """Low-rank adapters that only one side has, when the other parameters pair up (W8)."""
    if ev.kind == "weight" or len(ev.parameters) < 1:
        return
    lost = [name for name, (ref, port) in ev.parameters.items() if ref is not None and port is None]
    paired = sum(ref is not None and port is not None for ref, port in ev.parameters.values())
    if not lost or not paired:
        return  # with no pair at all the names were never aligned
    if not all("lora" in name.lower() for name in lost):
        return  # a parameter without a partner says nothing about this difference
    text = f"the port's module has no {_listed(lost)}"
    yield Explanation(text, 0.5, 0.5, {"parameters": lost[:16]}, "W8")


def settings_differ(ev: Evidence) -> Iterator[Explanation]:
    """A scalar setting of the aligned module differs between the sides (W12). A hint: other families verify eps,
    theta, shift.
    """
    for name, (ref, port) in ev.settings.items():
        if not _scalar(ref) or not _scalar(port) or ref == port or _same_number(ref, port):
            continue
        text = f"setting {name} is {port!r} in the port and {ref!r} in the reference"
        yield Explanation(text, 0.5, 0.6, {"setting": name, "reference": ref, "port": port})


def _scalar(value: Any) -> bool:
    return isinstance(value, (int, float, str, bool)) or value is None


def _same_number(a: Any, b: Any) -> bool:
    return isinstance(a, (int, float)) and isinstance(b, (int, float)) and abs(a - b) <= 1e-9 * max(abs(a), abs(b))


def setting_given(ev: Evidence) -> Iterator[Explanation]:
    """A recorded input is one whole number or a flag, and another one: what was asked for differs (W12)."""
    if ev.kind != "input" or not ev.reference.numel() == ev.port.numel() == 1:
        return
    ours, theirs = float(ev.r.flatten()[0]), float(ev.p.flatten()[0])
    if ours == theirs or ours != round(ours) or theirs != round(theirs):
        return
    text = f"{ev.site} is {theirs:g} where the reference has {ours:g}: it is asked for something else"
    yield Explanation(text, 0.0, 0.94, {"reference": ours, "port": theirs})


HYPOTHESES: tuple[Hypothesis, ...] = (
    *ONE_WEIGHT,
    Hypothesis("parameter_differs", "W13", in_parameters, 0.9),
    Hypothesis("parameter_absent", "W2", absent, 0.4),
    Hypothesis("setting_differs", "W12", settings_differ, 0.5),
    Hypothesis("setting_given", "W12", setting_given, 0.5),
)
