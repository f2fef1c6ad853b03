"""Probes on functions, states and scopes: wherever the function lives, it is wrapped while the run lasts and put back as it was."""

from __future__ import annotations

import inspect
import types

import pytest
import torch
from core_models import noise
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from parity.capture.probes import Call, Function, Modules, Scope, State
from parity.capture.recorder import Recorder
from parity.errors import CaseError


class Base:
    """An owner of every kind of function."""

    factor = 3.0

    def method(self, x, power: int = 1):
        return x * self.factor**power

    @staticmethod
    def static(x):
        return x + 1

    @classmethod
    def of_class(cls, x):
        return x * cls.factor


class Child(Base):
    factor = 5.0


def module_with_function() -> types.ModuleType:
    module = types.ModuleType("loose")

    def rotate(x, angle: float = 0.5):
        return x * angle

    module.rotate = rotate
    return module


def call_method(owner):
    return (owner if not isinstance(owner, type) else owner()).method(noise(3), power=2)


OWNERS = {
    "module function": (module_with_function, "rotate", lambda o: o.rotate(noise(3), 0.25)),
    "method on instance": (Base, "method", call_method),
    "method on class": (lambda: Base, "method", call_method),
    "inherited method on subclass": (lambda: Child, "method", call_method),
    "static on class": (lambda: Base, "static", lambda o: o.static(noise(3))),
    "static on instance": (Base, "static", lambda o: o.static(noise(3))),
    "inherited static": (lambda: Child, "static", lambda o: o.static(noise(3))),
    "classmethod on class": (lambda: Base, "of_class", lambda o: o.of_class(noise(3))),
    "classmethod on instance": (Child, "of_class", lambda o: o.of_class(noise(3))),
    "inherited classmethod": (lambda: Child, "of_class", lambda o: o.of_class(noise(3))),
    "module method": (lambda: nn.Linear(3, 3), "forward", lambda o: o(noise(2, 3))),
    "torch function": (lambda: torch.nn.functional, "gelu", lambda o: o.gelu(noise(3))),
}


@pytest.mark.parametrize("where", OWNERS)
def test_a_function_is_seen_and_put_back(where):
    make, name, use = OWNERS[where]
    owner = make()
    own_before = {k: v for k, v in vars(owner).items() if not k.startswith("__")}
    before = inspect.getattr_static(owner, name)
    plain = use(owner)
    with Recorder([Function(owner, name, "seen")]) as recorder:
        assert torch.equal(use(owner), plain)
    assert inspect.getattr_static(owner, name) is before
    assert {k: v for k, v in vars(owner).items() if not k.startswith("__")} == own_before
    assert torch.equal(recorder.trace.tensor("seen"), plain)
    assert [r.role for r in recorder.trace] == ["function"]


@pytest.mark.parametrize("where", OWNERS)
def test_a_function_is_put_back_after_an_exception(where):
    make, name, use = OWNERS[where]
    owner = make()
    before = inspect.getattr_static(owner, name)
    had = name in vars(owner)
    with pytest.raises(ZeroDivisionError), Recorder([Function(owner, name, "seen")]):
        use(owner)
        raise ZeroDivisionError
    assert inspect.getattr_static(owner, name) is before
    assert (name in vars(owner)) is had


def test_a_classmethod_observed_on_its_base_still_gets_the_class_that_called():
    x = noise(3)
    with Recorder([Function(Base, "of_class", "seen")]) as recorder:
        assert torch.equal(Child.of_class(x), x * 5.0)
        assert torch.equal(Child().of_class(x), x * 5.0)
        assert torch.equal(Base.of_class(x), x * 3.0)
    assert [dict(r.coords) for r in recorder.trace] == [{}, {"call": 1}, {"call": 2}]


def test_methods_observed_on_a_class_serve_all_its_instances():
    one, two = Base(), Child()
    with Recorder([Function(Base, "method", "seen", args={"x": "x", "power": "power"})]) as recorder:
        one.method(noise(3))
        two.method(noise(3), power=2)
    assert torch.equal(recorder.trace.tensor("seen@call=1"), noise(3) * 25.0)
    assert recorder.trace.tensor("power").item() == 1  # the default value, bound by name
    assert recorder.trace.tensor("power@call=1").item() == 2
    assert [r.role for r in recorder.trace] == ["in", "in", "function"] * 2


def test_arguments_are_replaced_too():
    owner = module_with_function()

    def override(site, coords, value):
        return torch.full_like(value, 2.0) if site == "x" else None

    with Recorder([Function(owner, "rotate", "y", args={"x": "x"})], override=override) as recorder:
        assert torch.equal(owner.rotate(noise(3), angle=4.0), torch.full((3,), 8.0))
    assert torch.equal(recorder.trace.tensor("x"), noise(3))


def test_an_argument_that_is_not_there_is_one_clear_line():
    owner = module_with_function()
    with (
        pytest.raises(CaseError, match="no argument 'theta'.*angle"),
        Recorder([Function(owner, "rotate", args={"theta": "t"})]),
    ):
        owner.rotate(noise(3))
    assert owner.rotate.__name__ == "rotate"
    assert not hasattr(owner.rotate, "__wrapped__")


class Attention(nn.Module):
    """Rotates q, then k, through a function that belongs to another object."""

    def __init__(self, tools: types.ModuleType) -> None:
        super().__init__()
        self.tools = tools

    def forward(self, x):
        return self.tools.rotate(x, 1.5) + self.tools.rotate(x, 2.5)


