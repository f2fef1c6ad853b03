"""The kinds of edits: what another expression an expression may be replaced by. Defined on the syntax tree alone."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator

Change = tuple[str, ast.expr]  # kind, the expression that stands there instead

_ACTIVATIONS = {"gelu": "silu", "silu": "gelu", "relu": "gelu", "sigmoid": "tanh", "tanh": "sigmoid", "softplus": "relu"}  # fmt: skip
_SCALES = ("scale", "scaling", "softmax_scale", "norm_factor")
_EPS = ("eps", "variance_epsilon", "epsilon")
_IDLE = ("dropout", "contiguous", "float", "to", "type_as", "clone", "detach", "checkpoint", "cast", "int", "len", "isinstance")  # fmt: skip
_POSITIONAL_AXES = {"softmax": 0, "chunk": 1, "unbind": 0, "mean": 0, "sum": 0, "cumsum": 0, "flip": 0, "repeat_interleave": 1, "stack": 1, "cat": 1, "concat": 1, "unsqueeze": 0}  # fmt: skip
_MASKS = ("attention_mask", "attn_mask", "mask", "encoder_attention_mask", "key_padding_mask")


def called(node: ast.expr) -> str:
    """Return the last name of what a call calls, empty for anything else."""
    if not isinstance(node, ast.Call):
        return ""
    return (
        node.func.attr
        if isinstance(node.func, ast.Attribute)
        else node.func.id
        if isinstance(node.func, ast.Name)
        else ""
    )


def changes(node: ast.expr) -> Iterator[Change]:
    """Yield every change of one expression (not of its parts)."""
    if isinstance(node, ast.BinOp):
        yield from _of_operator(node)
    elif isinstance(node, ast.Call):
        yield from _of_call(node)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant):
        yield "sign", node.operand
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
        yield "mask left out", node.operand
    elif isinstance(node, ast.Constant):
        yield from _of_constant(node)
    elif isinstance(node, ast.Attribute):
        yield from _of_attribute(node)
    elif isinstance(node, ast.Subscript):
        yield from _of_subscript(node)


def _of_operator(node: ast.BinOp) -> Iterator[Change]:
    left, right, op = node.left, node.right, node.op
    if any(isinstance(part, (ast.Tuple, ast.List, ast.JoinedStr)) for part in (left, right)):
        return
    if isinstance(op, ast.Add):
        yield "sign", ast.BinOp(left, ast.Sub(), right)
        yield "term missing", left
        yield "term missing", right
    elif isinstance(op, ast.Sub):
        yield "sign", ast.BinOp(left, ast.Add(), right)
        yield "operands exchanged", ast.BinOp(right, op, left)
        yield "term missing", left
    elif isinstance(op, ast.Mult):
        yield "factor missing", left
        yield "factor missing", right
        yield "plus for times", ast.BinOp(left, ast.Add(), right)
    elif isinstance(op, (ast.Div, ast.FloorDiv)):
        yield "factor missing", left
        if isinstance(op, ast.Div):
            yield "operands exchanged", ast.BinOp(right, op, left)
    elif isinstance(op, ast.MatMult):
        yield "operands exchanged", ast.BinOp(right, op, left)
    elif isinstance(op, ast.Pow):
        yield "constant", ast.BinOp(left, op, ast.BinOp(ast.Constant(2), ast.Mult(), right))


def _of_call(node: ast.Call) -> Iterator[Change]:
    name, args = called(node), node.args
    if name in _ACTIVATIONS and isinstance(node.func, ast.Attribute):
        yield (
            "activation",
            _with(node, func=ast.Attribute(node.func.value, _ACTIVATIONS[name], ast.Load()), keywords=[]),
        )
    if _computes(node, name) and args:
        yield "left out", args[0]
        yield "twice", _with(node, args=[node, *args[1:]])
        if isinstance(args[0], ast.Name):
            yield "rounded", _rounded(node)
    if name in ("cat", "concat", "stack") and args and isinstance(args[0], (ast.List, ast.Tuple)) and len(args[0].elts) > 1:  # fmt: skip
        parts = args[0].elts
        yield "parts in another order", _with(node, args=[ast.List([*parts[1:], parts[0]], ast.Load()), *args[1:]])
    elif name in ("transpose", "permute", "view", "reshape", "movedim"):
        yield from _of_layout(node, name)
    elif len(args) > 1 and all(isinstance(a, (ast.Name, ast.Attribute)) for a in args[:2]) and name not in _IDLE:
        yield "arguments exchanged", _with(node, args=[args[1], args[0], *args[2:]])
        if len(args) > 2 and isinstance(args[2], (ast.Name, ast.Attribute)):
            yield "arguments exchanged", _with(node, args=[args[0], args[2], args[1], *args[3:]])
    if name == "update" and len(args) >= 3:
        yield "cache unused", ast.Tuple([args[0], args[1]], ast.Load())
        yield "cache index", _with(node, args=[args[0], args[1], ast.Constant(0), *args[3:]])
    if name in _POSITIONAL_AXES and len(args) > _POSITIONAL_AXES[name]:
        yield from _moved_axis(node, _POSITIONAL_AXES[name])
    yield from _of_keywords(node)


def _computes(node: ast.Call, name: str) -> bool:
    """Tell whether a call is one of a module, or of an activation or norm: what can be left out, doubled or rounded."""
    func = node.func
    of_self = isinstance(func, ast.Attribute) and ast.unparse(func).startswith("self.") and name not in _IDLE
    plain = name in _ACTIVATIONS or "norm" in name or "rotary" in name or name == "softmax"
    return (of_self and "dropout" not in name and "drop_path" not in name) or plain


def _of_layout(node: ast.Call, name: str) -> Iterator[Change]:
    """Exchange two neighbours among the sizes or axes of a view, a transposition or a permutation."""
    args = node.args
    if len(args) == 1 and isinstance(args[0], ast.Tuple):
        args = args[0].elts
    if name == "transpose":
        yield "axis", node.func.value if isinstance(node.func, ast.Attribute) else node
        return
    for i in range(len(args) - 1):
        moved = [*args[:i], args[i + 1], args[i], *args[i + 2 :]]
        if ast.dump(args[i]) != ast.dump(args[i + 1]) and not any(isinstance(a, ast.Starred) for a in args):
            yield ("axis" if name == "permute" else "sizes exchanged"), _with(node, args=moved)


def _moved_axis(node: ast.Call, at: int) -> Iterator[Change]:
    for other in _other_axes(node.args[at]):
        yield "axis", _with(node, args=[*node.args[:at], other, *node.args[at + 1 :]])


def _other_axes(axis: ast.expr) -> Iterator[ast.expr]:
    try:
        value = ast.literal_eval(axis)
    except (ValueError, TypeError, SyntaxError):
        return
    if type(value) is int:
        yield ast.Constant(value + 1 if value in (0, 1, -2, -3) else value - 1)


def _of_keywords(node: ast.Call) -> Iterator[Change]:
    for i, keyword in enumerate(node.keywords):
        name, value = keyword.arg or "", keyword.value

        def given(other: ast.expr, i: int = i, name: str = name) -> ast.Call:
            return _with(node, keywords=[*node.keywords[:i], ast.keyword(name or None, other), *node.keywords[i + 1 :]])

        if name in ("dim", "axis", "start_dim"):
            for other in _other_axes(value):
                yield "axis", given(other)
        elif name in _EPS:
            yield "eps", given(_times(value, 1000.0))
        elif name in _SCALES and not isinstance(value, ast.Constant):
            yield "scale", given(_times(value, 2.0))
        elif name in _MASKS and isinstance(value, (ast.Name, ast.Attribute)):
            yield "mask left out", given(ast.Constant(None))
        elif name == "is_causal" and isinstance(value, ast.Constant):
            yield "causal", given(ast.Constant(not value.value))
        elif name == "approximate" and isinstance(value, ast.Constant):
            yield "activation", given(ast.Constant("none" if value.value == "tanh" else "tanh"))
        elif name in ("q", "k", "v", "query", "key", "value"):
            partner = next((k for k in node.keywords[i + 1 :] if k.arg in ("k", "v", "key", "value")), None)
            if partner is not None:
                moved = [ast.keyword(k.arg, partner.value if k is keyword else value if k is partner else k.value) for k in node.keywords]  # fmt: skip
                yield "arguments exchanged", _with(node, keywords=moved)


def _of_constant(node: ast.Constant) -> Iterator[Change]:
    value = node.value
    if type(value) is float and value not in (0.0, 1.0):
        if value <= 1e-4:
            yield "eps", ast.Constant(value * 1000)
        elif value >= 5000:
            yield "theta", ast.Constant(value / 10)
        else:
            yield "constant", ast.Constant(value * 1.25)
    elif type(value) is int and value >= 5000:
        yield "theta", ast.Constant(value // 10)


def _of_attribute(node: ast.Attribute) -> Iterator[Change]:
    if not isinstance(node.ctx, ast.Load):
        return
    if node.attr in _EPS:
        yield "eps", _times(node, 1000.0)
    elif node.attr in _SCALES:
        yield "scale", _times(node, 2.0)
    elif node.attr in ("theta", "base", "rope_theta"):
        yield "theta", _times(node, 0.1)


def _of_subscript(node: ast.Subscript) -> Iterator[Change]:
    """Move one bound or one index by one; take the other half of a slice."""
    if not isinstance(node.ctx, ast.Load) or (isinstance(node.value, ast.Call) and called(node.value) == "size"):
        return
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    for i, part in enumerate(parts):
        for other in _moved_index(part):
            moved: ast.expr = ast.Tuple([*parts[:i], other, *parts[i + 1 :]], ast.Load()) if len(parts) > 1 else other
            yield "off by one", ast.Subscript(node.value, moved, ast.Load())


def _moved_index(part: ast.expr) -> Iterator[ast.expr]:
    if isinstance(part, ast.Slice):
        lower, upper, step = part.lower, part.upper, part.step
        if lower is not None and upper is None and step is None:
            yield ast.Slice(_plus(lower, 1), None, None)
            yield ast.Slice(None, lower, None)
        elif upper is not None and lower is None and step is None:
            yield ast.Slice(None, _plus(upper, -1), None)
            yield ast.Slice(upper, None, None)
        elif lower is not None and step is not None and upper is None:
            start = lower.value if isinstance(lower, ast.Constant) else None
            if start in (0, 1):
                yield ast.Slice(ast.Constant(1 - start), None, step)
    elif isinstance(part, ast.Constant) and type(part.value) is int:
        yield ast.Constant(part.value + 1 if part.value >= 0 else part.value - 1)


def siblings(name: str, names: list[str]) -> str:
    """Return the name that is most easily taken for another one: that with which it shares its first or its last word."""
    words = name.split("_")
    for other in names:
        if other != name:
            own = other.split("_")
            alike = len(own) == len(words) > 1 and sum(a == b for a, b in zip(own, words, strict=True)) == len(words) - 1  # fmt: skip
            if alike or {name, other} in ({"query", "key"}, {"key", "value"}, {"q", "k"}, {"k", "v"}, {"cos", "sin"}, {"shift", "scale"}):  # fmt: skip
                return other
    return ""


def _times(value: ast.expr, factor: float) -> ast.expr:
    return ast.BinOp(value, ast.Mult(), ast.Constant(factor))


def _plus(value: ast.expr, offset: int) -> ast.expr:
    return ast.BinOp(value, ast.Add() if offset > 0 else ast.Sub(), ast.Constant(abs(offset)))


def _rounded(node: ast.Call) -> ast.expr:
    """Return `f(x, …).bfloat16().to(x.dtype)`."""
    narrow = ast.Call(ast.Attribute(node, "bfloat16", ast.Load()), [], [])
    return ast.Call(ast.Attribute(narrow, "to", ast.Load()), [ast.Attribute(node.args[0], "dtype", ast.Load())], [])


def _with(node: ast.Call, **fields: object) -> ast.Call:
    made = copy.copy(node)
    for name, value in fields.items():
        setattr(made, name, value)
    return made
