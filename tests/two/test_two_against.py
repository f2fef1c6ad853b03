"""A port against a recorded reference: the same verdict, place and cause as with the reference there."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from two_models import Model, Renamed, inputs
from two_scripts import SCRIPT

import parity
from parity.apart import Interpreters, run_apart
from parity.capture.command import capture_command, gather_roots, program_of
from parity.capture.step_store import read_log
from parity.case import Setting
from parity.case.discovery import find_systems
from parity.case.jobs import Wanted, choose_jobs
from parity.errors import CaseError, TraceError
from parity.measured import Kept, capture_case
from parity.pipeline import prepare, run_case
from parity.result import Result
from parity.run.recorded import load_recorded
from parity.stand_in import calls_against, case_against


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("two") / "reference.trace"
    parity.capture(Model(), inputs(), path=path, precise=".*", operations=".*")
    return path


def told(result: Result) -> tuple[object, ...]:
    """The verdict, the place, the operation, its line, and the class of the cause with its proof."""
    first, culprit, cause = result.first, result.culprit, next(iter(result.causes), None)
    place = (first.key, culprit.module, culprit.operation, culprit.source) if first and culprit else ()
    return (result.verdict, *place, cause.class_id if cause else "", cause.proof if cause else "")


@pytest.mark.parametrize(
    ("port", "class_id"),
    [(Model(), ""), (Renamed(), ""), (Model("gelu"), "N2"), (Model("eps"), "N1"), (Renamed("scale"), "A5")],
    ids=["right", "renamed", "gelu", "eps", "renamed scale"],
)
def test_it_says_what_a_run_of_both_sides_says(trace: Path, port: torch.nn.Module, class_id: str) -> None:
    apart, together = parity.against(trace, port, inputs()), parity.check(Model(), port, inputs())
    assert told(apart) == told(together)
    assert (apart.verdict, apart.causes[0].class_id if apart.causes else "") == (
        "diverged" if class_id else "match",
        class_id,
    )
    assert apart.caught == together.caught == ()


def test_without_operations_the_place_is_known_and_the_notes_say_what_is_lacking(tmp_path: Path) -> None:
    path = tmp_path / "r"
    parity.capture(Model(), inputs(), path=path, precise=r"blocks\.1.*")
    result = parity.against(path, Model("gelu"), inputs(), allow_unaligned=0.5)
    assert (result.verdict, result.culprit.module) == ("diverged", "blocks.1")
    assert any("keeps no operations" in note for note in result.notes)
    precise = load_recorded(path).precise
    assert precise.tensor("blocks.1.up") is not None
    assert precise.tensor("blocks.0.up") is None
    parity.capture(Model(), inputs(), path=path, floors=True)
    assert [p.name for p in path.iterdir() if p.is_dir()] == []
    result = parity.against(path, Model("gelu"), inputs())
    assert result.verdict == "diverged"
    assert any("keeps no values in float64" in note for note in result.notes)


def test_operations_of_chosen_modules_alone_are_kept(tmp_path: Path) -> None:
    parity.capture(Model(), inputs(), path=tmp_path / "r", operations=r"blocks\.1\.up")
    log = load_recorded(tmp_path / "r").logs["double"]
    names = [item.name for item in log.item.steps]
    assert names.count("addmm") == 1
    assert not {"gelu", "softmax", "native_layer_norm"} & set(names)
    step = log.step(names.index("addmm"))
    assert set(log.states()) == {"blocks.1.up"}
    again = step.op.again(step.op.inputs)
    assert torch.allclose(again[0], step.op.outputs[0], rtol=1e-12)
    with pytest.raises(CaseError, match="need path"):
        parity.capture(Model(), inputs(), operations=".*")


def test_a_script_against_a_script(tmp_path: Path) -> None:
    """Three calls, the second and third with what the first made: each is judged on what the reference was given."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    capture_command(str(script), ["1e-6"], tmp_path / "r", full=True, precise=".*", operations=".*")
    for eps, verdict in (("1e-6", "match"), ("1e-4", "diverged")):
        result = calls_against(tmp_path / "r", gather_roots("script", program_of(str(script), [eps])))
        assert result.verdict == verdict
    assert (result.culprit.module, result.causes[0].class_id) == ("n", "N1")
    assert result.culprit.source.endswith("script.py:10")


