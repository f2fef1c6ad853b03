"""What a new user does on the first day: every wrong argument is named, nothing is accepted in silence."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn

import parity
from parity.api import diagnose_tensors
from parity.errors import ParityError

X = (torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))


class Renamed(nn.Module):
    """The same net under other names."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = copy.deepcopy(net())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tower(x)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"floor": "tight"}, "floor: 'tight' is neither \"auto\" nor a number"),
        ({"floor": None}, "floor: None is neither"),
        ({"allow_unaligned": "some"}, "allow_unaligned: 'some' is no share from 0 to 1"),
        ({"allow_unaligned": True}, "allow_unaligned: True is no share"),
        ({"relax": "names"}, "relax: 'names' is no list of names"),
        ({"relax": ["nmes"]}, "relax: there is no rule 'nmes'"),
        ({"label": 3}, "label: 3 is no text"),
        ({"probes": [3]}, "probes: [3] is no function: give a function that takes the model"),
        ({"names": 3}, "name map: expected a list of rules"),
        ({"names": [{"port": "absent", "reference": "0"}]}, "name map: no rule matches a site"),
        ({"names": [{"port": "0", "reference": "0", "layout": "a b c -> c b a"}]}, "layout 'a b c -> c b a' does not fit '0' [3, 4]"),
        ({"zoom": "2"}, "zoom: the reference has no site '2'"),
        ({"zoom": "0.in.inputs"}, "did you mean '0.in.input'?"),
    ],
)  # fmt: skip
def test_a_wrong_argument_of_check_is_named(given, message):
    with pytest.raises(ParityError, match=re.escape(message)):
        parity.check(net(), net(), X, **given)


@pytest.mark.parametrize("wrong", ["a", 3, None, nn.Linear, (1, 2, 3)])
def test_what_is_no_model_is_named(wrong):
    with pytest.raises(ParityError, match="the reference is .*: give a module, a function, or a pair"):
        parity.check(wrong, net(), X)


def test_a_rule_that_matches_nothing_beside_one_that_does_is_a_note():
    rules = [{"port": "absent.*", "reference": "x"}, {"port": "0", "reference": "0"}]
    result = parity.check(net(), net(), X, names=rules)
    assert result.verdict == "match"
    assert "name map: 'absent.*' matches no site" in result.notes


def test_one_rule_names_a_tower_and_all_in_it():
    rules = [{"port": r"tower\.(.*)", "reference": r"\1"}]
    result = parity.check(net(), Renamed(), X, names=rules)
    assert result.verdict == "match"
    assert {("0", "tower.0"), ("0.in.input", "tower.0.in.input")} <= {(r.site, r.port) for r in result.rows}


def test_functions_and_pairs_without_a_module_are_compared():
    assert parity.check(torch.tanh, lambda x: x.tanh(), X).verdict == "match"
    assert parity.check((torch.tanh, None), (lambda x: x.tanh() * 1.01, None), X).verdict == "diverged"


def test_traces_are_compared_by_their_paths(tmp_path):
    for name in ("a", "b"):
        parity.capture(net(), X, path=tmp_path / name)
    assert (
        parity.compare(tmp_path / "a", str(tmp_path / "b"), names=[{"port": "(.*)", "reference": r"\1"}]).verdict
        == "match"
    )
    for wrong in (3, net()):
        with pytest.raises(ParityError, match=r"give a trace or its path \(parity.check takes models\)"):
            parity.compare(wrong, tmp_path / "a")


def test_an_unknown_kind_of_tensor_is_refused():
    with pytest.raises(ParityError, match="unknown kind 'foo'; there are: input, activation, rope"):
        diagnose_tensors(X[0], X[0], kind="foo")
    with pytest.raises(ParityError, match="did you mean 'latent'"):
        diagnose_tensors(X[0], X[0], kind="latents")


def test_a_result_is_a_message_a_line_and_a_page(tmp_path):
    port = net()
    port[1].eps = 1e-2
    result = parity.check(net(), port, X)
    assert str(result) == result.text()
    assert repr(result) == "<parity DIVERGED: check at 1 [N1]>"
    assert result.html(tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
