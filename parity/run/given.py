"""Models and inputs that a user gives as they are, as the side of a case: every run gets copies, so that the user's objects stay as they were."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from parity.capture import nested, split_inputs
from parity.capture.probes import Modules, Probe
from parity.capture.upcast import upcast_own
from parity.case import Setting, Side
from parity.errors import CaseError, SideError
from parity.run.backward import asking_for_gradients
from parity.run.functions import Given, Model, as_model

__all__ = ["Arguments", "Given", "Model", "as_model", "dtype_of", "module_of", "pair_of_inputs", "side_of"]

Probes = Callable[[Any], Sequence[Probe]]


class Arguments:
    """The arguments of one call, given anew to every run: tensors cloned, iterators and generators started where they stood."""

    def __init__(self, inputs: Any) -> None:
        self._given = _kept(split_inputs(inputs))

    def fresh(self, setting: Setting) -> Any:
        return _fresh(self._given, {})


@dataclass
class _Items:
    """What an iterator held: each run gets an iterator over it."""

    values: list[Any]


def _kept(value: Any) -> Any:
    """Read iterators once, so that the second run finds what the first one found."""
    if isinstance(value, Iterator):
        return _Items([_kept(v) for v in value])
    if type(value) in (list, tuple):
        return type(value)(_kept(v) for v in value)
    return {k: _kept(v) for k, v in value.items()} if type(value) is dict else value


def _opened(value: Any) -> Any:
    if isinstance(value, _Items):
        return iter([_opened(v) for v in value.values])
    if type(value) in (list, tuple):
        return type(value)(_opened(v) for v in value)
    return {k: _opened(v) for k, v in value.items()} if type(value) is dict else value


def _fresh(value: Any, memo: dict[int, Any]) -> Any:
    if isinstance(value, _Items):
        return _Items([_fresh(v, memo) for v in value.values])
    if isinstance(value, torch.Generator):
        twin = torch.Generator(value.device)
        return twin.set_state(value.get_state())
    if isinstance(value, Tensor):
        if id(value) not in memo:
            memo[id(value)] = value.detach().clone()
        return memo[id(value)]
    if type(value) in (list, tuple):
        return type(value)(_fresh(v, memo) for v in value)
    if type(value) is dict:
        return {k: _fresh(v, memo) for k, v in value.items()}
    if isinstance(value, nn.Module) or callable(value):
        return value
    whole = {id(t): memo.setdefault(id(t), t.detach().clone()) for _, t in nested.tensors(value)}
    try:
        return copy.deepcopy(value, whole)  # one tensor under two names stays one
    except Exception as error:
        raise CaseError(
            f"an input of class {type(value).__name__} cannot be copied ({_line(error)}), and a run may change it: "
            "give tensors, containers or objects that copy.deepcopy takes"
        ) from None


def side_of(model: Model, arguments: Arguments, probes: Probes | None) -> Side:
    """Wrap a given model: every run gets a copy of it, or the model itself, put back as it was, where it cannot be copied."""
    function, module = model if isinstance(model, tuple) else (None, model)
    alone = _copy(module) is None

    def build(setting: Setting) -> nn.Module:
        return module if alone else _copied(module)

    def run(current: nn.Module, given: Any) -> Any:
        args, kwargs = _opened(given)
        if torch.is_grad_enabled():
            args, kwargs = asking_for_gradients((args, kwargs))
        with kept_as_it_is(current) if current is module else _nothing():
            return function(current, *args, **kwargs) if function is not None else current(*args, **kwargs)

    def upcast(current: nn.Module) -> nn.Module:
        if alone:
            raise SideError(f"{type(module).__name__} cannot be copied, so it does not run in float64")
        return upcast_own(current, module)

    return Side(
        build=build,
        run=run,
        probes=probes or (lambda current: [Modules(current)]),
        modules=lambda current: {"": current},
        upcast=upcast,
        inputs=arguments.fresh,
    )


def _copied(module: nn.Module) -> nn.Module:
    twin = _copy(module)
    if twin is None:
        raise SideError(f"{type(module).__name__} could be copied before, and no more")
    return twin


def _copy(module: nn.Module) -> nn.Module | None:
    """Return a copy; None where a model cannot be copied, or gives itself for one."""
    try:
        twin = copy.deepcopy(module)
    except Exception:  # anything may happen in somebody's __deepcopy__; what follows from it is said where it matters
        return None
    return None if twin is module else twin


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def kept_as_it_is(module: nn.Module) -> Iterator[None]:
    """Put parameters, buffers, modes and attributes of every module back after a run, also after one that failed."""
    parts = list(module.modules())
    attributes = [_attributes(part) for part in parts]
    tensors = [t for part in parts for t in (*part._parameters.values(), *part._buffers.values()) if t is not None]
    values = [(t, t.data, t.detach().clone(), t.grad) for t in tensors if not _lazy(t)]
    try:
        yield
    finally:
        for part, kept in zip(parts, attributes, strict=True):
            vars(part).clear()
            vars(part).update(kept)
        for tensor, storage, value, grad in values:
            tensor.data = storage
            if not torch.equal(storage, value):
                storage.copy_(value)
            tensor.grad = grad


def _attributes(part: nn.Module) -> dict[str, Any]:
    """Return what a module holds; its own containers of parameters, buffers and modules as copies of one level."""
    return {name: copy.copy(v) if isinstance(v, (dict, list, set)) else v for name, v in vars(part).items()}


def _lazy(value: Tensor) -> bool:
    return bool(nn.parameter.is_lazy(value))


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


# -- arguments --------------------------------------------------------------------------------------------------------


def module_of(model: Model) -> nn.Module:
    return model[1] if isinstance(model, tuple) else model


def dtype_of(model: Model) -> torch.dtype:
    """Return the dtype in which a model is deployed: that of its first floating parameter."""
    parameters = module_of(model).parameters()
    return next((p.dtype for p in parameters if p.is_floating_point()), torch.float32)


def pair_of_inputs(reference: Model, port: Model, inputs: Any, port_inputs: Any) -> tuple[Any, Any]:
    """Return the inputs of each side. Two tuples (or dicts) in one tuple are each side's own where the models cannot take them as arguments.

    Raises CaseError when both readings are possible.
    """
    if port_inputs is not None:
        return inputs, port_inputs
    if not (isinstance(inputs, tuple) and len(inputs) == 2 and all(isinstance(p, (tuple, dict)) for p in inputs)):
        return inputs, inputs
    as_arguments = _takes(reference, inputs) and _takes(port, inputs)
    as_pair = _takes(reference, inputs[0]) and _takes(port, inputs[1])
    if as_arguments and as_pair:
        raise CaseError(
            "inputs: a tuple of two tuples or dicts may be the two arguments of a call, or one set of arguments for each side: "
            "give port_inputs= for the second meaning, inputs=[first, second] for the first"
        )
    return (inputs, inputs) if as_arguments else inputs


def _takes(model: Model, inputs: Any) -> bool:
    """Tell whether a call of the model accepts these arguments, as far as its signature says."""
    args, kwargs = split_inputs(inputs)
    try:
        if isinstance(model, tuple):
            inspect.signature(model[0]).bind(model[1], *args, **kwargs)
        else:
            inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError:
        return False
    except ValueError:  # it has no signature
        return True
    return True
