"""What a user gives and gets in a first session: functions as implementations, and a result that shows itself."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import parity
from parity.capture.probes import Modules
from parity.capture.recorder import Recorder
from parity.errors import CaseError
from parity.session import page_stem

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(5))


def make(eps: float = 1e-5) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.LayerNorm(8, eps=eps), nn.Linear(8, 8))


GLOBAL_NET = make()


def with_a_global(x):
    return GLOBAL_NET(x)


def around(net: nn.Module):
    def run(x, *, scale=1.0):
        return net(x) * scale

    return run


class Pipe(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def generate(self, x):
        return self.net(x) + 1


def double(x):
    return x * 2


def triple(x):
    return x * 3


@pytest.mark.parametrize("pair", [(double, double), ((double, None), double), (torch.sin, torch.sin)])
def test_plain_functions_match(pair):
    result = parity.check(*pair, (X,))
    assert result.verdict == "match"
    assert result.coverage.compared >= 1


def test_plain_functions_diverge_where_they_return():
    result = parity.check(double, (triple, None), (X,))
    assert result.verdict == "diverged"
    assert result.first is not None
    assert result.first.site.startswith("return")


@pytest.mark.parametrize("given", [around, lambda net: Pipe(net).generate, lambda net: (lambda m, x: m(x), net)])
def test_the_modules_of_a_function_are_recorded_and_judged_in_float64(given):
    """An eps below any honest limit of the deployed run is found, so the module ran in float64; the user's own stays as it was."""
    right, wrong = make(), make(eps=1.002e-5)
    before = copy.deepcopy(right.state_dict())
    assert parity.check(given(right), given(copy.deepcopy(right)), (X,)).verdict == "match"
    result = parity.check(given(right), given(wrong), (X * 0.01,))
    assert result.verdict == "diverged"
    assert result.culprit is not None
    assert result.culprit.module.endswith("0")
    assert all(torch.equal(before[k], v) for k, v in right.state_dict().items())
    assert right[0].weight.dtype == torch.float32


def test_globals_of_a_function_are_its_modules_too():
    assert parity.check(with_a_global, around(copy.deepcopy(GLOBAL_NET)), (X,)).coverage.compared > 2


@pytest.mark.parametrize(
    ("given", "words"), [(5, "a int"), ("net", "a str"), (nn.Linear, "the class Linear"), ((double, 3), "a tuple of 2")]
)
def test_what_is_no_implementation_is_one_line(given, words):
    with pytest.raises(CaseError, match="give a module, a function, or a pair") as caught:
        parity.check(given, double, (X,))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_result_shows_itself(tmp_path):
    result = parity.check(make(), make(eps=1e-2), (X,))
    assert str(result) == result.text()
    assert "first     0 " in str(result)
    assert repr(result).startswith("<parity DIVERGED: check at 0")
    assert "\n" not in repr(result)
    page = result.html(tmp_path / "page.html")
    assert page.read_text(encoding="utf-8").startswith("<!")
    table = result.to_pandas()
    assert len(table) == len(result.rows)
    assert table[table["diverged"]]["site"].iloc[0] == result.first.site
    assert "<table" in result._repr_html_()


def test_names_of_sites_are_text_in_a_notebook():
    class Odd(nn.Module):
        def __init__(self, eps: float) -> None:
            super().__init__()
            self.add_module("<script>alert(1)</script>", nn.LayerNorm(8, eps=eps))

        def forward(self, x):
            return next(self.children())(x)

    shown = parity.check(Odd(1e-5), Odd(1e-1), (X,))._repr_html_()
    assert "<script" not in shown
    assert "&lt;script" in shown


def test_a_trace_is_a_table_too():
    with Recorder([Modules(net := make())]) as recorder:
        net(X)
    trace = recorder.trace
    assert trace.to_pandas().shape[0] == len(trace)
    assert "records" in trace._repr_html_()


def test_no_two_results_share_a_page():
    names = ["a/b", "a-b", "a b", "index", "x" * 300, "x" * 299 + "y", "é", "..", "a//b"]
    pages = [page_stem(name) for name in names]
    assert len({p.lower() for p in pages}) == len(names)
    assert pages[0] == "a-b"
    assert all(len(p) < 130 and p != "index" and p.strip(".-") == p for p in pages)
