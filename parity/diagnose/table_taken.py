"""Rows of the table about what an operation is given: another value than the reference's, and other settings of the same layers."""

from __future__ import annotations

from typing import Any

from parity.capture.operations import Op

from .graph import MOVES, Graph
from .prints import near, print_of
from .view import PADS, POOLS, Named, View, at, describe, listed, said

FILLS = frozenset(
    [
        "zeros",
        "ones",
        "full",
        "fill",
        "rand",
        "randn",
        "zero",
        "zeros_like",
        "ones_like",
        "full_like",
        "new_zeros",
        "new_ones",
        "new_full",
    ]
)
AROUND_FILLS = FILLS | {"cat", "mul", "sub", "div", "add", "clamp", "_to_copy"}  # what may be done to a filling
DRAWS = frozenset(["rand", "randn", "randint", "normal", "bernoulli"])
ARITHMETIC = frozenset(["add", "sub", "mul", "div"])
PRODUCTS = frozenset(["mm", "bmm", "matmul", "convolution"])
NORMALISED = frozenset([("sub", "mul"), ("sub", "div"), ("div", "add"), ("reciprocal",)])
LAYERS = POOLS | {"convolution"}
MOST_OF_A_FILLING = 8  # operations
SETTINGS = ("kernel_size", "stride", "padding", "dilation", "groups")


def another_filling(v: View) -> Named | None:
    """One side fills with a constant, or with noise, what is joined to data (the empty frames of a condition), the other with something else."""
    names = (set(v.ref_names), set(v.own_names))
    filled = [bool(side & FILLS) and side <= AROUND_FILLS for side in names]
    if not any(filled) or len(v.ref) + len(v.own) > MOST_OF_A_FILLING:
        return None
    if not all(filled) and "cat" not in v.into | names[0] | names[1]:
        return None
    if any(
        r.moving and f
        for r, f in zip((v.edit.reference, v.edit.port), filled, strict=True)
        if "cat" not in names[0] | names[1]
    ):
        return None
    where = at(v.edit.user or (v.own or v.ref)[-1])
    return Named(
        "C5", f"beside the data the port has {listed(v.own_names)} where the reference has {listed(v.ref_names)}{where}"
    )


def drawn(v: View) -> Named | None:
    """One side draws random numbers into what the other computes without any: a sample instead of the mode, or noise that is not asked for."""
    ours, theirs = ({op.name for op in ops} for ops in (v.ref, v.own))
    if bool(ours & DRAWS) == bool(theirs & DRAWS) or not (ours | theirs) & ARITHMETIC:
        return None
    who, draws = ("the port", v.own) if theirs & DRAWS else ("the reference", v.ref)
    where = at(next(op for op in draws if op.name in DRAWS))
    if "exp" in ours | theirs:
        return Named("C9", f"{who} alone draws a sample where the other side takes the mode{where}")
    return Named("S2", f"{who} alone adds noise: {listed([op.name for op in draws])}{where}")


def fixed_statistics(v: View) -> Named | None:
    """One side alone takes off a kept mean and divides by a kept deviation, or takes the inverse of the kept deviation (latents)."""
    if v.only is None or tuple(v.only[1]) not in NORMALISED:
        return None
    vectors = [t for op in v.only[2] for t in op.inputs[-1:]]
    if any(t.numel() < 2 or t.numel() != max(t.shape) for t in vectors) or len({t.numel() for t in vectors}) > 1:
        return None
    which, names, ops = v.only
    what = "inverse of the kept deviation" if names == ["reciprocal"] else "normalisation by kept statistics"
    return Named("C10", f"the {what} is {which} by the port: {listed(names)}{at(ops[-1])}")


def adapter_strength(v: View) -> Named | None:
    """The factor of a low-rank update: what two products through fewer features made, on its way to a sum."""
    factors = [op for op in (*v.ref, *v.own) if op.name in ("mul", "div") and len(op.inputs) == 1]
    if not factors or len(factors) != len(v.ref) + len(v.own) or "add" not in v.into:
        return None
    value = v.edit.at[1] if len(v.edit.at) > 1 and v.edit.kind == "replaced" else _taken(v)
    outer = None if value is None else _product(v.port, value)
    inner = None if outer is None else _product(v.port, outer[0])
    if outer is None or inner is None:
        return None
    (wide, rank), (into, out) = inner[1], outer[1]
    if into != rank or 2 * rank > min(wide, out):
        return None
    return Named("W7", f"the strength of a low-rank update (rank {rank}) differs: {said(v.edit)}")


