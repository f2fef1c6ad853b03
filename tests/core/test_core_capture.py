"""Capture changes nothing: same bits, same random numbers, nothing left behind; and what it writes down is what was there."""

from __future__ import annotations

import pytest
import torch
from core_models import Net, Parts, noise, seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import parity
from parity.capture import nested
from parity.capture.probes import Modules
from parity.capture.recorder import Recorder
from parity.errors import CaseError
from parity.trace.names import parse_names

RESULTS = ("tensor", "tuple", "list", "dict", "dataclass", "namedtuple", "nested", "model output")


def fingerprint(model: nn.Module) -> list[tuple]:
    """Everything a recorder could leave on a model: attributes, hooks, wrapped functions."""
    found = []
    for path, module in model.named_modules():
        found.append((path, sorted(vars(module)), [type(v) for v in vars(module).values()]))
        hooks = [v for k, v in sorted(vars(module).items()) if "_hooks" in k]
        found.append((path, [list(h) for h in hooks]))
        found.append((path, {name: id(value) for name, value in vars(type(module)).items() if callable(value)}))
    return found


def run(model: nn.Module, x: torch.Tensor, gain: torch.Tensor | None) -> list[torch.Tensor]:
    torch.manual_seed(5)
    result = model(x, gain=gain)
    return [t for _, t in nested.tensors(result)] + [torch.rand(3)]  # the generator must stand where it stood


@settings(max_examples=12)
@given(
    kind=st.sampled_from(RESULTS),
    keep=st.booleans(),
    digests=st.booleans(),
    train=st.booleans(),
    gained=st.booleans(),
    seed=st.integers(0, 5),
)
def test_capture_changes_no_bit_and_leaves_nothing(kind, keep, digests, train, gained, seed):
    model = seeded(Net, seed=seed, drop=0.3, result=kind).train(train)
    x, gain = noise(2, 3, 6, seed=seed), noise(6, seed=seed + 9) if gained else None
    plain = run(model, x, gain)
    before = fingerprint(model)
    with Recorder([Modules(model)], keep=keep, digests=digests) as recorder:
        seen = run(model, x, gain)
    assert fingerprint(model) == before
    assert len(seen) == len(plain) >= 2
    assert all(torch.equal(a, b) for a, b in zip(plain, seen, strict=True))
    assert recorder.trace.manifest.complete
    assert all(torch.equal(a, b) for a, b in zip(plain, run(model, x, gain), strict=True))


def test_capture_leaves_gradients_alone():
    model, x = seeded(Net), noise(2, 3, 6)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(x).square().sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    plain = gradients()
    with Recorder([Modules(model)]) as recorder:
        seen = gradients()
    assert all(torch.equal(a, b) for a, b in zip(plain, seen, strict=True))
    assert not any(recorder.trace.tensor(r.key).requires_grad for r in recorder.trace)


@pytest.mark.parametrize("kind", RESULTS)
def test_results_of_every_kind_are_recorded_part_by_part(kind):
    model, x = seeded(Net, result=kind), noise(2, 3, 6)
    expected = dict(nested.tensors(model(x)))
    with Recorder([Modules(model)]) as recorder:
        given_back = model(x)
    assert type(given_back) is type(model(x))
    for path, tensor in expected.items():
        site = f"model.{path}" if path else "model"
        assert torch.equal(recorder.trace.tensor(site), tensor), site
    names = {
        "tensor": [""],
        "tuple": ["0", "1"],
        "list": ["0", "1"],
        "dict": ["a", "b.0"],
        "dataclass": ["first", "second"],
        "namedtuple": ["left", "right"],
        "nested": ["deep.0", "deep.1.er.left"],
        "model output": ["last", "hidden.0"],
    }
    assert list(expected) == names[kind]


def test_sites_are_in_order_with_arguments_by_name():
    model, x, gain = seeded(Net, depth=1), noise(2, 3, 6), noise(6, seed=1)
    with Recorder([Modules(model)]) as recorder:
        model(x, gain=gain)
    trace = recorder.trace
    assert trace.sites() == [
        "model.in.x", "model.in.gain", "blocks.0.in.x", "blocks.0.norm.in.input", "blocks.0.norm", "blocks.0.fc.in.input",
        "blocks.0.fc", "blocks.0.drop.in.input", "blocks.0.drop", "blocks.0", "head.in.input", "head", "model",
    ]  # fmt: skip
    assert [r.order for r in trace] == list(range(len(trace)))
    assert {r.kind for r in trace if ".in." in r.site} == {"input"}
    # An input was made by the caller of the module, an output by the module itself.
    modules = {r.site: r.module for r in trace}
    assert modules["blocks.0.fc.in.input"] == "blocks.0"
    assert modules["blocks.0.fc"] == "blocks.0.fc"
    assert modules["model.in.x"] == ""


