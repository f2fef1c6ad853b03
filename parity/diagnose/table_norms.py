"""What an edit inside a norm is called: eps, variance, axes, mean (BUGS.md N1, N3, N7, N8)."""

from __future__ import annotations

from parity.capture.operations import Op

from .prints import near, print_of
from .view import NORMS, REDUCTIONS, ROOTS, Named, View, at, number


def norm_eps(v: View) -> Named | None:
    """Name another eps."""
    for op, name, ours, theirs in v.numbers:
        root = (op.name in ("add", "clamp_min", "maximum", "clamp")) and (
            op.whole in NORMS or v.into & ROOTS or set(v.own_names) & ROOTS
        )
        if name == "eps" or (root and name in ("other", "min")):
            which = f"the {_norm_name(op)} has" if op.whole in NORMS or v.into & ROOTS else f"{op.name} runs with"
            return Named("N1", f"{which} eps {number(theirs)} instead of {number(ours)}{at(op)}")
    return None


def _norm_name(op: Op) -> str:
    return {"native_layer_norm": "layer norm", "native_group_norm": "group norm"}.get(op.whole, "norm")


def norm_left_eps(v: View) -> Named | None:
    """Name an eps that one side adds and the other does not."""
    if v.only is None or v.only[1] != ["add"] or not v.into & ROOTS or "other" not in v.only[2][0].scalars:
        return None
    op = v.only[2][0]
    return Named("N1", f"eps {number(op.scalars['other'])} is {v.only[0]} by the port{at(op)}")


def norm_variance(v: View) -> Named | None:
    """Name the variance: biased or not, of the batch or kept."""
    for op, name, ours, theirs in v.numbers:
        if name in ("correction", "unbiased") and op.name in REDUCTIONS:
            return Named("N3", f"the variance has correction {theirs} instead of {ours} (biased or not){at(op)}")
        if name == "training":
            return Named(
                "N8", f"the norm runs with training={theirs} instead of {ours}: statistics of the batch{at(op)}"
            )
    if any(op.name in NORMS and op.scalars.get("training") for op in v.own):
        return Named("N8", f"the norm takes the statistics of the batch (training){at(v.own[-1])}")
    return None


def norm_axes(v: View) -> Named | None:
    """Name statistics over other axes."""
    mine = next((op for op in v.own if op.name in REDUCTIONS), None)
    theirs = next((op for op in v.ref if op.name in REDUCTIONS), None)
    if (
        mine is None
        or theirs is None
        or mine.name != theirs.name
        or v.numbers
        or not mine.outputs
        or not theirs.outputs
    ):
        return None
    if mine.outputs[0].numel() == theirs.outputs[0].numel() or mine.inputs[0].numel() != theirs.inputs[0].numel():
        return None
    a, b = (
        theirs.inputs[0].numel() // max(1, theirs.outputs[0].numel()),
        mine.inputs[0].numel() // max(1, mine.outputs[0].numel()),
    )
    return Named("N7", f"{mine.name} runs over {b} numbers instead of {a}: the statistics are of other axes{at(mine)}")


def other_axis(v: View) -> Named | None:
    """The same operation on the same numbers in the same shape, along another axis."""
    if len(v.ref) != 1 or v.ref_names != v.own_names or v.numbers:
        return None
    mine, theirs = v.own[0], v.ref[0]
    if len(mine.inputs) != len(theirs.inputs):
        return None
    axes = [op.scalars.get("dim") for op in (theirs, mine)]
    same = [
        a.shape == b.shape and near(print_of(a), print_of(b), ordered=True)
        for a, b in zip(theirs.inputs, mine.inputs, strict=True)
    ]
    if None in axes or axes[0] == axes[1] or not all(same) or mine.name == "cat":
        return None
    return Named("N7", f"{mine.name} runs along axis {axes[1]} instead of {axes[0]}{at(mine)}")


def norm_kind(v: View) -> Named | None:
    """Name a mean that one side removes."""
    if v.only is None or not v.only[2]:
        return None
    which, names, ops = v.only
    if (
        "sub" in names
        and "mean" in names
        and len(names) <= 3
        and (v.into & (ROOTS | {"pow", "mul", "square", "native_layer_norm"}))
    ):
        return Named(
            "N3",
            f"the mean is {'removed' if which == 'added' else 'not removed'} by the port before the norm{at(ops[-1])}",
        )
    return None
