"""Bugs that nobody chose: every small edit of the forward functions of a model of diffusers, compiled in place with the original lines."""

from __future__ import annotations

import ast
import copy
import inspect
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import nn


@dataclass(frozen=True)
class Mutant:
    """One edit: what, in which module's forward, on which line; `make` breaks a copy of a model."""

    name: str
    module: str
    line: int
    make: Callable[[nn.Module], nn.Module]


class _Editor(ast.NodeTransformer):
    """Carry out the n-th possible edit."""

    def __init__(self, wanted: int) -> None:
        self.wanted, self.seen, self.what, self.line = wanted, -1, "", 0

    def _here(self, node: ast.expr | ast.stmt, what: str) -> bool:
        self.seen += 1
        if self.seen == self.wanted:
            self.what, self.line = what, node.lineno
        return self.seen == self.wanted

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.op, ast.Add):
            if self._here(node, "minus for plus"):
                return ast.copy_location(ast.BinOp(node.left, ast.Sub(), node.right), node)
            if self._here(node, "no second term"):
                return node.left
        if isinstance(node.op, ast.Mult):
            if self._here(node, "no second factor"):
                return node.left
            if self._here(node, "plus for times"):
                return ast.copy_location(ast.BinOp(node.left, ast.Add(), node.right), node)
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        self.generic_visit(node)
        target, value = node.targets[0], node.value
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Call):
            names = target.elts
            for k in range(min(len(names) - 1, 3)):
                if self._here(node, f"results {k} and {k + 1} exchanged"):
                    names[k], names[k + 1] = names[k + 1], names[k]
        if isinstance(target, ast.Name) and isinstance(value, ast.Call) and value.args:
            called, given = ast.unparse(value.func), value.args[0]
            if called.startswith("self.") and isinstance(given, ast.Name) and self._here(node, f"no {called}"):
                return ast.copy_location(ast.Assign(node.targets, given), node)
        return node


def mutants(model: nn.Module) -> Iterator[Mutant]:
    """Yield every edit of the forward functions of the model's own classes, each in the first module of its class."""
    seen: set[type] = set()
    for path, module in model.named_modules():
        cls = type(module)
        if path and cls not in seen and cls.__module__.startswith("diffusers"):
            seen.add(cls)
            for what, line, function in _edited(inspect.unwrap(cls.forward)):
                yield Mutant(f"{path}:{line} {what}", path, line, _breaker(path, cls, function))


def _edited(function: Callable[..., Any]) -> Iterator[tuple[str, int, Callable[..., Any]]]:
    if "__class__" in function.__code__.co_freevars:
        return
    source, start = textwrap.dedent(inspect.getsource(function)), function.__code__.co_firstlineno
    wanted = 0
    while True:
        tree, editor = ast.parse(source), _Editor(wanted)
        tree.body[0].decorator_list = []  # type: ignore[attr-defined]
        tree = ast.fix_missing_locations(editor.visit(tree))
        if not editor.what:
            return
        ast.increment_lineno(tree, start - 1)
        made: dict[str, Any] = {}
        exec(compile(tree, function.__code__.co_filename, "exec"), function.__globals__, made)
        yield editor.what, editor.line + start - 1, next(iter(made.values()))
        wanted += 1


def _breaker(path: str, cls: type, function: Callable[..., Any]) -> Callable[[nn.Module], nn.Module]:
    def make(model: nn.Module) -> nn.Module:
        port = copy.deepcopy(model)
        port.get_submodule(path).__class__ = type(
            cls.__name__, (cls,), {"forward": function, "__module__": cls.__module__}
        )
        return port

    return make


def build_ltx() -> nn.Module:
    torch.manual_seed(0)
    model = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=12, cross_attention_dim=24, num_layers=2, caption_channels=16
    )  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def ltx_inputs() -> dict[str, Any]:
    draw = torch.Generator().manual_seed(5)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 5:] = False
    return {
        "hidden_states": torch.randn(2, 24, 8, generator=draw),
        "encoder_hidden_states": torch.randn(2, 7, 16, generator=draw),
        "timestep": torch.tensor([300, 700]),
        "encoder_attention_mask": mask,
        "num_frames": 2,
        "height": 3,
        "width": 4,
        "return_dict": False,
    }
