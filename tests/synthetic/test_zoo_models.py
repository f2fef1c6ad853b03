"""The synthetic models: equal builds, asymmetric inputs, float64 copies, and seams that are really passed."""

from __future__ import annotations

import copy
import inspect
import time

import pytest
import torch

from fixtures.synthetic.models import NAMES, load
from fixtures.synthetic.models.seams import resolve
from fixtures.synthetic.models.weights import cast
from fixtures.synthetic.models.witness import Event, observe, relative_error


def calls_of(events: list[Event], target: str) -> int:
    name = target.rpartition(":")[2].rpartition(".")[2]
    return sum(event.edge == "in" and event.site.rpartition(".")[2] == name for event in events)


@pytest.mark.parametrize("name", NAMES)
def test_two_builds_are_the_same_and_run_the_same(name: str) -> None:
    zoo = load(name)
    first, second = zoo.build(3), zoo.build(3)
    for (key, a), (other, b) in zip(first.state_dict().items(), second.state_dict().items(), strict=True):
        assert key == other
        assert torch.equal(a, b)
    one, two = zoo.run(first, zoo.make_inputs(3)), zoo.run(second, zoo.make_inputs(3))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    other_seed = zoo.run(zoo.build(4), zoo.make_inputs(3))
    assert all(not torch.equal(one[key], other_seed[key]) for key in one)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_random_and_never_zero(name: str) -> None:
    for key, parameter in load(name).build(0).named_parameters():
        assert parameter.isfinite().all(), key
        assert (parameter == 0).float().mean() < 0.01, key
        assert parameter.numel() == 1 or parameter.float().std() > 0, key


@pytest.mark.parametrize("name", NAMES)
def test_running_leaves_model_and_inputs_alone(name: str) -> None:
    zoo = load(name)
    model, inputs = zoo.build(0), zoo.make_inputs(0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    first, second = zoo.run(model, inputs), zoo.run(model, inputs)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_a_float64_copy_agrees(name: str) -> None:
    zoo = load(name)
    model = zoo.build(0)
    single = zoo.run(model, zoo.make_inputs(0))
    double = zoo.run(copy.deepcopy(model).double(), cast(zoo.make_inputs(0), torch.float64))
    # int8 and float16 roundings sit inside the model: an ulp can move a number over a rounding boundary
    limit = 5e-3 if name == "int8" else 1e-5
    for key in single:
        if single[key].dtype == torch.uint8:
            assert (single[key].int() - double[key].int()).abs().max() <= 1
        else:
            assert relative_error(double[key], single[key]) < limit, key


@pytest.mark.parametrize("name", NAMES)
def test_every_seam_scope_and_state_is_passed(name: str) -> None:
    zoo = load(name)
    _, events = observe(zoo, zoo.build(0), zoo.make_inputs(0))
    targets = [seam.target for seam in zoo.SEAMS] + [read.target for read in zoo.STATES]
    for target in targets:
        assert calls_of(events, target) > 0, target
    for seam in zoo.SEAMS:
        owner, attribute = resolve(seam.target)
        assert set(seam.args) <= set(inspect.signature(getattr(owner, attribute)).parameters), seam.target
        assert isinstance(seam.site, tuple) == (seam.each or seam.cycle), seam.target
    for scope in zoo.SCOPES:
        owner, attribute = resolve(scope.target)
        assert callable(getattr(owner, attribute))
    seen = {event.site for event in events if event.edge == "in"}
    quiet = {path for path, module in zoo.build(0).named_modules() if not list(module.children())} - seen
    allowed = {"text": {"vision.post_layernorm"}, "vae": {"encoder.unit0.norm", "encoder.unit1.norm"}}
    assert {p for p in quiet if not p.endswith(("norm_q", "norm_k"))} <= allowed.get(name, set()) | _called_by_function(
        name
    )


def _called_by_function(name: str) -> set[str]:
    """Leaves whose weights are read by a function instead of being called."""
    return {"decoder.norm"} if name == "sharded" else set()


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_quick(name: str) -> None:
    zoo = load(name)
    model, inputs = zoo.build(0), zoo.make_inputs(0)
    zoo.run(model, inputs)
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        zoo.run(model, inputs)
        taken.append(time.perf_counter() - start)
    assert min(taken) < 0.25  # about 20 ms on an idle core; the limit leaves room for a busy one


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(ValueError, match="no synthetic model is called 'nope'; there are decoder, dit"):
        load("nope")
