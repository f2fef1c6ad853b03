"""Running a model in float64, so that rounding and summation order vanish and bugs stay.

`upcast_in_place` turns parameters, buffers, tensors and dtypes held by a model (or any object that holds modules) into float64; `keep_double` holds back the casts
that code makes on the way (`.float()`, `.to(bfloat16)`, `dtype=torch.float32`), so that a hard-coded precision is no difference. Values that were rounded
when the model was built (a bf16 sigma table) keep their rounded values.
"""

from __future__ import annotations

import copy
import dataclasses
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from parity.capture import nested
from parity.capture.held import HELD, default_dtype

_WIDE = {
    torch.float32: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float16: torch.float64,
    torch.complex64: torch.complex128,
}
_NARROW = {torch.float64: torch.float32, torch.complex128: torch.complex64}
_DRAWS = {torch.randn, torch.rand, torch.randn_like, torch.rand_like}
_DRAWS_IN_PLACE = {torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.exponential_}
_CASTS = {torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16}
_CONVERSIONS = {torch.Tensor.to, torch.Tensor.type_as, torch.Tensor.type}
_LEAVES = (
    str,
    bytes,
    int,
    float,
    bool,
    type(None),
    type,
    types.ModuleType,
    types.FunctionType,
    types.BuiltinFunctionType,
    torch.Generator,
)


@contextmanager
def keep_double() -> Iterator[None]:
    """While the block runs, floating casts and factories below float64 give float64; random numbers stay those of the deployed dtype."""
    before, token = torch.get_default_dtype(), HELD.set(False)  # whatever a run that failed inside a held module left
    torch.set_default_dtype(torch.float64)
    try:
        with default_dtype(before), _KeepDouble(before):
            yield
    finally:
        torch.set_default_dtype(before)
        HELD.reset(token)


class _KeepDouble(TorchFunctionMode):
    def __init__(self, default: torch.dtype) -> None:
        super().__init__()
        self.default = default

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if HELD.get():
            return func(*args, **kwargs)
        if func in _DRAWS:  # the numbers of the deployed run: a generator gives others in another dtype
            dtype = kwargs.get("dtype") or self.default
            drawn = func(*args, **(kwargs | {"dtype": dtype}))
            return drawn.to(_WIDE[dtype]) if dtype in _WIDE else drawn
        if func in _DRAWS_IN_PLACE and args[0].dtype == torch.float64:
            return args[0].copy_(func(torch.empty_like(args[0], dtype=self.default), *args[1:], **kwargs))
        if func in _CASTS:
            return args[0].double()
        if any(isinstance(a, torch.dtype) for a in args):
            args = tuple(_WIDE.get(a, a) if isinstance(a, torch.dtype) else a for a in args)
        dtype = kwargs.get("dtype")
        if dtype in _WIDE:
            kwargs = kwargs | {"dtype": _WIDE[dtype]}
        result = _called(func, args, kwargs)
        if func in _CONVERSIONS and isinstance(result, Tensor) and result.dtype in _WIDE:
            return args[0].to(
                device=result.device, dtype=_WIDE[result.dtype]
            )  # from the value itself: the result is rounded
        return result


def _called(func: Any, args: Any, kwargs: Any) -> Any:
    """Call an operation; one that refuses float64 gets float32, and its results go on in float64."""
    try:
        return func(*args, **kwargs)
    except (RuntimeError, TypeError, NotImplementedError):
        given = (args, kwargs)
        wide = [value for _, value in nested.tensors(given) if value.dtype in _NARROW]
        if not wide or getattr(func, "__name__", "").endswith("_") or "out" in kwargs:
            raise
        less = nested.replace(given, lambda path, value: value.to(_NARROW.get(value.dtype, value.dtype)))
        try:
            result = func(*less[0], **less[1])
        except Exception:
            result = None
        if result is None:
            raise
        return nested.replace(result, lambda path, value: value.to(_WIDE.get(value.dtype, value.dtype)))


def upcast_in_place(value: Any) -> Any:
    """Turn everything that `value` holds into float64 (complex128); return it (a new object where a bare tensor or container was given)."""
    return _upcast(value, {})


def upcast_own(twin: nn.Module, original: nn.Module) -> nn.Module:
    """Turn a copy of a module into float64.

    Nothing of the `original` is changed: what the copy holds in common with it, because some `__deepcopy__` returns its own object, is copied
    again before it is cast.
    """
    shared: dict[int, Any] = {}
    _gather(original, shared)
    memo: dict[int, Any] = {id(item): (item, _second_copy(item)) for item in _common(twin, shared)}
    return cast(nn.Module, _upcast(twin, memo))