def test_labels_in_turn_restart_with_every_module_call_and_carry_the_module():
    tools = module_with_function()
    model = nn.ModuleDict({"a": Attention(tools), "b": Attention(tools)})
    probes = [
        Modules(model, inputs=False, outputs=False),
        Function(tools, "rotate", ("{module}.q", "{module}.k"), kind="rope"),
    ]
    x = noise(3)
    with Recorder(probes) as recorder:
        model["b"](model["a"](x))
        tools.rotate(x)
    assert [r.key for r in recorder.trace] == ["a.q", "a.k", "b.q", "b.k", "q"]
    assert torch.equal(recorder.trace.tensor("a.k"), x * 2.5)
    assert {r.kind for r in recorder.trace} == {"rope"}
    assert [r.module for r in recorder.trace] == ["a", "a", "b", "b", ""]


def test_parts_of_a_result_have_their_own_labels_and_are_replaced_alone():
    owner = types.SimpleNamespace(both=lambda x: (x + 1, x + 2, None))

    def override(site, coords, value):
        return torch.zeros_like(value) if site == "k" else None

    with Recorder([Function(owner, "both", ("q", "k", ""), each=True)], override=override) as recorder:
        q, k, rest = owner.both(noise(3))
    assert recorder.trace.sites() == ["q", "k"]
    assert torch.equal(q, noise(3) + 1)
    assert torch.equal(k, torch.zeros(3))
    assert rest is None


def test_labels_made_from_the_call_and_picked_results():
    owner = module_with_function()
    by_call = Function(owner, "rotate", lambda call: f"angle.{call['angle']}")
    picked = Function(owner, "rotate", "norm", pick=lambda call: call.result.norm())
    with Recorder([by_call, picked], override=lambda s, c, v: torch.zeros_like(v) if s == "norm" else None) as recorder:
        result = owner.rotate(noise(3), 2.0)
    assert recorder.trace.sites() == ["angle.2.0", "norm"]
    # What is picked is only looked at: it cannot be put back into the result.
    assert torch.equal(result, noise(3) * 2.0)
    assert torch.equal(recorder.trace.tensor("norm"), result.norm())


class Sampler:
    """Frames of steps of branches, with a cache that the frame's end leaves behind."""

    def __init__(self) -> None:
        self.cache: list[torch.Tensor] = []

    def frame(self, steps: int) -> None:
        for i in range(steps):
            self.step(torch.full((2,), float(i)))
        self.cache.append(torch.full((2,), float(steps)))

    def step(self, x):
        return self.branch(x) + self.branch(-x)

    def branch(self, x):
        return x * 2


@settings(max_examples=15)
@given(steps=st.lists(st.integers(0, 3), min_size=1, max_size=4))
def test_scopes_count_within_the_outer_axis(steps):
    sampler = Sampler()
    probes = [
        Scope(sampler, "frame", "frame"),
        Scope(sampler, "step", "step"),
        Scope(sampler, "branch", "branch"),
        Function(sampler, "branch", "out"),
        State(sampler, "frame", lambda call: {"cache": torch.stack(sampler.cache)}),
    ]
    with Recorder(probes) as recorder:
        for count in steps:
            sampler.frame(count)
    assert recorder.coords == {}
    expected = []
    for f, count in enumerate(steps):
        expected += [{"frame": f, "step": s, "branch": b} for s in range(count) for b in (0, 1)] + [{"frame": f}]
    assert [dict(r.coords) for r in recorder.trace] == expected
    assert all(list(r.coords) == ["frame", "step", "branch"][: len(r.coords)] for r in recorder.trace)
    cache = [r for r in recorder.trace if r.site == "cache"]
    assert [r.shape for r in cache] == [(i + 1, 2) for i in range(len(steps))]
    assert {(r.kind, r.role) for r in cache} == {("kv", "state")}


def test_a_scope_takes_its_index_from_the_call():
    owner = module_with_function()
    probes = [Scope(owner, "rotate", "frame", index=lambda call: int(call["angle"])), Function(owner, "rotate", "y")]
    with Recorder(probes) as recorder:
        owner.rotate(noise(3), angle=7)
        owner.rotate(noise(3), angle=7)
        owner.rotate(noise(3), angle=2)
    assert [dict(r.coords) for r in recorder.trace] == [{"frame": 7}, {"frame": 7, "call": 1}, {"frame": 2}]


def test_an_exception_inside_a_scope_leaves_it():
    sampler = Sampler()
    with Recorder([Scope(sampler, "step", "step"), Function(sampler, "branch", "out")]) as recorder:
        with pytest.raises(TypeError):
            sampler.step("no tensor")
        sampler.branch(torch.ones(2))
        sampler.step(torch.ones(2))
    assert [dict(r.coords) for r in recorder.trace][:2] == [{}, {"step": 1}]


def test_states_before_and_after_and_nothing_recorded_while_they_are_read():
    sampler = Sampler()

    def read(call: Call):
        with torch.no_grad():
            return {"cache": sampler.step(torch.ones(2)), "count": torch.tensor(len(sampler.cache))}

    probes = [
        State(sampler, "frame", read, before=True),
        State(sampler, "frame", read),
        Function(sampler, "step", "step"),
    ]
    with Recorder(probes) as recorder:
        sampler.frame(1)
    assert [r.key for r in recorder.trace] == ["cache", "count", "step", "cache@call=1", "count@call=1"]
    assert recorder.trace.tensor("count").item() == 0
    assert recorder.trace.tensor("count@call=1").item() == 1


def test_two_probes_on_one_function_share_one_wrapper():
    owner = module_with_function()
    original = owner.rotate
    with Recorder([Function(owner, "rotate", "a"), Function(owner, "rotate", "b", args={"x": "x"})]) as recorder:
        assert owner.rotate.__wrapped__ is original
        owner.rotate(noise(3))
    assert recorder.trace.sites() == ["x", "a", "b"]
    assert owner.rotate is original