def test_repeated_calls_are_kept_apart():
    layer = nn.Linear(4, 4)
    inputs = [noise(2, 4, seed=i) for i in range(3)]
    with Recorder([Modules(layer, name="layer")]) as recorder:
        results = [layer(x) for x in inputs]
    coords = [dict(r.coords) for r in recorder.trace if r.site == "layer"]
    assert coords == [{}, {"call": 1}, {"call": 2}]
    for i, (x, y) in enumerate(zip(inputs, results, strict=True)):
        at = {"call": i} if i else {}
        assert torch.equal(recorder.trace.at("layer.in.input", at), x)
        assert torch.equal(recorder.trace.at("layer", at), y)


def test_a_module_called_twice_in_one_forward_and_a_shared_module():
    shared = nn.Linear(4, 4)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = shared, shared

        def forward(self, x):
            return self.b(self.a(x))

    model, x = Twice(), noise(2, 4)
    with Recorder([Modules(model)]) as recorder:
        y = model(x)
    assert torch.equal(recorder.trace.at("a", {"call": 1}), y)
    assert not torch.equal(recorder.trace.at("a", {}), y)


def test_in_place_changes_afterwards_do_not_falsify_records():
    class Spoiler(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            y = self.fc(x)
            self.honest = y.clone()
            y.mul_(0).add_(7)
            x.zero_()
            return y

    model, x = Spoiler(), noise(2, 4)
    given = x.clone()
    with torch.no_grad(), Recorder([Modules(model)]) as recorder:
        model(x)
    assert torch.equal(recorder.trace.tensor("fc"), model.honest)
    assert torch.equal(recorder.trace.tensor("fc.in.input"), given)
    assert torch.equal(recorder.trace.tensor("model.in.x"), given)
    assert torch.equal(recorder.trace.tensor("model"), torch.full((2, 4), 7.0))


def test_hooks_go_after_an_exception_too():
    model, x = seeded(Net), noise(2, 3, 6)
    before = fingerprint(model)
    model.fail = True
    recorder = Recorder([Modules(model)])
    with pytest.raises(RuntimeError, match="inside forward"), recorder:
        model(x)
    model.fail = False
    assert fingerprint(model) == before
    assert not recorder.trace.manifest.complete
    assert "blocks.1" in recorder.trace.sites()
    assert "model" not in recorder.trace.sites()


def test_an_exception_that_the_model_catches_leaves_the_module_stack_right():
    class Careful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bad, self.good = nn.Linear(3, 3), nn.Linear(4, 4)

        def forward(self, x):
            try:
                self.bad(x)
            except RuntimeError:
                x = self.good(x)
            return x

    model = Careful()
    with Recorder([Modules(model)]) as recorder:
        model(noise(2, 4))
    assert {r.site: r.module for r in recorder.trace}["good"] == "good"
    assert {r.site: r.module for r in recorder.trace}["good.in.input"] == "model"
    assert recorder.modules == []


def test_a_probe_that_cannot_be_attached_takes_the_others_off():
    model = seeded(Net)
    before = fingerprint(model)
    with pytest.raises(CaseError, match="has no function 'absent'"):
        Recorder([Modules(model), parity.Function(model, "absent", "x")]).__enter__()
    assert fingerprint(model) == before


def test_patterns_choose_modules_and_kinds():
    model, x = seeded(Net), noise(2, 3, 6)
    probe = Modules(
        model,
        pattern=r"blocks\.\d+(\.\w+)?",
        skip=r".*\.drop",
        inputs=False,
        kinds={r".*\.norm": "latent"},
        prefix="p.",
    )
    with Recorder([probe]) as recorder:
        model(x)
    assert recorder.trace.sites() == [f"p.blocks.{i}{s}" for i in (0, 1) for s in (".norm", ".fc", "")]
    assert [r.kind for r in recorder.trace] == ["latent", "activation", "activation"] * 2


@settings(max_examples=10)
@given(kind=st.sampled_from(RESULTS), seed=st.integers(0, 3))
def test_override_replaces_a_value_in_the_run(kind, seed):
    """What the override returns flows on: through containers of every kind, and into the next module."""
    model, x = seeded(Net, result=kind), noise(2, 3, 6, seed=seed)
    wanted = noise(2, 3, 6, seed=seed + 50)

    def override(site, coords, value):
        return (
            wanted.clone() if site in ("blocks.0", "model", "model.0", "model.a", "model.first", "model.left") else None
        )

    with torch.no_grad(), Recorder([Modules(model)], override=override) as recorder:
        result = model(x)
    # Recorded is what the model computed; the run goes on with the replacement.
    assert not torch.equal(recorder.trace.tensor("blocks.0"), wanted)
    assert torch.equal(recorder.trace.tensor("blocks.1.in.x"), wanted)
    assert type(result) is type(model(x))
    if kind in ("tensor", "tuple", "list", "dict", "dataclass", "namedtuple"):
        assert torch.equal(next(t for _, t in nested.tensors(result)), wanted)
    if kind == "dataclass":
        assert result.note == "kept"


def test_override_through_a_layout_and_a_split_comes_back_in_the_ports_own_form():
    names = parse_names([{"port": "model", "split": {"axis": -1, "into": ["q", "k"]}, "layout": "b l c -> b c l"}])
    layer, x = nn.Linear(4, 6), noise(2, 5, 4)
    plain = layer(x).detach()
    q = noise(2, 3, 5, seed=3)

    with (
        torch.no_grad(),
        Recorder([Modules(layer)], names=names, override=lambda s, c, v: q.clone() if s == "q" else None) as rec,
    ):
        result = layer(x)
    assert rec.trace.sites() == ["model.in.input", "q", "k"]
    assert torch.equal(rec.trace.tensor("k"), plain[..., 3:].transpose(1, 2))
    assert torch.equal(result[..., :3], q.transpose(1, 2))
    assert torch.equal(result[..., 3:], plain[..., 3:])
    assert [(r.origin, r.layout) for r in rec.trace][1:] == [("model", "b l c -> b c l")] * 2


def test_a_layout_that_does_not_fit_is_recorded_as_it_is():
    names = parse_names([{"port": "model", "reference": "out", "layout": "a b c d -> d c b a"}])
    layer = nn.Linear(4, 6)
    with Recorder([Modules(layer)], names=names) as recorder:
        layer(noise(2, 5, 4))
    assert recorder.trace.get("out").shape == (2, 5, 6)
    assert "does not fit" in recorder.trace.get("out").layout


def test_ignored_sites_are_not_recorded():
    names = parse_names([{"port": r".*\.drop(\.in\..*)?", "ignore": "inactive"}])
    with Recorder([Modules(model := seeded(Net))], names=names) as recorder:
        model(noise(2, 3, 6))
    assert not any("drop" in site for site in recorder.trace.sites())
    assert "blocks.0.fc" in recorder.trace.sites()


def test_the_public_capture_takes_all_shapes_of_inputs(tmp_path):
    model, x, gain = seeded(Net), noise(2, 3, 6), noise(6, seed=2)
    by_name = parity.capture(model, {"x": x, "gain": gain})
    by_place = parity.capture(model, (x,))
    alone = parity.capture(model, x)
    assert "model.in.gain" in by_name
    assert by_place.sites() == alone.sites() == [s for s in by_name.sites() if s != "model.in.gain"]
    on_disk = parity.capture(model, (x,), path=tmp_path / "t", keep=False)
    assert on_disk.tensor("head") is None
    assert on_disk.get("head").digest == by_place.get("head").digest
    assert on_disk.manifest.complete


def test_nested_replace_returns_the_same_object_when_nothing_changes():
    value = {"a": [torch.ones(2), (torch.zeros(1), "x")], "b": Parts(torch.ones(1), torch.ones(2))}
    assert nested.replace(value, lambda path, t: None) is value
    changed = nested.replace(value, lambda path, t: t + 1 if path == "a.1.0" else None)
    assert changed is not value
    assert value["a"][1][0].item() == 0
    assert changed["a"][1][0].item() == 1
    assert changed["a"][0] is value["a"][0]
    assert changed["b"] is value["b"]


def test_nested_replace_rebuilds_structured_sequences():
    """torch.max(dim=...) gives a tuple type of its own."""
    value = torch.max(noise(3, 4), dim=1)
    changed = nested.replace(value, lambda path, t: torch.zeros(3) if path == "0" else None)
    assert type(changed) is type(value)
    assert torch.equal(changed.values, torch.zeros(3))
    assert changed.indices is value.indices
