"""What a function returns and leaves behind is compared: each way to lose a difference, with the right port beside it."""

from __future__ import annotations

import copy
import dataclasses
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import parity
from parity.errors import CaseError

D = 8
X = torch.linspace(-1, 1, 3 * D).reshape(3, D).sin()


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.Linear(D, D))


class Returns(nn.Module):
    """A net and what is made of its result."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Any]):
        super().__init__()
        self.net, self.function = net(), function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.net, x)


class Box:
    def __init__(self, sample: Any):
        self.sample = sample


@dataclasses.dataclass
class Output:
    sample: Tensor
    count: int = dataclasses.field(init=False, default=5)


Named = namedtuple("Named", "first second")


def verdict(reference: Callable[..., Any], port: Callable[..., Any], **options: Any) -> str:
    return parity.check(Returns(reference), Returns(port), (X,), **options).verdict


def spike(y: Tensor) -> Tensor:
    z = torch.zeros_like(y)
    z[0, 0] = 1e7
    return y + z


def modify(n: nn.Module, x: Tensor) -> Tensor:
    y = n(x)
    x.mul_(2)
    return y


# name: (reference, wrong port, right port)
PAIRS: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]] = {
    "an output is lost": (
        lambda n, x: (n(x), x * 7),
        lambda n, x: (n(x),),
        lambda n, x: [n(x), x * 7],
    ),
    "an output is None": (
        lambda n, x: (n(x), x * 3),
        lambda n, x: (n(x), None),
        lambda n, x: (n(x), x * 3, None),
    ),
    "an output too many": (
        lambda n, x: {"y": n(x)},
        lambda n, x: {"y": n(x), "z": x * 3},
        lambda n, x: {"y": n(x), "z": None},
    ),
    "other keys": (
        lambda n, x: {"a": n(x), "b": x * 3},
        lambda n, x: {"a": n(x), "c": x * 3},
        lambda n, x: {"b": x * 3, "a": n(x)},
    ),
    "fields change places": (
        lambda n, x: Named(n(x), x * 3),
        lambda n, x: Named(x * 3, n(x)),
        lambda n, x: (n(x), x * 3),
    ),
    "an object": (lambda n, x: n(x), lambda n, x: Box(n(x) * 1.5), lambda n, x: Box(n(x))),
    "a dataclass": (lambda n, x: Output(n(x)), lambda n, x: Output(n(x) * 1.5), lambda n, x: Output(n(x))),
    "a list of frames": (
        lambda n, x: n(x),
        lambda n, x: list((n(x) * 1.5).unbind(0)),
        lambda n, x: list(n(x).unbind(0)),
    ),
    "a generator": (
        lambda n, x: (n(row) for row in x),
        lambda n, x: (n(row) * 2 for row in x),
        lambda n, x: [n(row) for row in x],
    ),
    "a set": (lambda n, x: {n(x), x}, lambda n, x: {n(x) * 2, x}, lambda n, x: {x, n(x)}),
    "numpy": (lambda n, x: n(x).numpy(), lambda n, x: n(x).numpy() * 2, lambda n, x: n(x).numpy()),
    "a number": (lambda n, x: float(n(x).sum()), lambda n, x: float(n(x).sum()) * 2, lambda n, x: float(n(x).sum())),
    "a text": (lambda n, x: (n(x), "eps"), lambda n, x: (n(x), "v"), lambda n, x: (n(x), "eps")),
    "another dtype": (lambda n, x: n(x), lambda n, x: n(x).bfloat16(), lambda n, x: n(x).double().float()),
    "a row and no row": (lambda n, x: n(x)[:1], lambda n, x: n(x)[:0], lambda n, x: n(x)[0:1].clone()),
    "a batch of one": (
        lambda n, x: n(x)[:1],
        lambda n, x: n(x)[:1].expand(3, D).clone(),
        lambda n, x: n(x).narrow(0, 0, 1),
    ),
    "two different rows for one": (
        lambda n, x: n(x)[:1],
        lambda n, x: n(x)[:2],
        lambda n, x: n(x)[:2][:1],
    ),
    "one axis more": (lambda n, x: n(x).sum(), lambda n, x: n(x).sum()[None], lambda n, x: n(x).sum(0).sum(0)),
    "an empty result of another dtype": (
        lambda n, x: (n(x), n(x)[:0]),
        lambda n, x: (n(x), n(x)[:0].long()),
        lambda n, x: (n(x), n(x)[3:]),
    ),
    "dropout left on": (
        lambda n, x: F.dropout(n(x), 0.5, True),
        lambda n, x: n(x),
        lambda n, x: F.dropout(n(x), 0.5, True),
    ),
    "noise of another size": (
        lambda n, x: n(x + torch.randn(x.shape)),
        lambda n, x: n(x + 2 * torch.randn(x.shape)),
        lambda n, x: n(torch.randn(x.shape) + x),
    ),
    "ten percent under a massive activation": (
        lambda n, x: spike(n(x)),
        lambda n, x: spike(n(x) * 1.1),
        lambda n, x: spike(n(x)),
    ),
    "an input changed in place": (lambda n, x: n(x), modify, lambda n, x: n(x.mul_(1))),
    "both change the input, not alike": (
        modify,
        lambda n, x: (n(x), x.mul_(3))[0],
        lambda n, x: (n(x), x.add_(x))[0],
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_wrong_result_is_no_match_and_its_right_twin_is(name: str):
    reference, wrong, right = PAIRS[name]
    assert verdict(reference, wrong) == "diverged"
    assert verdict(reference, right) == "match"


def test_the_result_of_a_function_is_the_last_record():
    found = parity.check((lambda m, x: m(x) * 2, net()), (lambda m, x: m(x) * 3, net()), (X,))
    assert (found.verdict, found.first.site, found.rows[-1].site) == ("diverged", "return", "return")
    assert parity.check((lambda m, x: m(x) * 2, net()), (lambda m, x: (y := m(x)) + y, net()), (X,)).verdict == "match"


def test_an_empty_result_compares_nothing():
    found = parity.check(Returns(lambda n, x: n(x)[:0]), Returns(lambda n, x: (n(x) * 2)[:0]), (X,))
    assert found.verdict == "incomplete"
    assert "no elements" in " ".join(found.notes)
    assert verdict(lambda n, x: n(x)[:0], lambda n, x: n(x)[:0], relax=["empty"]) == "match"


@pytest.mark.parametrize(
    ("rule", "name"),
    [("names", "other keys"), ("missing", "an output is lost"), ("extra", "an output too many"), ("dtype", "another dtype"),
     ("left", "an input changed in place")],
)  # fmt: skip
def test_a_rule_is_relaxed_by_its_name(rule: str, name: str):
    reference, wrong, _ = PAIRS[name]
    found = parity.check(Returns(reference), Returns(wrong), (X,), relax=[rule], isolate=rule != "dtype")
    assert found.verdict == "match", found.first
    assert any(f"'{rule}'" in note for note in found.notes)


def test_an_unknown_rule_is_refused():
    with pytest.raises(CaseError, match="no rule 'shape'"):
        verdict(lambda n, x: n(x), lambda n, x: n(x), relax=["shape"])


@pytest.mark.parametrize("options", [{"floor": float("inf")}, {"floor": -1}, {"floor": "wide"}, {"allow_unaligned": 7}])
def test_limits_are_finite_and_in_range(options: dict[str, Any]):
    with pytest.raises(CaseError):
        verdict(lambda n, x: n(x), lambda n, x: n(x), **options)


class Counts(nn.Module):
    """A model that keeps a count: each run starts from the state that the user gave."""

    def __init__(self, gain: float = 1.0, step: int = 1):
        super().__init__()
        self.net, self.gain, self.step = net(), gain, step
        self.register_buffer("n", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.n += self.step
        return self.net(x) * self.n.clamp(max=1) * self.gain


def test_state_that_outlives_the_call_is_compared_and_given_back():
    model = Counts()
    assert parity.check(model, Counts(), (X,), isolate=False).verdict == "match"
    assert parity.check(model, Counts(gain=1.5), (X,), isolate=False).verdict == "diverged"
    assert parity.check(model, Counts(step=2), (X,)).first.site == "after.buffers.n"
    assert float(model.n) == 0


class Keeper:
    """A configuration that hands out itself for a copy."""

    def __init__(self) -> None:
        self.scale = torch.ones(D)

    def __deepcopy__(self, memo: dict[int, Any]) -> Keeper:
        return self


def test_what_returns_itself_as_its_copy_stays_as_it_is():
    model = Returns(lambda n, x: n(x) * keeper.scale)
    keeper = model.keeper = Keeper()
    assert parity.check(model, model, (X,)).verdict == "match"
    assert keeper.scale.dtype == torch.float32


def test_a_model_that_cannot_be_copied_is_checked_and_put_back():
    class Fixed(Counts):
        def __deepcopy__(self, memo: dict[int, Any]) -> Fixed:
            raise TypeError("one of a kind")

    model = Fixed()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = parity.check(model, Counts(), (X,))
    assert found.verdict == "match"
    assert "cannot be copied" in " ".join(found.notes)
    assert all(torch.equal(v, before[k]) and v.dtype == before[k].dtype for k, v in model.state_dict().items())


def test_two_tuples_are_two_arguments_where_the_model_takes_two():
    class Two(nn.Module):
        def __init__(self, gain: float = 1.0):
            super().__init__()
            self.net, self.gain = net(), gain

        def forward(self, xs: tuple[Tensor, ...], ys: tuple[Tensor, ...]) -> Tensor:
            return self.gain * (self.net(xs[0]) + ys[0])

    assert parity.check(Two(), Two(), ((X,), (X,))).verdict == "match"
    assert parity.check(Two(), Two(2.0), ((X,), (X,))).verdict == "diverged"
    with pytest.raises(CaseError, match="port_inputs="):
        parity.check((lambda m, *a: m(a[0][0], a[0][0]), Two()), (lambda m, *a: m(*a), Two()), ((X,), (X,)))
    assert parity.check(net(), Returns(lambda n, x: n(x)), (X,), port_inputs={"x": X}).verdict == "match"


def test_what_can_be_used_once_is_given_to_every_run():
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, rows: Any, source: torch.Generator) -> Tensor:
            return torch.stack([self.net(row + torch.randn(row.shape, generator=source)) for row in rows])

    source = torch.Generator().manual_seed(3)
    state = source.get_state()
    assert parity.check(Reads(), Reads(), ((row for row in X), source)).verdict == "match"
    assert torch.equal(source.get_state(), state)


def test_a_run_draws_the_same_numbers_and_leaves_the_users_generator_alone():
    state = torch.get_rng_state()
    assert verdict(lambda n, x: n(x) + torch.randn(3, D), lambda n, x: n(x) + torch.randn(3, D)) == "match"
    assert torch.equal(torch.get_rng_state(), state)


def test_a_trace_carries_what_was_returned(tmp_path: Any):
    for name, gain in (("a", 1.0), ("b", 1.0), ("c", 1.5)):
        parity.capture(Returns(lambda n, x, g=gain: Box(n(x) * g)), (X,), path=tmp_path / name)
    a, b, c = (parity.load_trace(tmp_path / name) for name in "abc")
    assert (a.manifest.returned, a.records[-1].site) == (True, "return.sample")
    assert parity.compare(a, b).verdict == "match"
    assert (parity.compare(a, c).verdict, parity.compare(a, c).first.site) == ("diverged", "return.sample")


def test_sparse_results_are_compared_as_numbers():
    assert verdict(lambda n, x: n(x).to_sparse(), lambda n, x: n(x)) == "match"
    assert verdict(lambda n, x: n(x).to_sparse(), lambda n, x: 2 * n(x)) == "diverged"


def test_the_users_modules_are_the_same_objects_afterwards():
    model = net()
    kept = {n: (p, p.data_ptr(), p.dtype) for n, p in model.named_parameters()}
    parity.check(model, copy.deepcopy(model), (X,))
    assert all((p, p.data_ptr(), p.dtype) == kept[n] for n, p in model.named_parameters() if p is kept[n][0])
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
