"""Calls in pieces: joined as the reference makes them, compared as a whole, and never joined where they do not come out even."""

from __future__ import annotations

import pytest
import torch
from core_models import Net, noise, seeded
from torch import nn

import parity
from parity.align.pieces import fit_calls
from parity.trace import Manifest, Record, Trace


def trace(*values: torch.Tensor, site: str = "a") -> Trace:
    """Build a trace of the calls of one site."""
    made = Trace(manifest=Manifest())
    for call, value in enumerate(values):
        coords = {"call": call} if call else {}
        dtype = str(value.dtype).removeprefix("torch.")
        made.add(Record(site, coords, "activation", call, tuple(value.shape), dtype), value)
    return made


X, Y = noise(2, 9, 4), noise(2, 9, 4, seed=1)
CAUSAL = torch.zeros(1, 9, 9).masked_fill(torch.ones(9, 9).triu(1).bool(), -3e38)


@pytest.mark.parametrize(
    ("reference", "port"),
    [
        ((X,), X.split([6, 3], 1)),
        ((X,), X.split(1, 0)),
        ((X, Y), (*X.split(4, 1), *Y.split(4, 1))),  # one whole after the other
        ((X, Y), (X[:1], Y[:1], X[1:], Y[1:])),  # both again for every piece
        ((CAUSAL,), (CAUSAL[:, :6, :6], CAUSAL[:, 6:])),  # keys that have not come yet
        (X.split([6, 3], 1), (X,)),
    ],
)
def test_pieces_are_put_together(reference, port):
    ours = trace(*reference)
    joined, pieces = fit_calls(ours, trace(*port))
    assert [r.key for r in joined] == [r.key for r in ours]
    for record in ours:
        assert torch.equal(joined.tensor(record.key), ours.tensor(record.key))
    given = trace(*port)
    for record in given:
        value = pieces[record.key].of(ours)
        assert torch.equal(value, given.tensor(record.key)), "the graft is the port's own part"


@pytest.mark.parametrize(
    ("reference", "port"),
    [
        ((X,), X.split([6, 2, 1], 1)[:2]),  # a part is missing
        ((X,), (X[:, :6], X[:, :6])),  # too much
        ((X,), (X[:, :6, :2], X[:, 6:, :2])),  # too narrow
        ((X,), (X.transpose(1, 2),)),
        ((CAUSAL[0],), (CAUSAL[0, :6, :6],)),
        (
            (X.reshape(2, 9, 4)[0] @ X[0].T,),
            (X[0, :6] @ X[0, :6].T, X[0, 6:] @ X[0].T),
        ),  # what is left out is not one value
    ],
)
def test_what_does_not_come_out_even_stays_as_it_is(reference, port):
    given = trace(*port)
    joined, pieces = fit_calls(trace(*reference), given)
    assert joined is given
    assert not pieces


def test_equal_calls_are_left_alone():
    given = trace(X, Y)
    assert fit_calls(trace(X, Y), given) == (given, {})


class Chunked(nn.Module):
    """Runs a model on pieces of its input."""

    def __init__(self, model: nn.Module, sizes: list[int], axis: int) -> None:
        super().__init__()
        self.model, self.sizes, self.axis = model, sizes, axis


def whole(module: Chunked, x: torch.Tensor) -> torch.Tensor:
    return module.model(x)


def in_pieces(module: Chunked, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([module.model(part) for part in x.split(module.sizes, module.axis)], module.axis)


@pytest.mark.parametrize(("sizes", "axis"), [([3, 2], 1), ([1, 1], 0)])
def test_a_model_in_pieces_matches_and_its_fault_is_placed(sizes, axis):
    model, port = seeded(Net), seeded(Net)
    x = noise(2, 5, 6)
    sides = (whole, Chunked(model, sizes, axis)), (in_pieces, Chunked(port, sizes, axis))
    for one, other in (sides, sides[::-1]):
        result = parity.check(one, other, (x,))
        assert result.verdict == "match", [(d.key, d.metric, d.detail) for d in result.divergences]
        assert result.coverage.compared == result.coverage.reference
        assert any("joined before they were compared" in note for note in result.notes)
    name, weight = next((n, p) for n, p in port.named_parameters() if p.dim() == 2)
    weight.data[1, 2] += 0.5
    result = parity.check(*sides, (x,))
    assert result.verdict == "diverged"
    assert [c.module for c in result.culprits] == [f"model.{name.rpartition('.')[0]}"]