FAULTS = (
    "int8_half_prescale_forgotten",
    "int8_fp8_scale_twice",
)  # of the smallest case; seven others of other cases are in docs/LOG.md


def test_faults_of_the_gauntlet_against_the_recorded_reference_of_their_case(tmp_path: Path) -> None:
    system = find_systems(names=["synthetic"])["synthetic"]
    faults = [fault for fault in system.faults if fault.name in FAULTS]
    case = system.case(faults[0].case)
    setting = Setting(dtype=case.dtypes[0])
    capture_case(case, setting, Kept(precise=".*", operations=".*"), tmp_path / "r")
    recorded, prepared = load_recorded(tmp_path / "r"), prepare(case, setting)
    for fault in faults:
        apart, _ = case_against(recorded, case, fault=fault, free=False)
        together, _ = run_case(case, setting, fault=fault, free=False, prepared=prepared)
        assert told(apart) == told(together)
        assert apart.verdict == "diverged"


def test_a_case_each_side_with_its_own_interpreter(tmp_path: Path) -> None:
    systems = find_systems(names=["synthetic"])
    (job,) = choose_jobs(systems, Wanted(["synthetic"], fault=FAULTS[0]))
    apart = run_apart(job, Interpreters(Path(sys.executable), Path(sys.executable)))
    together, _ = run_case(job.case, job.setting, fault=job.fault, free=False)
    assert told(apart) == told(together)
    with pytest.raises(CaseError, match="--port-python"):
        Interpreters(Path(sys.executable), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw["steps"][3].update(inputs=[10**6]), "not in the file"),
        (lambda raw: raw["steps"][3].update(stack=10**6), "stack"),
        (lambda raw: raw["steps"][3].update(makers=[3] * len(raw["steps"][3]["inputs"])), "made by no step"),
        (lambda raw: raw["steps"][3].update(name=7), "valid string"),
        (lambda raw: raw["events"].reverse(), "order of the steps"),
        (lambda raw: raw.pop("frames"), "frames"),
    ],
)
def test_a_log_that_does_not_fit_together_is_refused_in_one_line(trace: Path, tmp_path: Path, change, message) -> None:
    folder = next(p for p in trace.iterdir() if p.is_dir())
    raw = json.loads((folder / "double.json").read_text())
    change(raw)
    (tmp_path / "double.json").write_text(json.dumps(raw))
    (tmp_path / "double.safetensors").write_bytes((folder / "double.safetensors").read_bytes())
    with pytest.raises(TraceError, match=message) as caught:
        read_log(tmp_path / "double")
    assert "\n" not in str(caught.value)


def test_an_operation_that_reaches_outside_is_not_run_again(trace: Path, tmp_path: Path) -> None:
    """aten has operations that open files; a trace may name any."""
    folder = next(p for p in trace.iterdir() if p.is_dir())
    raw = json.loads((folder / "double.json").read_text())
    raw["steps"][0]["again"] = ["aten::from_file.", {"tuple": ["/etc/passwd"]}, {"dict": {}}]
    raw["steps"][1]["again"] = ["other::run.", {"tuple": []}, {"dict": {}}]
    (tmp_path / "double.json").write_text(json.dumps(raw))
    (tmp_path / "double.safetensors").write_bytes((folder / "double.safetensors").read_bytes())
    log = read_log(tmp_path / "double")
    assert [log.step(i).op.again for i in (0, 1)] == [None, None]


@pytest.mark.parametrize("name", ["../x", "judging-1", "judging-0123456789", "/tmp"])
def test_a_manifest_that_names_another_folder_is_refused(tmp_path: Path, name: str) -> None:
    parity.capture(torch.nn.Linear(2, 2), (torch.ones(1, 2),), path=tmp_path / "t")
    file = tmp_path / "t" / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "judging": name}))
    with pytest.raises(TraceError, match="names no folder"):
        load_recorded(tmp_path / "t")


def test_the_trace_of_another_case_is_refused(trace: Path) -> None:
    case = find_systems(names=["synthetic"])["synthetic"].cases[0]
    with pytest.raises(CaseError, match="not of synthetic/"):
        case_against(trace, case)
