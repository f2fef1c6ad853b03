"""Fingerprints on a card: its kernel's arithmetic (in Triton's interpreter where there is no card), and records that wait for it."""

from __future__ import annotations

import math
import os
from types import SimpleNamespace

import pytest
import torch
from core_models import noise
from torch import nn

from parity.capture import Modules, Recorder, late
from parity.lab import bench, bench_card
from parity.trace.fingerprint import buckets, fingerprint


class Slow:
    """A batch as the kernel's, that fetches what it was given."""

    def __init__(self, capacity: int) -> None:
        self.values: list[torch.Tensor] = []
        self.capacity, self.fetched = capacity, 0

    @property
    def full(self) -> bool:
        return len(self.values) == self.capacity

    def add(self, value: torch.Tensor) -> None:
        self.values.append(value.clone())

    def fetch(self) -> list:
        self.fetched += 1
        values, self.values = self.values, []
        return [fingerprint(value) for value in values]


class Kept:
    def __init__(self) -> None:
        self.records: list = []

    def write(self, record, tensor) -> None:
        self.records.append((record, tensor))


def recorded(model, sink=None, keep=False):
    with torch.no_grad(), Recorder([Modules(model)], keep=keep, digests=True, sink=sink) as recorder:
        model(noise(2, 6))
    return recorder.trace


@pytest.mark.parametrize("keep", [False, True])
def test_records_that_wait_for_a_card_are_the_same_in_the_same_order(monkeypatch, keep):
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    now = recorded(model, keep=keep)
    slow = Slow(capacity=3)
    on_card = SimpleNamespace(batch_of=lambda value, batches: batches.setdefault("card", slow))
    monkeypatch.setattr(late, "card_of", lambda value: on_card if bool((value < 0).any()) else None)
    sink = Kept()
    waited, written = recorded(model, keep=keep), recorded(model, sink, keep=keep)
    assert slow.fetched >= 2
    assert not slow.values
    for trace in (waited, written):
        assert [(r.key, r.order, r.digest, r.stats) for r in trace] == [
            (r.key, r.order, r.digest, r.stats) for r in now
        ]
        assert all(trace.get(r.key) is r for r in trace)
    assert [torch.equal(a.sketch, b.sketch) for a, b in zip(waited, now, strict=True)] == [True] * len(now)
    assert [r.key for r, _ in sink.records] == [r.key for r in now]
    assert all(r.sketch is not None and r.digest and (t is not None) == keep for r, t in sink.records)


def test_the_large_bench_records_every_leaf_once():
    model = bench_card.Transformer(bench_card.Size(32, 64, 2, 2, 24, 5))
    leaves = {name for name, module in model.named_modules() if not list(module.children())}
    with torch.no_grad(), Recorder([Modules(model, pattern=bench_card._LEAVES, inputs=False)], keep=False) as recorder:
        model(noise(1, 24, 32), noise(1, 5, 32))
    assert sorted(record.site for record in recorder.trace) == sorted(leaves)


def test_the_large_bench_has_a_row_for_every_way_and_its_limit():
    rows = bench.run_large(bench_card.Size(32, 64, 2, 2, 24, 5), "cpu", torch.bfloat16, 1, 1e9)
    assert list(rows) == ["plain", "capture, fingerprints", "statistics hooks", "clones"]
    block = (
        24 * 32 * (3 + 6 + 3 + 1) + 5 * 32 * 3 + 24 * 64 * 2
    )  # norms and attentions, those of the words, feed-forward
    assert rows["clones"]["kept MB"] * 1e6 == pytest.approx(2 * (2 * block + 24 * 64))
    assert all(row["limit"] >= 1 for row in rows.values())
    assert rows["clones"]["limit"] - 1 == pytest.approx(2 * (rows["statistics hooks"]["limit"] - 1))


@pytest.fixture(scope="module")
def card():
    """The kernel, on a card or in Triton's interpreter, which must be asked for before torch is imported."""
    pytest.importorskip("triton")
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("no card: TRITON_INTERPRET=1 runs the kernel on the processor")
    from parity.trace import card

    return card


@pytest.mark.parametrize("dtype", bench_card.DTYPES, ids=str)
def test_the_kernel_has_the_digits_of_the_processor(card, dtype):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = noise(5, 1021 * 2 + 3) * 3
    x = (torch.complex(x, x.flip(0)) if dtype.is_complex else x).to(dtype)
    values = [
        x,
        -x if dtype.is_floating_point and dtype.itemsize > 1 else x,
        x.t(),
        x[1:4, ::3],
        x[:, None, :90, None].expand(5, 2, 90, 3),
        x[:0],
        x[0, 0],
    ]
    if dtype.is_floating_point:
        spoiled = x.clone()
        flat = spoiled.view(-1)
        flat[3], flat[7000] = math.nan, -math.inf
        values.append(spoiled)
    batch = card.Batch(torch.device(device))
    for value in values:
        batch.add(value.to(device))
    for value, found in zip(values, batch.fetch(), strict=True):
        assert bench_card._unlike(found, fingerprint(value)) == []
        assert found.sketch.shape == (buckets(value.shape),)