def _product(graph: Graph, value: int) -> tuple[int, tuple[int, int]] | None:
    """Return (what goes in, the matrix's [in, out]) of the product that made a value, past moves and factors."""
    while value in graph.made:
        i = graph.made[value]
        op = graph.ops[i]
        if op.name == "mm" and len(graph.inputs[i]) == 2 and op.inputs[1].dim() == 2:
            return graph.inputs[i][0], (int(op.inputs[1].shape[0]), int(op.inputs[1].shape[1]))
        if not graph.inputs[i] or (op.name not in MOVES and not (op.name in ("mul", "div") and len(op.inputs) == 1)):
            return None
        value = graph.inputs[i][0]
    return None


def another_value(v: View) -> Named | None:
    """The port has nothing where the reference runs something, and what it takes does not go into that: it takes another value."""
    if v.only is None or v.only[0] != "left out":
        return None
    taken = _taken(v)
    if taken is None or taken not in v.port.made:
        return None
    operands = [print_of(t) for t in v.edit.reference.operands]
    chain = _moved_from(v.port, taken)
    if any(near(v.port.print(u), p) for u in chain for p in operands):
        return None
    where = at(v.edit.user) if v.edit.user else at(v.port.ops[v.port.made[taken]])
    made = _made_by(v.port, chain[-1], len(v.ref_names))
    if made == v.ref_names and set(made) & PRODUCTS:
        return Named("W3", f"the port takes what {listed(made)} make of other weights than in the reference{where}")
    text = f"the port takes another value than the reference, which makes its own by {listed(v.ref_names)}{where}"
    return Named("C2", text, False)


def another_constant(v: View) -> Named | None:
    """The same operation on a weight, a buffer or a table that holds other numbers."""
    if v.edit.kind != "operand" or v.ref or v.own or v.edit.user is None:
        return None
    taken = _taken(v)
    if taken is None or _moved_from(v.port, taken)[-1] in v.port.made or v.edit.other.numel() < 2:
        return None
    shape = list(v.edit.other.shape)
    return Named("W13", f"the {shape} constant that {describe(v.edit.user)} takes holds other numbers")


def other_settings(v: View) -> Named | None:
    """As many convolutions or poolings on both sides, on kernels of the same sizes, with other strides or padding; another way to pad."""
    ours, theirs = ({op.name for op in ops if op.name in PADS} for ops in (v.ref, v.own))
    if ours and theirs and ours != theirs:
        pad = next(op for op in v.own if op.name in PADS)
        return Named(
            "V3",
            f"the port pads by {listed(sorted(theirs))} where the reference does by {listed(sorted(ours))}{at(pad)}",
        )
    if v.ref_names == v.own_names:
        return None
    left, right = ([op for op in ops if op.name in LAYERS] for ops in (v.ref, v.own))
    if not left or [_kernel(a) for a in left] != [_kernel(b) for b in right]:
        return None
    for name in SETTINGS:
        a, b = ([op.scalars.get(name) for op in ops] for ops in (left, right))
        if a != b:
            op = next(op for op, x, y in zip(right, a, b, strict=True) if x != y)
            class_id = "V3" if name == "padding" else "W12"
            return Named(class_id, f"{op.name} runs with {name} {_said(b)} instead of {_said(a)}{at(op)}")
    return None


def _said(values: list[Any]) -> str:
    return ", then ".join(map(str, values))


def _kernel(op: Op) -> tuple[str, tuple[int, ...]]:
    weights = [tuple(t.shape) for t in op.inputs[1:2]]
    return op.name, weights[0] if weights else ()


def _taken(v: View) -> int | None:
    """Return the port's value that the edit puts another in place of."""
    if v.edit.kind == "operand" and len(v.edit.at) > 1:
        return v.port.inputs[v.edit.at[0]][v.edit.at[1]]
    if v.edit.kind == "replaced" and len(v.edit.at) > 1:
        return v.edit.at[1]
    return None


def _moved_from(graph: Graph, value: int) -> list[int]:
    """Return a value and those that it is moved, cut or repeated from, the first of them last."""
    chain = [value]
    while chain[-1] in graph.made:
        i = graph.made[chain[-1]]
        if graph.ops[i].name not in MOVES or not graph.inputs[i]:
            break
        chain.append(graph.inputs[i][0])
    return chain


def _made_by(graph: Graph, value: int, most: int) -> list[str]:
    """Return the last operations, moves left out, that made a value."""
    names: list[str] = []
    while len(names) < most and value in graph.made:
        i = graph.made[value]
        if graph.ops[i].name not in MOVES:
            names.insert(0, graph.ops[i].name)
        made = [u for u in graph.inputs[i] if u in graph.made]
        if not made:
            break
        value = made[0]
    return names
