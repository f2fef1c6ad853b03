"""The command line: what it prints, which status it gives, and one line for every wrong use."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from core_imports import ROOT
from core_models import noise
from core_project import CASE, write_project
from safetensors.torch import save_file

from parity import cli
from parity.trace.store import load_trace

NUMBER = count()


@pytest.fixture(autouse=True)
def clean_import_state(monkeypatch):
    """Cases are imported as modules: take them away again."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0].startswith(("cases", "script")):
            del sys.modules[name]


@pytest.fixture
def parity(monkeypatch, capsys):
    """Run the command in this process: `status, out, err = parity("list")`."""

    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["parity", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        seen = capsys.readouterr()
        return stop.value.code or 0, seen.out, seen.err

    return run


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A user's own project as the working folder; the folder's name is new, so that its modules are."""
    write_project(tmp_path, cases=f"cases{next(NUMBER)}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def assert_usage(seen: tuple[int, str, str], message: str, status: int = 2) -> None:
    code, out, err = seen
    assert code == status, (out, err)
    assert err.startswith("parity: ")
    assert err.count("\n") == 1, err
    assert message in err
    assert "Traceback" not in out + err


def test_the_command_in_a_process_of_its_own(project):
    """Once for real: import, arguments, output, status."""
    command = [sys.executable, "-m", "parity.cli", "list", "--json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout)) == ["tiny"]


def test_the_systems_of_this_checkout_load(monkeypatch, parity):
    monkeypatch.chdir(ROOT)
    status, out, _ = parity("list", "--json")
    assert status == 0
    systems = json.loads(out)
    assert set(systems) >= {p.parent.name for p in ROOT.glob("fixtures/*/case.py")} != set()
    assert all(system["cases"] for system in systems.values())


def test_list(project, parity):
    status, out, _ = parity("list")
    assert status == 0
    assert "tiny  a user's own system" in out
    for line in (
        "case tiny/one: a norm",
        "fault wide_eps: another eps",
        "variation nothing",
        "golden entry forward (reference)",
    ):
        assert line in out
    listed = json.loads(parity("list", "--json")[1])
    assert [c["name"] for c in listed["tiny"]["cases"]] == ["tiny/one", "tiny/two"]


def test_list_without_cases_says_how_to_have_some(tmp_path, monkeypatch, parity):
    monkeypatch.chdir(tmp_path)
    status, out, _ = parity("list")
    assert status == 0
    assert "[tool.parity] cases" in out


def test_run_a_right_port_and_a_wrong_one(project, parity):
    status, out, _ = parity("run", "tiny/one")
    assert status == 0
    assert "match" in out
    status, out, _ = parity(
        "run", "tiny/one", "--fault", "wide_eps", "--json", "r.json", "--junit", "r.xml", "--save", "traces"
    )
    assert status == 1
    assert "parity DIVERGED: tiny/one" in out
    assert "norm" in out
    result = json.loads(Path("r.json").read_text())
    assert (result["verdict"], result["fault"], result["first"]["site"]) == ("diverged", "wide_eps", "norm")
    assert result["causes"][0]["class_id"] == "N1"
    assert "<testsuite" in Path("r.xml").read_text()
    assert load_trace("traces/tiny-one/port").get("norm").origin == "ln"
    out = parity("run", "tiny/one", "--fault", "wide_eps", "--zoom", "first")[1]
    assert re.search(r"operations up to norm.*\n! native_layer_norm\(.*eps=", out, re.DOTALL)
    status, out, _ = parity("compare", "traces/tiny-one/reference", "traces/tiny-one/port")
    assert (status, "norm" in out) == (1, True)


def test_run_everything_writes_a_list_of_results(project, parity):
    status, out, _ = parity("run", "--json", "all.json", "--no-isolate")
    assert status == 0
    results = json.loads(Path("all.json").read_text())
    assert results["verdict"] == "match"
    assert [r["case"] for r in results["results"]] == ["tiny/one", "tiny/two"]
    assert "tiny/two" in out


def test_a_side_that_fails_is_status_three(project, parity):
    status, out, err = parity("run", "tiny/one", "--fault", "broken")
    assert status == 3
    assert "not run" in out
    line = next(line for line in err.splitlines() if line.startswith("parity: "))
    assert "tiny/one: running the port failed: ValueError: the port" in line
    assert "Traceback" not in err


def test_what_was_caught_on_the_way_is_told_and_strict_makes_it_a_failure(project, parity, monkeypatch):
    def raising(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("parity.diagnose.explain.find_edits", raising)
    status, _, err = parity("run", "tiny/one", "--fault", "wide_eps", "--json", "r.json")
    assert (status, err) == (1, "")
    caught = json.loads(Path("r.json").read_text())["caught"]
    assert caught == ["the search for edits at norm: ZeroDivisionError: division by zero"]
    status, _, err = parity("run", "tiny/one", "--fault", "wide_eps", "--strict")
    assert status == 3
    assert "parity: tiny/one: the search for edits at norm: ZeroDivisionError" in err
    assert parity("run", "tiny/one", "--strict")[0] == 0


@pytest.mark.parametrize(("noise", "status"), [(0.1, 0), (1e-6, 1)])
def test_a_variation_may_declare_its_noise(tmp_path, monkeypatch, parity, noise, status):
    variation = (
        f'variations=(Variation("rough", "another eps", wide_eps, noise={{"norm|proj.*|model|return": {noise}}}), '
    )
    write_project(tmp_path, cases=f"cases{next(NUMBER)}", source=CASE.replace("variations=(", variation))
    monkeypatch.chdir(tmp_path)
    assert parity("run", "tiny/one", "--variation", "rough", "--json", "r.json")[0] == status
    assert any("declared noise: norm|proj.*" in note for note in json.loads(Path("r.json").read_text())["notes"])


def test_a_search_that_ends_with_its_budget_says_so(project, parity, monkeypatch):
    monkeypatch.setattr("parity.diagnose.edits.SECONDS", 0.0)
    parity("run", "tiny/one", "--fault", "wide_eps", "--json", "r.json")
    notes = json.loads(Path("r.json").read_text())["notes"]
    assert any("the search for edits at norm ended with its budget of 0 s" in note for note in notes), notes


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run", "absent"], "unknown system or case 'absent'; there are: tiny"),
        (["run", "tiny/absent"], "system tiny has no case 'absent'; there are one, two"),
        (["run", "tiny", "--dtype", "fp31"], "unknown dtype 'fp31'; there are: fp32"),
        (["run", "tiny", "--fault", "absent"], "has no fault 'absent'"),
        (["run", "--fault", "wide_eps"], "need exactly one system"),
        (["run", "tiny", "--fault", "wide_eps", "--variation", "nothing"], "need exactly one system"),
        (["run", "tiny", "--weights", "x"], "cannot run from a checkpoint"),
        (["run", "--cases", "absent"], "cases folder absent does not exist"),
        (["compare", "absent", "absent"], "cannot read the trace absent"),
        (["compare", "absent"], "Missing argument"),
        (["diagnose", "absent.npy", "absent.npy"], "cannot read the tensor absent.npy"),
        (["golden", "verify"], "Missing argument"),
        (["capture", "absent.py"], "no script at absent.py"),
        (["capture", "notamodule"], "give package.module:callable"),
        (["capture", "absent_module:f"], "cannot load absent_module:f"),
        (["capture", "math:sqrt", "--modules", "("], "no regular expression"),
        (["nonfinite", "absent"], "unknown system or case 'absent'"),
        (["report", "absent.json"], "cannot read the result absent.json"),
        (["unheard"], "No such command 'unheard'"),
        (["run", "--unheard"], "No such option"),
        (["run", "tiny", "--seed", "x"], "Invalid value for '--seed'"),
        (["video", "absent", "absent"], "absent"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_use_is_status_two_and_one_line(project, parity, args, message):
    assert_usage(parity(*args), message)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there(project, parity):
    assert_usage(parity("run", "tiny", "--device", "cuda"), "no CUDA device is available here")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("SYSTEM = 5", "no SYSTEM of type parity.case.System"),
        ("import absent_library", "ModuleNotFoundError: No module named 'absent_library'"),
        ("def", "SyntaxError"),
        ("raise RuntimeError('first line\\nsecond line')", "RuntimeError: first line"),
    ],
)
def test_a_broken_case_file_is_one_line(tmp_path, monkeypatch, parity, source, message):
    write_project(tmp_path, cases=f"cases{next(NUMBER)}", source=source)
    monkeypatch.chdir(tmp_path)
    assert_usage(parity("list"), message)


def test_a_broken_pyproject_is_one_line(tmp_path, monkeypatch, parity):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text("[tool.parity\n")
    assert_usage(parity("list"), "cannot read")
    (tmp_path / "pyproject.toml").write_text('[tool.parity]\ncases = "fixtures"\n')
    assert_usage(parity("list"), "must be a list of folders")
    (tmp_path / "pyproject.toml").write_text("tool = 3\n")
    assert parity("list")[0] == 0  # nobody's table
    (tmp_path / "pyproject.toml").write_text("[tool]\nparity = 3\n")
    assert_usage(parity("list"), "must be a list of folders")


def test_two_systems_of_one_name(tmp_path, monkeypatch, parity):
    name = f"cases{next(NUMBER)}"
    folder = write_project(tmp_path, cases=name)
    (folder / "other").mkdir()
    (folder / "other" / "case.py").write_text(CASE)
    monkeypatch.chdir(tmp_path)
    assert_usage(parity("list"), "system 'tiny' is defined twice")


# -- traces and tensors -----------------------------------------------------------------------------------------------


def test_truncated_files_are_unreadable_input(tmp_path, parity):
    whole, cut = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file({"x": noise(20, 20)}, whole)
    cut.write_bytes(whole.read_bytes()[:-50])
    assert_usage(parity("compare", whole, cut), "no whole safetensors file")
    assert_usage(parity("diagnose", whole, cut), "no whole safetensors file")
    assert_usage(parity("report", whole), "cannot read the result")
    status, out, _ = parity("golden", "verify", cut)
    assert (status, out.startswith("error  b.safetensors")) == (2, True)


def test_compare_takes_a_map_and_tolerances(tmp_path, parity):
    save_file({"x": noise(3, 4)}, a := tmp_path / "a.safetensors")
    save_file({"y": noise(3, 4).t().contiguous() * 1.01}, b := tmp_path / "b.safetensors")
    (tmp_path / "names.yaml").write_text("- {port: y, reference: x, layout: 'a b -> b a'}\n")
    args = ["compare", a, b, "--map", tmp_path / "names.yaml"]
    assert parity(*args)[0] == 1
    assert parity(*args, "--rtol", "0.1")[0] == 0
    assert parity("compare", a, b, "--by-name")[0] == 1  # nothing in common: incomparable
    (tmp_path / "names.yaml").write_text("- {port: '(', reference: x}\n")
    assert_usage(parity(*args), "no regular expression")


def test_diagnose_two_files(tmp_path, parity):
    x = noise(6, 16)
    save_file({"r": x, "other": x.clone()}, tmp_path / "r.safetensors")
    np.save(tmp_path / "p.npy", (x * 1.25).numpy())
    status, out, _ = parity("diagnose", tmp_path / "r.safetensors:r", tmp_path / "p.npy", "--json", tmp_path / "d.json")
    assert status == 1
    cause = json.loads((tmp_path / "d.json").read_text())["causes"][0]
    assert "1.25" in cause["text"]
    assert "1.25" in out
    status, out, _ = parity("diagnose", f"{tmp_path}/r.safetensors:r", f"{tmp_path}/r.safetensors:other")
    assert (status, out.strip()) == (0, "match: the tensors agree")
    assert_usage(parity("diagnose", tmp_path / "r.safetensors", tmp_path / "p.npy"), "holds 2 tensors; name one")
    assert_usage(parity("diagnose", f"{tmp_path}/r.safetensors:absent", tmp_path / "p.npy"), "has no tensor 'absent'")


def test_an_npy_with_objects_is_never_unpickled(tmp_path, parity):
    class Bomb:
        def __reduce__(self):
            return (Path(tmp_path / "exploded").touch, ())

    np.save(tmp_path / "bomb.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    assert_usage(parity("diagnose", tmp_path / "bomb.npy", tmp_path / "bomb.npy"), "cannot read the tensor")
    assert not (tmp_path / "exploded").exists()


def test_tensors_of_other_shapes_or_empty(tmp_path, parity):
    np.save(tmp_path / "a.npy", np.zeros((2, 3), np.float32))
    np.save(tmp_path / "b.npy", np.zeros((3, 2), np.float32))
    np.save(tmp_path / "e.npy", np.zeros((0, 2), np.float32))
    status, out, _ = parity("diagnose", tmp_path / "a.npy", tmp_path / "b.npy")
    assert (status, "[2, 3] (reference), [3, 2] (port)" in out) == (1, True)
    assert parity("diagnose", tmp_path / "e.npy", tmp_path / "e.npy")[0] == 0


def test_nan_on_one_side_alone_is_a_divergence(tmp_path, parity):
    value = noise(4, 4).numpy()
    np.save(tmp_path / "a.npy", value)
    value[1, 2] = np.nan
    np.save(tmp_path / "n.npy", value)
    assert parity("diagnose", tmp_path / "a.npy", tmp_path / "n.npy")[0] == 1
    assert parity("diagnose", tmp_path / "n.npy", tmp_path / "n.npy")[0] == 0


# -- capture, reports, doctor, goldens --------------------------------------------------------------------------------

SCRIPT = """
import sys
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x, scale=1.0):
        return self.fc(x) * scale

