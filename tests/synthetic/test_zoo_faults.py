"""Every synthetic fault changes the result, first where it says, and leaves nothing behind."""

from __future__ import annotations

import copy
from collections import Counter
from functools import cache

import pytest
import torch
from torch import Tensor

from fixtures.synthetic.faults import FAULTS
from fixtures.synthetic.faults.fault import ZooFault
from fixtures.synthetic.models import NAMES, load
from fixtures.synthetic.models.seams import resolve
from fixtures.synthetic.models.witness import Event, culprit, first_difference, observe, relative_error

SIZES = {"W": 14, "P": 7, "A": 11, "N": 8, "T": 9, "C": 10, "V": 11, "K": 9, "Q": 7, "D": 4, "S": 3}
CLASSES = {f"{family}{i}" for family, count in SIZES.items() for i in range(1, count + 1)} - {"C4"}


@cache
def reference(name: str) -> tuple[dict[str, Tensor], list[Event]]:
    zoo = load(name)
    return observe(zoo, zoo.build(0), zoo.make_inputs(0))


def faulty(fault: ZooFault) -> tuple[dict[str, Tensor], list[Event]]:
    zoo = load(fault.model)
    model = zoo.build(0)
    torch.manual_seed(0)  # dropout draws from the global generator
    with fault.inject(model):
        return observe(zoo, model, zoo.make_inputs(0))


def result_labels(model: str, call: str) -> set[str]:
    """What the seams call the result of the function that is the culprit."""
    sites = [seam.site for seam in load(model).SEAMS if seam.target.endswith((f":{call}", f".{call}")) and call]
    return {label for site in sites for label in (site if isinstance(site, tuple) else (site,))}


def by_name(fault: ZooFault) -> str:
    return f"{fault.model}-{fault.name}"


@pytest.mark.parametrize("fault", FAULTS, ids=by_name)
def test_a_fault_shows_first_where_it_is(fault: ZooFault) -> None:
    outputs, events = reference(fault.model)
    changed, port_events = faulty(fault)
    errors = [relative_error(changed[key].float(), outputs[key].float()) for key in outputs if key in changed]
    assert max(errors) > 1e-6 or changed.keys() != outputs.keys()
    first = first_difference(events, port_events)
    assert first is not None
    call, module = culprit(first)
    right = {fault.module, *fault.also}
    assert {call, module} & right, f"the first change is in {call!r} (module {module!r}), declared {sorted(right)}"
    if fault.module == "":
        seen = {call, first.site, *first.labels, *result_labels(fault.model, call)}
        assert seen & right, f"{sorted(seen)} has none of {sorted(right)}"


@pytest.mark.parametrize("fault", FAULTS, ids=by_name)
def test_a_fault_is_large_enough_to_be_no_noise(fault: ZooFault) -> None:
    """Run in float64 on both sides (no rounding left), the fault is still there."""
    zoo = load(fault.model)
    clean, model = copy.deepcopy(zoo.build(0)).double(), zoo.build(0)
    torch.manual_seed(0)
    with fault.inject(model):
        port = zoo.run(copy.deepcopy(model).double(), zoo.make_inputs(0) | _doubled(fault.model))
    right = zoo.run(clean, zoo.make_inputs(0) | _doubled(fault.model))
    errors = [relative_error(port[key].double(), right[key].double()) for key in right]
    assert max(errors) > 2e-6


def _doubled(name: str) -> dict[str, object]:
    from fixtures.synthetic.models.weights import cast

    return cast(load(name).make_inputs(0), torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_behind(name: str) -> None:
    zoo = load(name)
    before = zoo.run(zoo.build(0), zoo.make_inputs(0))
    for fault in (f for f in FAULTS if f.model == name):
        with pytest.raises(KeyboardInterrupt), fault.inject(zoo.build(0)):
            raise KeyboardInterrupt
    after = zoo.run(zoo.build(0), zoo.make_inputs(0))
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_table_is_sound() -> None:
    assert len(FAULTS) >= 75
    assert len(CLASSES) == 92
    assert max(Counter(map(by_name, FAULTS)).values()) == 1
    assert {fault.bug_class for fault in FAULTS} == CLASSES
    for fault in FAULTS:
        assert set(fault.accept) <= CLASSES - {fault.bug_class}, fault.name
        assert len(fault.accept) <= 2, fault.name
        assert fault.text, fault.name
        assert fault.module or fault.also, fault.name
        if fault.module:
            load(fault.model).build(0).get_submodule(fault.module)


def test_weights_and_settings_are_the_faults_without_a_line() -> None:
    """A fault in weights leaves every function alone; a fault in code leaves every weight alone."""
    for fault in FAULTS:
        zoo = load(fault.model)
        model, clean = zoo.build(0), zoo.build(0)
        seams = [resolve(seam.target) for seam in zoo.SEAMS]
        kept = [owner.__dict__[name] for owner, name in seams]
        with fault.inject(model):
            swapped = [owner.__dict__[name] for owner, name in seams] != kept
            state, right = model.state_dict(), clean.state_dict()
            same = all(key in state and torch.equal(state[key], value) for key, value in right.items())
            if not fault.in_forward:
                assert not swapped, fault.name
            elif fault.name != "prefetch_overwrites_slot":
                assert same, fault.name
