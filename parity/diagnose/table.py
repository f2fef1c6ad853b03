"""What an edit is called: one table from edits to the class ids of BUGS.md and a sentence. The first row that fits counts.

A row looks at operations and values only: what each side runs in the edit's region, which numbers differ, and what the result goes into.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from parity.capture.operations import Op

from .graph import MOVES, Graph
from .prints import near, print_of
from .search import Edit
from .table_masks import SOFTMAX, other_mask
from .table_norms import norm_axes, norm_eps, norm_kind, norm_left_eps, norm_variance, other_axis
from .table_taken import (
    FILLS,
    adapter_strength,
    another_constant,
    another_filling,
    another_value,
    drawn,
    fixed_statistics,
    other_settings,
)
from .view import (
    ACTIVATIONS,
    ANGLES,
    BOUNDS,
    DROPOUT,
    HIDING,
    NORMS,
    ORDERS,
    PADS,
    PICTURE,
    POOLS,
    ROOTS,
    ROUNDING,
    Named,
    View,
    at,
    describe,
    goes_into,
    listed,
    number,
    said,
)

MOST_OF_A_RESIZE = 12  # operations: in larger regions other things differ besides
ARITHMETIC = frozenset(["add", "sub", "mul", "div"])


def name_edit(edit: Edit, port: Graph, kind: str) -> Named:
    """Return the class and the sentence of an edit."""
    view = View(edit, port, kind)
    for row in ROWS:
        found = row(view)
        if found is not None:
            return found
    return Named("N5", said(edit), False)


def _exchange(v: View) -> Named | None:
    if v.edit.kind != "exchanged" or not v.edit.port.ops:
        return None
    shape, maker = v.edit.other.shape, v.edit.at[0]
    weight = maker < 0 or all(u not in v.port.made for u in v.port.inputs[maker])
    vector = not weight and all(n == 1 for n in shape[1:-1])
    op = v.edit.port.ops[0]
    if len(v.edit.at) == 3 and v.port.made.get(v.edit.at[1]) != v.port.made.get(v.edit.at[2]):
        makers = [v.port.ops[v.port.made[u]] for u in v.edit.at[1:] if u in v.port.made]
        if v.kind == "latent" and v.edit.other.numel() == 1:
            return Named("T8", f"two coefficients change places{at(makers[-1]) if makers else ''}")
        return Named("W3", f"two values change places{at(makers[-1]) if makers else ''}")
    if not weight and op.scalars.get("dim", 0) == 0 and op.name in ("split", "split_with_sizes", "unbind"):
        return Named("C1", f"two parts of the batch that {describe(op)} makes are exchanged: the branches of guidance")
    return Named("W5" if vector else "W3", f"two parts of what {describe(op)} makes are exchanged")


def _kept(v: View) -> Named | None:
    """What one call keeps for the next: written otherwise, read by one side only."""
    ours, theirs = v.edit.reference, v.edit.port
    if v.numbers:
        return None  # what is kept is right, but for a number
    if any(op.earlier for op in (*v.ref, *v.own)):
        return Named("K1", f"what is kept for later calls differs: {said(v.edit)}")
    if theirs.kept and not ours.kept and v.own and not set(v.own_names) <= FILLS:
        return Named("K4", f"the port goes on with what an earlier call left, the reference does not: {said(v.edit)}")
    if ours.kept and not theirs.kept and v.ref:
        return Named("K3", f"the reference goes on with what an earlier call left, the port does not: {said(v.edit)}")
    return None


def _repeated(v: View) -> Named | None:
    """What the port runs once more is what it has just run: the same operations made their first input."""
    if v.only is None or v.only[0] != "added" or not v.own_names:
        return None
    graph, region = v.port, v.edit.port
    told = [i for i, op in zip(region.places, region.ops, strict=True) if op in v.own]
    before: list[str] = []
    at_ = graph.inputs[told[0]][0] if told and graph.inputs[told[0]] else -1
    while len(before) < len(told) and at_ in graph.made:
        i = graph.made[at_]
        op = graph.ops[i]
        if op.name not in MOVES:
            before.insert(0, op.name)
        made = [u for u in graph.inputs[i] if u in graph.made]
        at_ = made[0] if made else -1
    if before != v.own_names or set(before) <= ARITHMETIC:
        return None
    return Named("N6", f"the port runs {listed(v.own_names)} twice{at(v.own[-1])}")


def _computed(v: View) -> Named | None:
    """The port holds as a constant what the reference makes of its weights, and it has other values."""
    if v.only is None or v.only[0] != "left out" or v.edit.kind != "operand" or v.edit.reference.moving:
        return None
    if v.edit.user is None or (v.edit.at[1:] and v.port.inputs[v.edit.at[0]][v.edit.at[1]] in v.port.made):
        return None
    if any(near(print_of(v.edit.other), print_of(t)) for t in v.edit.reference.operands):
        return None  # it is what the reference makes it of
    angles = goes_into(v.port, v.edit, frozenset(["mm", "bmm", "pow", "reciprocal", "exp"])) & ANGLES
    return Named(
        "P5" if angles else "W13",
        f"the port's constant differs from what the reference makes by {listed(v.ref_names)}{at(v.edit.user)}",
    )


def _order(v: View) -> Named | None:
    if v.edit.kind != "order" or v.edit.user is None:
        return None
    op = v.edit.user
    if op.name == "cat" and v.into & {"mul"} and _turned(v, op):
        return Named("P1", f"the parts of a rotation are joined in another order by {describe(op)}")
    if op.name == "cat":
        return Named("C5", f"the parts are joined in another order by {describe(op)}")
    if op.name in ("sub", "rsub"):
        return Named(
            "T8" if v.kind == "latent" else "N5", f"the operands of {describe(op)} are exchanged: the sign is reversed"
        )
    return Named("W3", f"the operands of {describe(op)} are in another order")


def _turned(v: View, op: Op) -> bool:
    """Tell whether what is joined are two parts of one value, one of them with its sign reversed, as a rotation is written."""
    i = v.port.ops.index(op)
    makers = [v.port.ops[v.port.made[u]] for u in v.port.inputs[i] if u in v.port.made]
    return len(v.port.inputs[i]) == 2 and sum(maker.name == "neg" for maker in makers) == 1


def _activation(v: View) -> Named | None:
    mine, theirs = _activations(v.own), _activations(v.ref)
    small = len(v.own) <= 8 and len(v.ref) <= 8
    if mine and theirs and mine != theirs and small:
        return Named("N2", f"the activation is {' then '.join(mine)} instead of {' then '.join(theirs)}{at(v.own[-1])}")
    for op, name, ours, other in v.numbers:
        if op.name in ACTIVATIONS or name == "approximate":
            return Named("N2", f"the activation {op.name} runs with {name}={other} instead of {ours}{at(op)}")
    return None


def _activations(ops: tuple[Op, ...]) -> list[str]:
    plain = [op for op in ops if op.name in ACTIVATIONS or op.name == "tanh"]
    return [op.name if not op.scalars.get("approximate") else f"{op.name}({op.scalars['approximate']})" for op in plain]


def _scale(v: View) -> Named | None:
    if not (v.into | (goes_into(v.port, v.edit, frozenset(["bmm"])) if v.numbers else frozenset())) & SOFTMAX:
        return None
    for op, name, ours, theirs in v.numbers:
        if op.name in ("mul", "div") and name == "other":
            return Named(
                "A5",
                f"attention ran with scale {number(theirs if op.name == 'mul' else 1 / theirs)} instead of {number(ours if op.name == 'mul' else 1 / ours)}{at(op)}",
            )
    names = set(v.ref_names) | set(v.own_names)
    products = {"mm", "bmm", "matmul"}
    if (
        names & {"mul", "div"}
        and names <= {"mul", "div"} | products
        and all(len(op.inputs) == 1 or op.name in products for op in (*v.ref, *v.own))
    ):
        mine, theirs = _factor(v.own), _factor(v.ref)
        where = at((v.own or v.ref)[-1])
        return Named("A5", f"attention scores are scaled by {number(mine)} instead of {number(theirs)}{where}")
    return None


def _factor(ops: tuple[Op, ...]) -> float:
    product = 1.0
    for op in ops:
        if op.name not in ("mul", "div"):
            continue
        other = op.scalars.get("other", 1)
        product = product * other if op.name == "mul" else product / other
    return product


def _angle(v: View) -> Named | None:
    names = set(v.ref_names) | set(v.own_names)
    if not (v.into | names) & ANGLES:
        return None
    if v.numbers:
        op, name, ours, theirs = v.numbers[0]
        class_id = "P2" if op.name in ("add", "sub", "arange") else "P5"
        what = "positions are offset" if class_id == "P2" else "the angles are scaled"
        return Named(
            class_id, f"{what}: {op.name} with {name} {number(theirs)} instead of {number(ours)}{at(op)}", False
        )
    if v.only is not None and v.only[1] == ["add"] and len(v.only[2][0].inputs) == 1:
        op = v.only[2][0]
        if not _in_equal_steps(v.edit.value):
            return Named(
                "T2", f"the angles of the time are offset: {op.name} is {v.only[0]} by the port{at(op)}", False
            )
        return Named(
            "P2",
            f"positions are offset: {op.name} of {number(op.scalars.get('other'))} is {v.only[0]} by the port{at(op)}",
        )
    if v.only is not None and set(v.only[1]) <= {"mul", "div"} and all(len(op.inputs) == 1 for op in v.only[2]):
        class_id, whose = ("P5", "positions") if _in_equal_steps(v.edit.value) else ("T6", "time")
        factor = number(_factor(v.only[2]))
        return Named(
            class_id,
            f"the angles of the {whose} are scaled: a factor of {factor} is {v.only[0]} by the port{at(v.only[2][-1])}",
            False,
        )
    if v.only is not None and v.only[1] == ["neg"]:
        return Named("P7", f"the rotation has the opposite sign: neg is {v.only[0]} by the port{at(v.only[2][0])}")
    if _reversed(v):
        return Named("P7", f"the rotation has the opposite sign: {said(v.edit)}")
    return None


def _in_equal_steps(angles: Tensor) -> bool:
    """Tell whether angles grow by equal steps along an axis of three or more, as those of positions do and those of a time do not."""
    if not angles.is_floating_point():
        return True
    small = 1e-6 * float(angles.abs().max())
    axes = [axis for axis, n in enumerate(angles.shape) if n >= 3]
    return any(
        bool((angles.diff(n=2, dim=axis).abs() <= small).all()) and bool((angles.diff(dim=axis).abs() > small).any())
        for axis in axes
    )


def _padding(v: View) -> Named | None:
    for op, name, ours, theirs in v.numbers:
        if (
            name in ("padding", "count_include_pad", "pad") and op.name in POOLS | PADS | {"convolution"}
        ) or op.name in PADS:
            return Named("V3", f"{op.name} runs with {name} {theirs} instead of {ours}: other padding{at(op)}")
        if op.name == "convolution" or op.name in POOLS:
            return Named("W12", f"{op.name} runs with {name} {theirs} instead of {ours}{at(op)}")
    pads = [n for n in (*v.own_names, *v.ref_names) if n in PADS]
    if pads and set(v.own_names) ^ set(v.ref_names) and len(v.own) + len(v.ref) <= 6:
        return Named(
            "V3",
            f"the port pads with {listed(v.own_names)} where the reference runs {listed(v.ref_names)}{at((v.own or v.ref)[0])}",
        )
    return None


def _bounds(v: View) -> Named | None:
    ops = (*v.ref, *v.own)
    affine = all(op.name in BOUNDS or (op.name in ARITHMETIC and len(op.inputs) == 1) for op in ops)
    if not affine or not {op.name for op in ops} & BOUNDS:
        return None
    class_id = "V10" if v.kind in PICTURE else "C8"
    return Named(class_id, f"the values are bounded otherwise: {said(v.edit)}")


def _rounding(v: View) -> Named | None:
    names = set(v.ref_names) | set(v.own_names)
    if not names & ROUNDING or not names <= ROUNDING | {"clamp", "_to_copy", "div", "mul", "add"}:
        return None
    return Named("V10" if v.kind in PICTURE else "Q2", f"the values are rounded otherwise: {said(v.edit)}")


def _dropped(v: View) -> Named | None:
    if set(v.own_names) & DROPOUT:
        return Named("N8", f"dropout is active in the port{at(v.own[0])}")
    return None


def _resize(v: View) -> Named | None:
    names = [n for n in (*v.ref_names, *v.own_names) if n.startswith(("upsample_", "_upsample_", "grid_sampl"))]
    if not names or len(v.ref) + len(v.own) > MOST_OF_A_RESIZE:
        return None
    return Named("C6", f"the resize differs: {said(v.edit)}", len(v.ref_names) <= 3)


def _only(v: View) -> Named | None:
    """One side runs something that the other does not."""
    if v.only is None:
        return None
    which, names, ops = v.only
    verb = "leaves out" if which == "left out" else "also runs"
    text = f"the port {verb} {listed(names)}{at(ops[-1])}"
    small = len(names) <= 4
    first = set(names)
    if first <= HIDING | ORDERS | {"add", "scalar_tensor", "full", "ones"} and first & (HIDING | ORDERS):
        return Named("A2", text, small)
    if names == ["roll"] or names == ["flip"]:
        return Named("C7" if names == ["flip"] else "D3", text, False)
    if first <= BOUNDS:
        return Named("V10" if v.kind in PICTURE else "C8", text)
    if names == ["add"] and which == "added" and _twice(v, ops[0]):
        return Named("N6", f"{text}: its operand was added before")
    if any(op.whole in NORMS or op.name in NORMS for op in ops) and which == "added":
        return Named("N6" if _twice(v, ops[0]) else "N5", text, small)
    if first <= {"mul", "div"} and all(len(op.inputs) == 1 for op in ops):
        if v.kind == "latent":
            return Named("C10", f"{text}: the factor {number(_factor(ops))}")
        return Named("N5", f"{text}: the factor {number(_factor(ops))}", v.kind not in ("schedule",))
    return Named("N5", text)


def _twice(v: View, op: Op) -> bool:
    """Tell whether one of the operands went into an operation of this name on the way to the other one before."""
    graph, i = v.port, v.edit.port.places[v.edit.port.ops.index(op)]
    given = graph.inputs[i]
    for u in given if len(given) == 2 else ():
        other = given[1 - given.index(u)]
        if any(graph.ops[j].name == op.name and u in graph.inputs[j] for j in graph.cone(other)):
            return True
    return False


def _constant(v: View) -> Named | None:
    """The same operations with other numbers."""
    if not v.numbers or len(v.own) > 8:
        return None
    op, name, ours, theirs = v.numbers[0]
    if isinstance(ours, (int, float)) and ours == -theirs and not isinstance(ours, bool):
        return Named(
            "T8" if v.kind == "latent" else "N5", f"{op.name} runs with the opposite sign, {name} {theirs}{at(op)}"
        )
    pairs = list(dict.fromkeys((number(b), number(a)) for _, _, a, b in v.numbers))
    said_ = ", ".join(f"{b} instead of {a}" for b, a in pairs[:3])
    if op.name == "add" and name == "alpha" and isinstance(ours, (int, float)) and ours == -theirs:
        return Named("T8" if v.kind == "latent" else "N5", f"a term is added with the opposite sign{at(op)}")
    return Named("W12", f"the port runs {op.name} with {name} {said_}{at(op)}")


def _reversed(v: View) -> bool:
    """Tell whether one side takes from what the other side takes away."""
    return sorted([v.ref_names, v.own_names]) == [["rsub"], ["sub"]] and torch.allclose(v.edit.value, -v.edit.other)


def _sign(v: View) -> Named | None:
    if (
        sorted([v.ref_names, v.own_names]) == [["add"], ["sub"]]
        or (v.only is not None and v.only[1] == ["neg"])
        or _reversed(v)
    ):
        op = (v.own or v.ref)[0]
        return Named(
            "T8" if v.kind == "latent" else "N5",
            f"the sign of a term is reversed: {said(v.edit)}{'' if v.own else at(op)}",
        )
    return None


def _operand(v: View) -> Named | None:
    """The same operation on something else."""
    if v.edit.kind != "operand" or v.ref or v.own or v.edit.user is None:
        return None
    return Named("C2", f"{describe(v.edit.user)} takes another value than in the reference", False)


def _same(v: View) -> Named | None:
    """The same operations in another order, or on other operands."""
    if not v.ref or sorted(v.ref_names) != sorted(v.own_names) or len(v.ref) > 6:
        return None
    if v.ref_names == v.own_names:
        if v.ref_names == ["cat"]:
            return Named("C5", f"the parts are joined in another order{at(v.own[-1])}")
        return Named("N5", f"{listed(v.own_names)} run on other operands than in the reference{at(v.own[-1])}", False)
    return Named(
        "N3" if set(v.own_names) & (ROOTS | NORMS) else "N5",
        f"the port runs {listed(v.own_names)} in another order than the reference's {listed(v.ref_names)}{at(v.own[-1])}",
        False,
    )


def _replaced(v: View) -> Named | None:
    if not v.ref or not v.own:
        return None
    return Named("N5", said(v.edit), len(v.ref) + len(v.own) <= 3)


ROWS: tuple[Callable[[View], Named | None], ...] = (
    _kept, _repeated, _computed, _exchange, _order, _dropped, norm_variance, norm_eps, norm_left_eps, other_mask, _scale, _angle, norm_axes, other_axis, norm_kind, _activation, _padding, adapter_strength, other_settings, another_filling, drawn, fixed_statistics, _resize,
    _bounds, _rounding, _sign, another_constant, _operand, another_value, _only, _constant, _same, _replaced,
)  # fmt: skip
