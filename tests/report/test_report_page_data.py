"""What the page shows besides the result: values of both sides, operations side by side, source lines, earlier runs."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from report_samples import OPERATIONS, diverged, match, rows, zoomed

from parity.report.history import FILE, SHOWN, add_history, read_history
from parity.report.html import report_html
from parity.report.media import Media
from parity.report.operations import operations_of
from parity.report.payload import packed_values
from parity.report.sources import reference_place, sources_of
from parity.report.values import MOST_VIEWS, SIDE, value_view, value_views
from parity.result import Cause, Divergence
from parity.trace import Record, Trace


def test_values_of_two_tensors() -> None:
    left = torch.zeros(3, 100, 4)
    right = left.clone()
    right[1, 70, 2] = 2.0
    right[2, 5, 0] = -1.0
    view = value_view("x", left, right)
    assert view.worst == (((1, 70, 2), 0.0, 2.0), ((2, 5, 0), 0.0, -1.0))
    assert (view.slice_name, view.origin) == ("[1, :, :]", (50, 0))
    assert view.difference.shape == (SIDE, 4)
    assert view.difference[20, 2] == view.difference.sum() == 2
    assert sum(view.reference_counts) == sum(view.port_counts) == 1200
    along = {axis: (step, errors) for axis, step, errors in view.axes}
    assert along[0][1][0] == 0
    assert along[1][0] == 2
    assert int(np.argmax(along[1][1])) == 35


@pytest.mark.parametrize(
    "value", [torch.tensor(1.5), torch.tensor([True, False]), torch.arange(3), torch.tensor([1j, 2])]
)
def test_values_of_any_kind(value: torch.Tensor) -> None:
    view = value_view("x", value, value)
    assert view.worst == ()
    assert packed_values([view])


def test_values_that_are_not_finite_come_first() -> None:
    left = torch.tensor([1.0, float("nan"), 2.0, float("inf")])
    view = value_view("x", left, torch.tensor([1.5, float("nan"), float("nan"), 3.0]))
    assert {index for index, _, _ in view.worst[:2]} == {(2,), (3,)}
    assert [index for index, _, _ in view.worst[2:]] == [(0,)]
    assert view.nonfinite == (2, 2)


def test_views_begin_with_what_diverges() -> None:
    made = rows(frames=2, steps=2)
    wrong = [Divergence(r.site, r.coords, r.kind, "rel_l2", 1.0, 0.1, r.order) for r in made[60:150]]
    sides = []
    for _ in range(2):
        trace = Trace()
        for row in made:
            trace.add(
                Record(row.site, row.coords, row.kind, row.order, (2, 3), "float32"), torch.ones(2, 3) * row.order
            )
        sides.append(trace)
    found = value_views(made, wrong, *sides)
    assert len(found) == MOST_VIEWS
    assert found[0].key == wrong[0].key
    assert sum(view.key in {d.key for d in wrong} for view in found) >= MOST_VIEWS * 3 // 4
    assert value_views(made, wrong, sides[0], Trace()) == ()


def test_operations_face_each_other() -> None:
    found = operations_of(zoomed())
    assert found is not None
    names = [tuple(op.name if op else "" for op in pair) for pair in found.pairs]
    assert names == [("mul", "mul"), ("sub", "aten.cat"), ("stack", "")]
    assert [pair[1].edit for pair in found.pairs if pair[1]] == [False, True]
    assert operations_of(diverged()) is None


def test_operations_of_the_explanation_are_marked() -> None:
    edits = {
        "reference": ["stack at /far/away/reference/waypoint/rope.py:33: return torch.stack(parts)"],
        "port": ["aten.cat at /far/away/ported/waypoint/rope.py:41: return torch.cat(parts)"],
    }
    result = replace(zoomed(), culprit=None, causes=(Cause("edit", "P1", "another order", edits),))
    found = operations_of(replace(result, operations=(*OPERATIONS, "and 7 more")))
    assert found is not None
    assert [op.name for pair in found.pairs for op in pair if op and op.edit] == ["aten.cat", "stack"]
    assert found.more == ("and 7 more in the port",)


def test_source_lines_of_a_run_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text("\n".join(f"line {i}" for i in range(1, 31)))
    culprit = replace(
        diverged().culprit, source="model.py:20", detail="reference: mul(f32[2]) at model.py:3: return a * b"
    )
    result = replace(diverged(), culprit=culprit, culprits=(replace(culprit, source="gone.py:1"),))
    found = sources_of(result)
    assert set(found) == {"model.py:20", "model.py:3"}
    assert (found["model.py:20"].first, found["model.py:20"].lines[5]) == (15, "line 20")
    assert found["model.py:3"].lines[0] == "line 1"
    assert reference_place(culprit.detail) == ("model.py:3", "return a * b")
    assert "line 17" not in report_html(result)
    assert "line 17" in report_html(result, Media(sources=found))


def test_history_keeps_the_last_runs(tmp_path: Path) -> None:
    assert read_history(tmp_path) == {}
    for day in range(1, 29):
        result = diverged() if day == 28 else match()
        add_history([replace(result, fault=None)], tmp_path, datetime(2026, 2, day, tzinfo=UTC))
    with (tmp_path / FILE).open("a") as file:
        file.write('nonsense\n[1]\n{"case": "a", "verdict": "fine"}\n' + '{"case": 3, "verdict": "match"}\n')
    runs = read_history(tmp_path)["waypoint/tiny"]
    assert len(runs) == SHOWN
    assert (runs[-1].time, runs[-1].verdict, runs[-1].site) == (
        "2026-02-28T00:00:00Z",
        "diverged",
        "blocks.2.attn.q_rope",
    )
    assert runs[-1].over == pytest.approx(8409, rel=1e-3)
    assert runs[0].verdict == "match"
    assert set(read_history(tmp_path)) == {"waypoint/tiny"}
    line = json.loads((tmp_path / FILE).read_text().splitlines()[0])
    assert list(line) == ["time", "case", "verdict", "site", "over", "compared", "seconds"]
