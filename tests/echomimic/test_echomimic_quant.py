"""`parity quant`: what each layer costs, and which to leave out."""

import json
import math
import sys

import pytest
import torch
from torch import nn

from parity.errors import CaseError
from parity.lab.quant import Scheme, draw_report, measure, quantise, summary


class Chain(nn.Module):
    """Three layers in a row; `fragile` has outlier columns that its rows' scales must hold."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.fragile, self.last = (nn.Linear(24, 24) for _ in range(3))
        with torch.no_grad():
            self.fragile.weight[:, 0] *= 200

    def forward(self, x):
        return self.last(torch.tanh(self.fragile(torch.tanh(self.first(x)) * 0.05)))


def a_chain():
    return Chain(), (torch.randn(7, 24, generator=torch.Generator().manual_seed(1)),)


def test_levels_and_counts():
    weight = torch.tensor([[1.0, -1.0, 0.5, 1e-4], [0.0, 0.0, 0.0, 0.0]])
    q = quantise(weight, Scheme(bits=8))
    assert q.levels[0].abs().tolist() in ([127, 127, 64, 0], [127, 128, 64, 0])
    assert q.saturated >= 1
    assert q.underflowed == 1
    assert q.scale[1] > 0


def test_the_layer_that_does_the_damage_comes_first():
    report = measure(*a_chain(), limit=1e-9)
    assert report.layers[0].path == "fragile"
    assert report.layers[0].sqnr < min(layer.sqnr for layer in report.layers[1:])
    assert not report.reached or report.remaining <= 1e-9


def test_the_fewest_layers_are_left_out():
    model, inputs = a_chain()
    full = measure(model, inputs, limit=1.0)
    assert full.exclude == ()
    report = measure(model, inputs, limit=full.everything / 2)
    assert report.exclude[0] == "fragile"
    assert len(report.exclude) < 3
    assert report.remaining <= full.everything / 2
    assert f"leave out {len(report.exclude)} of 3" in "\n".join(summary(report))


def test_everything_is_left_out_when_nothing_else_helps():
    report = measure(*a_chain(), Scheme(bits=2), limit=1e-7)
    assert len(report.exclude) == 3
    assert report.remaining == 0


def test_the_model_is_as_before():
    model, inputs = a_chain()
    before = model(*inputs)
    measure(model, inputs)
    assert torch.equal(model(*inputs), before)
    assert "forward" not in vars(model.first)


def test_a_product_beyond_the_dtype_is_named():
    model, (x,) = a_chain()
    with torch.no_grad():
        model.first.weight.mul_(0.02)
    x = (x.abs() * 300).half()
    plain = measure(model.half(), (x,), Scheme(order="fp32"), limit=0.5)
    assert math.isfinite(plain.everything)
    burst = measure(model, (x,), Scheme(order="after"), limit=0.5)
    first = next(layer for layer in burst.layers if layer.path == "first")
    assert first.product > 1
    assert math.isinf(first.relative)  # the tanh behind it hides that from the output
    assert "float16 cannot hold" in "\n".join(summary(burst))
    assert draw_report(burst).startswith("<svg xmlns")


@pytest.mark.parametrize(
    ("model", "inputs", "match"),
    [(nn.ReLU(), (torch.ones(2),), "no Linear"), (nn.Linear(2, 2), (torch.full((1, 2), math.nan),), "not finite")],
)
def test_what_cannot_be_measured_is_said(model, inputs, match):
    with pytest.raises(CaseError, match=match):
        measure(model, inputs)


@pytest.fixture
def parity(monkeypatch, capsys, tmp_path):
    """Run the command in this process, beside a module of its user."""
    from parity import cli

    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "their_model.py").write_text(
        "import torch\ndef build():\n    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)), (torch.ones(2, 8),)\n"
    )

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["parity", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code or 0, capsys.readouterr()

    return run


def test_the_command(parity, tmp_path):
    out, plot = tmp_path / "quant.json", tmp_path / "q.svg"
    status, said = parity("quant", "their_model:build", "--limit", 0.5, "--json", out, "--plot", plot)
    assert status == 0
    assert [set(layer) >= {"path", "sqnr", "damage"} for layer in json.loads(out.read_text())["layers"]] == [True, True]
    assert "nothing has to be left out" in said.out
    assert plot.read_text().startswith("<svg")
    assert parity("quant", "their_model:build", "--limit", 1e-12)[0] == 1
    for wrong in (["their_model:missing"], ["their_model:build", "--bits", 40], ["their_model:build", "--limit", -1]):
        status, said = parity("quant", *wrong)
        assert status == 2
        assert len(said.err.strip().splitlines()) == 1
