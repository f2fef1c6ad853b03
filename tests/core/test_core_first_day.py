"""What a new user does on the first day: every wrong argument is named, nothing is accepted in silence."""

from __future__ import annotations

import copy
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from core_project import write_project
from torch import nn

import parity
from parity import cli
from parity.__main__ import main
from parity.api import diagnose_tensors
from parity.commands.options import complete_case, complete_fault
from parity.errors import ParityError
from parity.result import Coverage, Culprit, Divergence, Result
from parity.run.side import Runs
from parity.session import _save as save

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


# -- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def traces(tmp_path, monkeypatch):
    """Traces of a reference, of the same again, and of a port with another eps, in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name, eps in (("a", 1e-5), ("same", 1e-5), ("b", 1e-2)):
        model = net()
        model[1].eps = eps
        parity.capture(model, X, path=tmp_path / name)
    return tmp_path


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command in this process: `status, out, err = command("list")`."""

    def run(line: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["parity", *line.split()])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        seen = capsys.readouterr()
        return int(stop.value.code or 0), seen.out, seen.err

    return run


def test_compare_names_a_next_command_that_runs_and_takes_its_time(traces, command):
    status, out, _ = command("compare a b --json r.json")
    assert status == 1
    (following,) = re.findall(r"zoom in +parity (.*)", out)
    assert command(following)[0] == 0
    assert sum(json.loads(Path("r.json").read_text())["seconds"].values()) > 0
    status, out, _ = command("compare a same")
    assert status == 0
    assert "zoom in" not in out


@pytest.mark.parametrize("line", ["--version", "list --version", "compare --version", "golden verify --version"])
def test_the_version_is_said_wherever_it_is_asked_for(command, line):
    assert command(line) == (0, f"parity {parity.__version__}\n", "")


@pytest.mark.parametrize("line", ["--traceback compare absent b", "compare absent b --traceback"])
def test_a_traceback_is_shown_wherever_it_is_asked_for(traces, monkeypatch, line):
    monkeypatch.setattr(sys, "argv", ["parity", *line.split()])
    with pytest.raises(ParityError, match="cannot read the trace absent"):
        cli.main()
    monkeypatch.setattr(sys, "argv", ["parity", "compare", "absent", "b"])
    with pytest.raises(SystemExit):  # and the next one is a line again
        cli.main()


def test_html_is_a_folder_everywhere(traces, command):
    clip = np.zeros((3, 8, 8, 3), np.uint8)
    np.save("x.npy", clip)
    np.save("y.npy", clip + 90)
    for line in ("compare a b --html pages", "video x.npy y.npy --html pages"):
        status, out, _ = command(line)
        assert status == 1
        assert (traces / re.findall(r"report: (.*)", out)[-1]).is_file()
    assert len(list(Path("pages").glob("*.html"))) == 3  # the two and the index of the first


def test_the_thresholds_of_video_are_the_users(traces, command):
    clip = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), np.uint8)
    np.save("x.npy", clip)
    np.save("y.npy", np.clip(clip.astype(int) + 9, 0, 255).astype(np.uint8))
    assert command("video x.npy y.npy")[0] == 1
    assert command("video x.npy y.npy --psnr 20 --ssim 0.5 --block 40")[0] == 0
    assert command("video x.npy y.npy --ssim 2")[0] == 2


@pytest.mark.parametrize("line", ["compare a b", "doctor", "list"])
def test_quiet_says_nothing(traces, command, line):
    loud, quiet = command(line), command(f"{line} -q")
    assert loud[1]
    assert quiet == (loud[0], "", "")


def test_verbose_says_every_note_and_where_the_time_went(traces, command):
    assert "  seconds   read" in command("compare a b -v")[1]


@pytest.mark.parametrize("name", [*cli.COMMANDS, "golden verify"])
def test_every_help_ends_with_examples_that_are_commands(command, name):
    status, out, _ = command(f"{name} --help")
    assert status == 0
    examples = re.findall(rf"^ +(parity {name}.*)$", out.partition("Examples:")[2], re.MULTILINE)
    assert examples
    known = set(re.findall(r"--[a-z-]+", out.partition("Examples:")[0]))
    assert set(re.findall(r"--[a-z-]+", "\n".join(examples))) <= known


def test_a_project_without_cases_says_how_to_have_some(traces, command):
    for line in ("run tiny", "run", "gauntlet"):
        status, _, err = command(line)
        assert status == 2
        assert "parity init" in err


def test_an_unknown_fault_is_refused_before_anything_is_imported(tmp_path, monkeypatch, command):
    write_project(tmp_path, cases="cases_of_a_first_day")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert "fault wide_eps" in command("list tiny --faults")[1]
    assert complete_case("tiny/") == ["tiny/one", "tiny/two"]
    assert complete_fault("wide") == ["wide_eps"]
    monkeypatch.setattr("parity.case.discovery.load_system", None)
    status, _, err = command("run tiny --fault wide_epx")
    assert status == 2
    assert "system tiny has no fault 'wide_epx'; did you mean 'wide_eps'?" in err


def test_a_save_of_much_is_said_beforehand(tmp_path, caplog, monkeypatch):
    trace = parity.capture(net(), X)
    save(Runs(trace, trace), tmp_path / "small")
    assert not caplog.records
    monkeypatch.setattr("parity.session.MUCH", 100)
    save(Runs(trace, trace), tmp_path / "much")
    assert "--save writes 0 MB into" in caplog.text


def test_a_table_of_results_does_not_break_at_80_columns(traces, command, monkeypatch):
    monkeypatch.setattr("parity.commands.options.OUT._width", 80)
    out = command("compare a b")[1].partition("\n\n")[0]
    assert max(map(len, out.splitlines())) <= 80
    assert "diverged" in out


def test_assert_parity_shows_the_callers_line_and_no_frame_of_the_library():
    port = net()
    port[1].eps = 1e-2
    with pytest.raises(AssertionError) as caught:
        parity.assert_parity(net(), port, X)
    shown = caught.traceback.filter(caught)
    assert {Path(entry.path).name for entry in shown} == {Path(__file__).name}
    assert str(caught.value).startswith("parity DIVERGED: check at 1 [N1]")


def test_a_slim_install_says_what_it_lacks(monkeypatch):
    for name in [n for n in sys.modules if n == "parity.cli" or n.startswith("parity.commands")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit, match=r"parity: typer is not installed: pip install 'parity\[all\]'"):
        main()


def test_a_place_is_never_cut():
    """However long its operation and its path are: what the message says can be opened."""
    source = f"{'deep/' * 30}model.py:1234"
    culprit = Culprit("m" * 300, f"mul({'f32[1,2], ' * 30})", source, "return x")
    first = Divergence("m", {}, "activation", "rel_l2", 1.0, 1e-6)
    text = Result("diverged", first, culprit, (), Coverage(1, 1, 1)).text()
    assert source in "".join(line.strip() for line in text.splitlines())
    assert max(map(len, text.splitlines())) <= 120