torch.manual_seed(0)
net, other = Net(), nn.Linear(4, 2)
x = torch.ones(2, 4)
for i in range(2):
    x = net(x, scale=float(sys.argv[1]))
other(x)
{end}
"""


def test_capture_a_script_and_compare_two_runs(tmp_path, parity):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(end=""))
    status, out, _ = parity("capture", script, "1.0", "--out", tmp_path / "a")
    assert (status, "records in" in out) == (0, True)
    trace = load_trace(tmp_path / "a")
    assert trace.manifest.complete
    assert [r.key for r in trace if ".in." not in r.site] == [
        "fc",
        "model",
        "fc@call=1",
        "model@call=1",
        "Linear.1.model",
    ]
    assert [r.key for r in trace if "model.in." in r.site] == [
        "model.in.x",
        "model.in.x@call=1",
        "Linear.1.model.in.input",
    ]
    assert trace.tensor("fc") is None
    assert [r.order for r in trace] == list(range(len(trace)))
    parity("capture", script, "1.0", "--out", tmp_path / "full", "--full")
    assert parity("compare", tmp_path / "a", tmp_path / "full")[0] == 0
    parity("capture", script, "1.5", "--out", tmp_path / "b", "--full")
    status, out, _ = parity("compare", tmp_path / "a", tmp_path / "b", "--json", tmp_path / "r.json")
    first = json.loads((tmp_path / "r.json").read_text())["first"]
    assert (status, first["site"], first["coords"]) == (1, "model", {})
    assert sys.path[0] != str(tmp_path)


def test_capture_one_class_only(tmp_path, parity):
    (script := tmp_path / "script.py").write_text(SCRIPT.format(end=""))
    parity("capture", script, "1.0", "--out", tmp_path / "a", "--model", "Net", "--modules", "fc")
    assert load_trace(tmp_path / "a").sites() == ["fc.in.input", "fc"]
    assert_usage(
        parity("capture", script, "1", "--out", tmp_path / "b", "--model", "Absent"), "called no module of class Absent"
    )


@pytest.mark.parametrize(
    "end", ["raise ValueError('first\\nsecond')", "sys.exit(4)", "sys.exit('text')", "net(torch.ones(2, 7))"]
)
def test_capture_of_a_script_that_fails_leaves_an_incomplete_trace(tmp_path, parity, end):
    (script := tmp_path / "script.py").write_text(SCRIPT.format(end=end))
    assert_usage(parity("capture", script, "1.0", "--out", tmp_path / "a"), "is incomplete", status=3)
    trace = load_trace(tmp_path / "a")
    assert not trace.manifest.complete
    assert "fc" in trace.sites()
    status, out, _ = parity("compare", tmp_path / "a", tmp_path / "a")
    assert (status, "incomplete" in out) == (1, True)


def test_capture_a_callable(tmp_path, parity, monkeypatch):
    (tmp_path / "script_module.py").write_text(
        "import torch\nnet = torch.nn.Linear(2, 2)\n\ndef main():\n    net(torch.ones(1, 2))\n"
    )
    monkeypatch.chdir(tmp_path)
    assert parity("capture", "script_module:main", "--out", "t")[0] == 0
    assert load_trace("t").sites() == ["model.in.input", "model"]
    assert_usage(parity("capture", "script_module:absent", "--out", "t"), "cannot load")


def test_a_report_is_built_again_from_a_result(project, parity):
    parity("run", "tiny", "--fault", "wide_eps", "--json", "r.json")
    status, out, _ = parity("report", "r.json", "--html", "pages")
    assert (status, out.strip()) == (1, "report: pages/index.html")  # the status of the one result
    pages = sorted(p.name for p in Path("pages").iterdir())
    assert pages == ["index.html", "tiny-one-wide_eps.html"]
    assert "wide_eps" in Path("pages/index.html").read_text()
    assert "norm" in Path("pages/tiny-one-wide_eps.html").read_text()


def test_doctor(project, parity):
    status, out, _ = parity("doctor")
    assert status == 0
    assert "torch: " in out
    assert "cases: tiny (project" in out
    found = json.loads(parity("doctor", "--json")[1])
    assert {f["mark"] for f in found} <= {"ok", "note", "warn"}
    next(Path().glob("cases*/tiny/case.py")).write_text("raise ValueError")
    for name in [n for n in sys.modules if n.startswith("cases")]:
        del sys.modules[name]
    status, out, _ = parity("doctor")
    assert (status, "FAIL  cases: cannot load" in out) == (1, True)


@pytest.fixture
def golden(tmp_path) -> Path:
    torch.manual_seed(0)
    norm, proj = torch.nn.LayerNorm(8, eps=1e-5), torch.nn.Linear(8, 8)
    x = noise(2, 8)
    y = x + torch.nn.functional.gelu(proj(norm(x)))
    tensors = {"inputs.x": x, "outputs.y": y.detach()}
    tensors |= {
        f"weights.{n}.{k}": v.clone() for n, m in (("norm", norm), ("proj", proj)) for k, v in m.state_dict().items()
    }
    path = tmp_path / "g.safetensors"
    meta = {
        "system": "tiny",
        "case": "one",
        "entry": "forward",
        "side": "reference",
        "config": '{"eps": 1e-5}',
        "seed": "0",
    }
    save_file(tensors, path, meta)
    return path


def test_goldens_are_verified(project, parity, golden):
    status, out, _ = parity("golden", "verify", golden, "--json", "g.json")
    assert (status, out.startswith("ok     g.safetensors: tiny/forward (reference), 1 values")) == (0, True)
    assert json.loads(Path("g.json").read_text())["ok"] is True


@pytest.mark.parametrize(
    ("meta", "drop", "status", "message"),
    [
        ({"config": '{"eps": 1.0}'}, "", 1, "FAILED g.safetensors"),
        ({}, "weights.proj.bias", 2, "proj.bias"),
        ({}, "inputs.x", 2, "do not fit"),
        ({"config": "{}"}, "", 2, "do not fit"),
        ({"config": "[]"}, "", 2, "no JSON object"),
        ({"config": "{"}, "", 2, "no JSON"),
        ({"entry": "absent"}, "", 2, "no golden entry 'absent'"),
        ({"side": "port"}, "", 2, "for side 'port'"),
        ({"system": "absent"}, "", 2, "unknown system"),
        ({}, "outputs.y", 1, "FAILED g.safetensors"),
    ],
)
def test_goldens_that_are_wrong(project, parity, golden, meta, drop, status, message):
    from safetensors import safe_open

    with safe_open(golden, "pt") as handle:
        tensors = {k: handle.get_tensor(k) for k in handle.keys() if k != drop}  # noqa: SIM118
        metadata = handle.metadata() | meta
    save_file(tensors, golden, metadata)
    code, out, err = parity("golden", "verify", golden)
    assert (code, message in out) == (status, True), (out, err)
    assert "Traceback" not in out + err
