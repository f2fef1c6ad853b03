"""Counterfactual replay: run a side's logged operations again with one edit, and see whether the other side's value comes out.

Nothing is fitted. The operations between the last agreeing record and the diverging one are a small graph with known values; an edit (an
operation left out, two outputs exchanged, a sum for a difference) is carried through it. When the edited reference equals the port, or the
edited port equals the reference, the edit is the bug.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations

import torch
from torch import Tensor

from parity.capture.operations import Op

from .evidence import Evidence, as_float64
from .fits import accept, allowance, cached

MOST_OPS = 800  # of a log, and 160 of them that lead to the value
MOST_ELEMENTS = 20_000_000  # over all replays of one side
MOST_EDITS = 120
ACTIVATIONS = frozenset(
    ["silu", "gelu", "relu", "sigmoid", "tanh", "elu", "leaky_relu", "mish", "softplus", "hardtanh"]
)
NORMS = frozenset(["native_layer_norm", "native_group_norm", "native_batch_norm", "_fused_rms_norm", "rms_norm"])
RANDOM = frozenset(
    ["bernoulli", "normal", "randn", "randn_like", "rand", "rand_like", "uniform", "native_dropout", "exponential"]
)
PARTS = frozenset(["split", "split_with_sizes", "chunk", "unbind"])
MOVES = frozenset(
    [
        "view",
        "_unsafe_view",
        "reshape",
        "clone",
        "expand",
        "transpose",
        "permute",
        "t",
        "unsqueeze",
        "squeeze",
        "slice",
        "select",
        "detach",
        "alias",
        "_to_copy",
    ]
)
CLOSE = 1e-9  # relative: what running the same operations again may differ by

Edit = Callable[[Sequence[Tensor]], list[Tensor]]


class Chain:
    """The operations that lead to one value, linked by the values themselves, ready to run again from any of them."""

    def __init__(self, ops: Sequence[Op], end: tuple[int, int], shape: Sequence[int]) -> None:
        self.ops = ops
        self.end = end
        self.shape = tuple(shape)
        self.links = [[_maker(ops, i, k) for k in range(len(op.inputs))] for i, op in enumerate(ops)]
        self.cone = sorted({end[0]} | self.before(end[0]))

    def before(self, i: int) -> set[int]:
        """Return the operations that an operation's inputs come from, directly or not."""
        found: set[int] = set()
        todo = [i]
        while todo:
            for link in self.links[todo.pop()]:
                if link is not None and link[0] not in found:
                    found.add(link[0])
                    todo.append(link[0])
        return found

    def run(self, edits: Mapping[int, Edit]) -> Tensor | None:
        """Return the final value, in float64, when these operations give `edit(their inputs)` instead; None when that cannot be run."""
        fresh: dict[int, list[Tensor]] = {}
        for i in self.cone:
            stale = [link is not None and link[0] in fresh for link in self.links[i]]
            if i not in edits and not any(stale):
                continue
            op = self.ops[i]
            given = [
                fresh[link[0]][link[1]] if old and link is not None else value
                for old, link, value in zip(stale, self.links[i], op.inputs, strict=True)
            ]
            if i in edits:
                fresh[i] = edits[i](given)
            elif op.again is None or op.name in RANDOM:
                return None
            else:
                fresh[i] = op.again(given)
        if self.end[0] not in fresh or self.end[1] >= len(fresh[self.end[0]]):
            return None
        value = fresh[self.end[0]][self.end[1]]
        return as_float64(value).reshape(self.shape) if value.numel() == torch.Size(self.shape).numel() else None

    def constants(self) -> list[tuple[int, int, Tensor]]:
        """Return (operation, input, value) of the floating values that come from outside: weights, tables, inputs."""
        return [
            (i, k, op.inputs[k])
            for i in self.cone
            for op, links in [(self.ops[i], self.links[i])]
            for k, link in enumerate(links)
            if link is None and op.inputs[k].is_floating_point() and not self._inside(i, k)
        ]

    def _inside(self, i: int, k: int) -> bool:
        """Whether an input was made by a logged operation, although its value has changed since."""
        makers = self.ops[i].makers
        return k < len(makers) and makers[k] is not None and makers[k] in self.cone

    def faithful(self) -> bool:
        """Whether running the operations again gives the same value: no state, no randomness, nothing written behind the log's back."""
        end = self.ops[self.end[0]]
        wanted = as_float64(end.outputs[self.end[1]]).reshape(self.shape)
        for i in self.cone:
            again = self.ops[i].again
            if again is None or self.ops[i].name in RANDOM or any(link is not None for link in self.links[i]):
                continue
            if not any(
                t.is_floating_point() for t in self.ops[i].inputs
            ):  # a table from whole numbers, in whatever precision: never edited
                continue
            value = self.run({i: again})
            if value is None or not _same(value, wanted):
                return False
        return True


def chain(ev: Evidence, side: str) -> Chain | None:
    """Return the chain of a side ("ref" or "port") that ends in its diverging value; None when the log does not hold it."""
    return cached(ev, f"chain_{side}", lambda: _build(ev, side))


def _build(ev: Evidence, side: str) -> Chain | None:
    ops = tuple(ev.ref_ops if side == "ref" else ev.port_ops)
    wanted = ev.r if side == "ref" else ev.p
    if not 0 < len(ops) <= MOST_OPS or sum(t.numel() for op in ops for t in op.outputs) > MOST_ELEMENTS // 10:
        return None
    for i in range(len(ops) - 1, -1, -1):
        for k, value in enumerate(ops[i].outputs):
            if (
                value.numel() == wanted.numel()
                and not value.is_complex()
                and _same(as_float64(value).flatten(), wanted.flatten())
            ):
                try:
                    built = Chain(ops, (i, k), wanted.shape)
                    return built if len(built.cone) <= 160 and built.faithful() else None
                except (RuntimeError, TypeError, ValueError, IndexError):
                    return None
    return None


