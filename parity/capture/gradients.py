"""Gradients of a run: of every module's outputs and inputs in the order of the backward pass, of parameters, and what training steps leave.

Sites: `<module>.grad` is the gradient of the loss by a module's output, `<module>.in.<argument>.grad` by its input (this module's share alone),
`<module>.<parameter>.grad` by a parameter, as an optimiser finds it (after accumulation, unscaling and clipping) or as the run leaves it, and
`<module>.<name>.after` a parameter or buffer that the run changed (an optimiser's step, a moving average).

A module's input gradient is made by the module, its output gradient by whoever called it. What is put in place of a recorded gradient goes on through the
backward pass, so that each module's own backward is judged on the reference's gradient.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from parity.capture import nested
from parity.capture.probes import Gradients

SUFFIX, AFTER = ".grad", ".after"


class Writer(Protocol):
    """What writes a tensor down and may give another one in its place: the recorder."""

    coords: dict[str, int]

    @property
    def modules(self) -> list[str]: ...

    def record(
        self, site: str, value: Tensor, kind: str, role: str, coords: Mapping[str, int] | None = None
    ) -> Tensor | None: ...


class Stand(torch.autograd.Function):
    """Another value in place of one that a graph leads to: the gradient passes to the value that was there."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, other: Tensor) -> Tensor:
        return other.view_as(other)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None