def _gather(value: Any, found: dict[int, Any]) -> None:
    """Collect every object that holds attributes, by identity."""
    todo = [value]
    while todo:
        item = todo.pop()
        if id(item) in found or isinstance(item, (*_LEAVES, Tensor, torch.dtype)):
            continue
        if isinstance(item, dict):
            parts: list[Any] = list(item.values())
        elif isinstance(item, (list, tuple)):
            parts = list(item)
        else:
            parts = list(vars(item).values()) if hasattr(item, "__dict__") else []
        found[id(item)] = item
        todo += parts


def _common(copied: Any, shared: dict[int, Any]) -> list[Any]:
    own: dict[int, Any] = {}
    _gather(copied, own)
    return [
        item
        for key, item in own.items()
        if key in shared and hasattr(item, "__dict__") and not isinstance(item, (nn.Module, types.MethodType))
    ]


def _second_copy(item: Any) -> Any:
    """Return a copy of one level in float64, whatever the object's own copying does; the object itself where that cannot be."""
    try:
        twin = object.__new__(type(item))
        vars(twin).update(vars(item))
    except TypeError:
        return item
    for name, value in list(vars(twin).items()):
        if isinstance(value, Tensor):
            vars(twin)[name] = _wide_tensor(value)
        elif isinstance(value, torch.dtype):
            vars(twin)[name] = _WIDE.get(value, value)
    return twin


def _upcast(value: Any, memo: dict[int, Any]) -> Any:
    if isinstance(value, torch.dtype):
        return _WIDE.get(value, value)
    if isinstance(value, _LEAVES):
        return value
    if id(value) in memo:
        return memo[id(value)][1]
    memo[id(value)] = (value, value)  # keeps `value` alive, so that its id stays its own
    if isinstance(value, Tensor):
        memo[id(value)] = (value, _wide_tensor(value))
    elif isinstance(value, nn.Module):
        _upcast_module(value, memo)
    elif type(value) is dict:
        _replace_if_changed(value, {key: _upcast(item, memo) for key, item in value.items()}, memo)
    elif type(value) is list:
        _replace_if_changed(value, [_upcast(item, memo) for item in value], memo)
    elif isinstance(value, tuple):
        parts = [_upcast(item, memo) for item in value]
        if any(a is not b for a, b in zip(parts, value, strict=True)):
            new = type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
            memo[id(value)] = (value, new)
    elif isinstance(value, types.MethodType):
        _upcast(value.__self__, memo)
    elif dataclasses.is_dataclass(value) and _is_frozen(value):
        copied: Any = copy.copy(cast(Any, value))  # frozen records may be shared with other runs
        _upcast_attributes(copied, memo)
        memo[id(value)] = (value, copied)
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        _upcast_attributes(value, memo)
    return memo[id(value)][1]


def _is_frozen(value: Any) -> bool:
    return bool(value.__dataclass_params__.frozen)


def _replace_if_changed(old: Any, new: Any, memo: dict[int, Any]) -> None:
    """Containers are never changed in place: a constant of the code may be shared with other runs."""
    pairs = zip(old.values(), new.values(), strict=True) if isinstance(old, dict) else zip(old, new, strict=True)
    if any(a is not b for a, b in pairs):
        memo[id(old)] = (old, new)


def _upcast_module(module: nn.Module, memo: dict[int, Any]) -> None:
    for child in module.modules():
        memo.setdefault(id(child), (child, child))
        for parameter in child._parameters.values():
            if parameter is not None and parameter.dtype in _WIDE:
                parameter.data = parameter.data.to(_WIDE[parameter.dtype])  # in place: tied parameters stay tied
        for name, buffer in child._buffers.items():
            if buffer is not None:
                child._buffers[name] = _upcast(buffer, memo)
    for child in module.modules():
        _upcast_attributes(child, memo)


def _upcast_attributes(value: Any, memo: dict[int, Any]) -> None:
    for name, item in list(vars(value).items()):
        if name in ("_parameters", "_buffers", "_modules") or "_hooks" in name:
            continue
        new = _upcast(item, memo)
        if new is not item:
            try:
                object.__setattr__(value, name, new)
            except AttributeError:  # read-only
                continue


def _wide_tensor(value: Tensor) -> Tensor:
    return value.detach().to(_WIDE[value.dtype]) if value.dtype in _WIDE else value