def _maker(ops: Sequence[Op], i: int, k: int) -> tuple[int, int] | None:
    """Return which output of which earlier operation an input is: the one that made it, if it still has that value; else the last one that
    made these numbers (a recorded value goes on as a copy).
    """
    op, value = ops[i], ops[i].inputs[k]
    maker = op.makers[k] if k < len(op.makers) else None
    if maker is not None and 0 <= maker < i:
        for j, output in enumerate(ops[maker].outputs):
            if output.shape == value.shape and output.dtype == value.dtype and torch.equal(output, value):
                return maker, j
    if maker is not None or value.numel() < 4 or not value.is_floating_point() or value.is_complex():
        return None
    first = float(value.flatten()[0])
    for m in range(i - 1, -1, -1):
        for j, output in enumerate(ops[m].outputs):
            alike = output.shape == value.shape and output.dtype == value.dtype
            if (
                alike
                and abs(float(output.flatten()[0]) - first) <= CLOSE * max(1.0, abs(first))
                and _same(output.double(), value.double())
            ):
                return m, j
    return None


def _same(a: Tensor, b: Tensor) -> bool:
    scale = float(torch.linalg.vector_norm(b))
    return a.shape == b.shape and float(torch.linalg.vector_norm(a - b)) <= CLOSE * scale


def bypasses(chain: Chain) -> Iterator[tuple[int, int, Edit]]:
    """Yield (operation, input, edit): the operation is left out and one of its inputs goes on in its place, spread out if it is smaller."""
    for spread in (False, True):
        for i in reversed(chain.cone):
            op = chain.ops[i]
            for k, x in enumerate(op.inputs if op.outputs else ()):
                if _takes_place(x, op.outputs[0], spread):
                    yield i, k, partial(_kept, k, op.outputs)


def detours(chain: Chain) -> Iterator[tuple[int, int, Edit]]:
    """Yield (first operation, last operation, edit): a stretch is left out, and what went into its first operation comes out of its last."""
    for i in reversed(chain.cone):
        op = chain.ops[i]
        if not op.outputs or not op.outputs[0].is_floating_point() or op.name in MOVES:
            continue
        for j in sorted((j for j in chain.before(i) if chain.ops[j].name not in MOVES), reverse=True):
            for x in chain.ops[j].inputs:
                if _takes_place(x, op.outputs[0], spread=False):
                    yield j, i, partial(_instead, x, op.outputs[1:])


def _takes_place(x: Tensor, output: Tensor, spread: bool) -> bool:
    if x.dtype != output.dtype or not x.is_floating_point():
        return False
    if not spread:
        return x.shape == output.shape and not torch.equal(x, output)
    small = x.shape != output.shape and x.numel() > 1 and x.dim() <= output.dim()
    return small and all(a in (1, b) for a, b in zip(reversed(x.shape), reversed(output.shape), strict=False))


def exchanges(chain: Chain) -> Iterator[tuple[int, tuple[int, int], Edit]]:
    """Yield (operation, outputs, edit): two equal parts of a split change places."""
    for i in chain.cone:
        op = chain.ops[i]
        for a, b in combinations(range(min(len(op.outputs), 9) if op.name in PARTS else 0), 2):
            if op.outputs[a].shape == op.outputs[b].shape:
                yield i, (a, b), partial(_exchanged, op.outputs, a, b)


def signs(chain: Chain) -> Iterator[tuple[int, Edit]]:
    """Yield (operation, edit): a difference for a sum, a sum for a difference."""
    for i in reversed(chain.cone):
        op = chain.ops[i]
        if op.name in ("add", "sub") and len(op.inputs) == 2:
            alpha = op.scalars.get("alpha", 1)
            yield i, partial(_summed, -alpha if op.name == "add" else alpha)


def _kept(k: int, outputs: Sequence[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
    return [given[k].expand(outputs[0].shape), *outputs[1:]]


def _instead(value: Tensor, rest: Sequence[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
    return [value, *rest]


def _exchanged(parts: Sequence[Tensor], a: int, b: int, given: Sequence[Tensor]) -> list[Tensor]:
    found = list(parts)
    found[a], found[b] = found[b], found[a]
    return found


def _summed(alpha: float, given: Sequence[Tensor]) -> list[Tensor]:
    return [torch.add(given[0], given[1], alpha=alpha)]


def attempt(graph: Chain, edits: Mapping[int, Edit]) -> Tensor | None:
    """Run a chain with edits; None when the rest of the operations cannot take what they give."""
    try:
        return graph.run(edits)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return None


def residual_of(ev: Evidence, value: Tensor | None, side: str) -> float | None:
    """Share of the difference that an edited value leaves, when it is small enough."""
    if value is None or not bool(torch.isfinite(value).all()):
        return None
    if side == "ref":
        return accept(ev, value)
    whole = float(torch.linalg.vector_norm(ev.d))
    residual = float(torch.linalg.vector_norm(value - ev.r)) / whole if whole > 0 else float("inf")
    return residual if residual <= allowance(ev) else None


def parameters_of(ev: Evidence) -> list[Tensor]:
    """Return the floating parameters and buffers of the culprit module, of both sides."""
    return [t for pair in ev.parameters.values() for t in pair if t is not None and t.is_floating_point()]


def describe(op: Op) -> str:
    """Return an operation in words, with its line."""
    kind = "the activation" if op.name in ACTIVATIONS else "the norm" if op.name in NORMS else "the operation"
    place = re.sub(r"^.*/(?=[^/]+/[^/]+$)", "", op.source)
    where = f" at {place}: {op.code}" if op.source else ""
    return f"{kind} {op.name}{where}"