class GradientHooks:
    """The hooks of one `Gradients` probe. `attach` puts them on; `finish` records what the run left; `close` takes everything off again."""

    def __init__(self, probe: Gradients, writer: Writer, argument_names: Callable[[Any], tuple[str, ...]]) -> None:
        self._probe, self._writer, self._names = probe, writer, argument_names
        self._root = probe.prefix + probe.root_name
        self._calls: list[str] = []  # the modules that are running, innermost last
        self._seen: Counter[tuple[str, tuple[tuple[str, int], ...]]] = Counter()
        self._undo: list[Callable[[], None]] = []
        self._before: dict[str, Tensor] = {}
        self._kept: dict[str, tuple[nn.Parameter, Tensor | None]] = {}
        self._updates = 0
        self._fresh = False  # gradients have arrived that no optimiser has used yet

    def attach(self) -> None:
        """Hook every module below the root and every optimiser; the gradients that parameters held are set aside until `close`."""
        root = self._probe.root
        for path, module in root.named_modules():
            site = self._probe.prefix + (path or self._probe.root_name)
            self._undo.append(
                module.register_forward_pre_hook(functools.partial(self._enter, site), with_kwargs=True).remove
            )
            self._undo.append(
                module.register_forward_hook(functools.partial(self._leave, site), always_call=True).remove
            )
        for name, parameter in root.named_parameters():
            self._kept[name] = (parameter, parameter.grad)
            parameter.grad = None
            if parameter.requires_grad:
                self._undo.append(parameter.register_post_accumulate_grad_hook(self._arrived).remove)
        self._before = {name: value.detach().clone() for name, value in self._state()}
        self._undo.append(register_optimizer_step_pre_hook(self._before_step).remove)
        self._undo.append(register_optimizer_step_post_hook(self._after_step).remove)

    def finish(self) -> None:
        """Record parameter gradients that no optimiser used, and the state that the run changed."""
        if self._fresh:
            self._record_parameters()
        self._record_state(self._updates)

    def close(self) -> None:
        for undo in reversed(self._undo):
            undo()
        for parameter, gradient in self._kept.values():
            parameter.grad = gradient
        self._undo, self._kept = [], {}

    # -- modules ------------------------------------------------------------------------------------------------------

    def _enter(self, site: str, module: nn.Module, args: Any, kwargs: Any) -> Any:
        names = self._names(type(module))

        def own(label: str, value: Any) -> Any:
            return nested.replace(value, lambda path, t: self._share(f"{label}.{path}" if path else label, t, site))

        changed = (
            tuple(own(f"{site}.in.{names[i] if i < len(names) else i}", a) for i, a in enumerate(args)),
            {key: own(f"{site}.in.{key}", a) for key, a in kwargs.items()},
        )
        self._calls.append(site)
        return changed

    def _share(self, site: str, value: Tensor, module: str) -> Tensor | None:
        """Give the module a view of its input, so that the view's gradient is this module's share of the input's."""
        if not (torch.is_grad_enabled() and value.requires_grad):
            return None
        view = value.view_as(value)
        self._watch(site, view, module, "gradient" if self._calls else "parameter")
        return view

    def _leave(self, site: str, module: nn.Module, args: Any, result: Any) -> None:
        if self._calls and self._calls[-1] == site:
            self._calls.pop()
        caller = self._calls[-1] if self._calls else self._root
        for path, value in nested.tensors(result):
            if torch.is_grad_enabled() and value.requires_grad and not value.is_leaf:
                self._watch(f"{site}.{path}" if path else site, value, caller)

    def _watch(self, site: str, value: Tensor, module: str, role: str = "gradient") -> None:
        outer = dict(self._writer.coords)
        key = (site, tuple(outer.items()))
        call = self._seen[key]
        self._seen[key] += 1
        coords = outer | ({"call": call} if call else {})

        node, place = value.grad_fn, value.output_nr
        if node is None:
            return

        def hook(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...] | None:
            own = gradients[place]
            new = self._write(site + SUFFIX, own, module, coords, role) if own is not None else None
            return None if new is None else (*gradients[:place], new, *gradients[place + 1 :])

        node.register_prehook(hook)  # of the node, not of the tensor: the caller may change the tensor in place

    def _write(
        self, site: str, value: Tensor, module: str, coords: Mapping[str, int], role: str = "gradient"
    ) -> Tensor | None:
        self._writer.modules.append(module)
        try:
            return self._writer.record(site, value, "gradient", role, coords)
        finally:
            self._writer.modules.pop()

    # -- parameters ---------------------------------------------------------------------------------------------------

    def _arrived(self, parameter: Tensor) -> None:
        self._fresh = True

    def _before_step(self, optimiser: Any, *_: Any) -> None:
        self._record_parameters()

    def _after_step(self, optimiser: Any, *_: Any) -> None:
        self._record_state(self._updates)
        self._updates += 1

    def _record_parameters(self) -> None:
        """Record the gradients of the parameters from the last to the first, as a backward pass reaches them."""
        self._fresh = False
        for name, parameter in reversed(list(self._probe.root.named_parameters())):
            if parameter.grad is None:
                continue
            site, module = self._places(name)
            new = self._write(site + SUFFIX, parameter.grad, module, self._at(self._updates), "parameter")
            if new is not None:
                with torch.no_grad():
                    parameter.grad.copy_(new)

    def _record_state(self, update: int) -> None:
        """Record every parameter and buffer that is not what it was, and take it for the new state."""
        for name, value in self._state():
            old = self._before.get(name)
            if old is None or (old.dtype == value.dtype and torch.equal(old, value)):
                continue
            site, module = self._places(name)
            kind = "weight" if value.is_floating_point() else "input"
            self._writer.modules.append(module)
            try:
                new = self._writer.record(site + AFTER, value.detach(), kind, "parameter", self._at(update))
            finally:
                self._writer.modules.pop()
            if new is not None:
                with torch.no_grad():
                    value.copy_(new)
            self._before[name] = value.detach().clone()

    def _state(self) -> Iterator[tuple[str, Tensor]]:
        yield from self._probe.root.named_parameters()
        yield from self._probe.root.named_buffers()

    def _places(self, name: str) -> tuple[str, str]:
        """Return the site of a parameter and the module that holds it."""
        path, _, own = name.rpartition(".")
        module = self._probe.prefix + (path or self._probe.root_name)
        return f"{module}.{own}", module

    def _at(self, update: int) -> dict[str, int]:
        return self._writer.coords | ({"update": update} if update else {})
