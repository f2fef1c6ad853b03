"""The dependency law: the two sides share nothing, the harness knows neither, and every room of it knows only what stands before it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from core_imports import ROOT, Import, imports_of

SIDES = ("reference", "ported")

# Each room imports only what stands before it (and itself).
ROOMS = (
    ("errors",),
    ("boundary",),
    ("files",),
    ("result",),
    ("trace",),
    ("capture",),
    ("case",),
    ("align",),
    ("run",),
    ("compare",),
    ("locate",),
    ("diagnose",),
    ("clips",),
    ("report",),
    ("pipeline",),
    ("measured",),
    ("alone", "apart"),
    ("api", "session"),
    ("stand_in",),
    ("lab",),
    ("console",),
    ("commands",),
    ("pytest_plugin", "cli"),
    ("__main__",),
)
# Imports inside functions that may look ahead, each with its reason.
AHEAD = {
    ("compare", "api"): "`parity.compare` is a function and this room",
    ("capture", "measured"): "`parity.capture(..., floors=True)` measures as a run does",
    ("result", "report"): "`str(result)`, `result.html(path)` and `result.to_pandas()` render what they hold",
    ("trace", "report"): "`trace.to_pandas()` and what a notebook shows",
}
# Systems that are built on another one, on both sides: their authors' own packages import it.
BUILT_ON = {"multikeyframe": "wan", "svi": "wan"}
FOREIGN = "pydantic regex yaml einops rich typer jinja2 scipy pandas matplotlib skimage cv2 av transformers diffusers PIL tqdm"


def room_of(module: str) -> tuple[int, str]:
    """Return (place, name) of the room of a module of parity: the longest listed name that covers it."""
    path = module.removeprefix("parity").removeprefix(".")
    fitting = [(i, n) for i, names in enumerate(ROOMS) for n in names if path == n or path.startswith(f"{n}.")]
    if not fitting:
        raise AssertionError(f"{module} has no place in ROOMS: say what it may import")
    return max(fitting, key=lambda found: len(found[1]))


def top(name: str) -> str:
    return name.partition(".")[0]


def where(found: Import) -> str:
    return f"{found.importer}:{found.line} imports {found.imported}"


@pytest.fixture(scope="module")
def graph() -> dict[str, tuple[Import, ...]]:
    return {package: imports_of(package) for package in ("parity", *SIDES)}


def test_the_walk_sees_the_code(graph):
    seen = {package: {found.importer for found in imports} for package, imports in graph.items()}
    assert {"parity.cli", "parity.capture.recorder", "parity.diagnose.congruence"} <= seen["parity"]
    assert all(any(top(f.imported) == "torch" for f in graph[side]) for side in SIDES)
    # The graph tells lazy imports from others, and modules from names.
    assert Import("parity.result", "parity.files", 0, True) in {
        Import(f.importer, f.imported, 0, f.lazy) for f in graph["parity"]
    }
    assert any(f.imported == "parity.capture.nested" and not f.lazy for f in graph["parity"])


def test_parity_imports_neither_side(graph):
    assert [where(f) for f in graph["parity"] if top(f.imported) in (*SIDES, "fixtures", "tests")] == []


@pytest.mark.parametrize("side", SIDES)
def test_a_side_imports_neither_parity_nor_the_other_side(graph, side):
    forbidden = {"parity", "fixtures", "tests", *SIDES} - {side}
    assert [where(f) for f in graph[side] if top(f.imported) in forbidden] == []


@pytest.mark.parametrize("side", SIDES)
def test_no_system_imports_another(graph, side):
    """A helper shared by two systems (or kept above them) would make both wrong together; a system may be built on another."""
    crossing = []
    for found in graph[side]:
        own, other = found.importer.split(".")[:2], found.imported.split(".")[:2]
        if other[0] == side and own != other and BUILT_ON.get(own[-1]) != other[-1]:
            crossing.append(where(found))
    assert crossing == []


def doors(source: str) -> list[str]:
    """Return the ways in which a module could reach code that it does not import by name."""
    found = []
    for node in ast.walk(ast.parse(source)):
        text = ast.unparse(node) if isinstance(node, (ast.Call, ast.Attribute)) else ""
        if isinstance(node, ast.Call) and text.startswith(("exec(", "eval(", "__import__(", "runpy.")):
            found.append(text)
        elif isinstance(node, ast.Call) and "import_module(" in text.partition(" ")[0]:
            name = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else "?"
            found += [text] if top(str(name)) in ("?", "parity", "fixtures", "tests", *SIDES) else []
        elif isinstance(node, ast.Attribute) and text == "sys.path":
            found.append(text)
    return found


def test_the_sides_reach_each_other_by_no_other_door():
    """No module is loaded by a name made at run time, or by the name of the other side; the search path is not bent."""
    files = [file for side in SIDES for file in sorted((ROOT / side).rglob("*.py"))]
    assert {str(f.relative_to(ROOT)): d for f in files if (d := doors(f.read_text(encoding="utf-8")))} == {}


@pytest.mark.parametrize(
    ("source", "open_door"),
    [
        ("importlib.import_module('ported.wan')", True),
        ("importlib.import_module(name)", True),
        ("importlib.import_module('ftfy')", False),
        ("x = eval(text)", True),
        ("model.eval()", False),
        ("sys.path.insert(0, '..')", True),
    ],
)
def test_a_door_is_seen(source: str, open_door: bool):
    assert bool(doors(source)) is open_door


def test_every_room_imports_only_what_stands_before_it(graph):
    wrong = []
    for found in graph["parity"]:
        if top(found.imported) != "parity" or found.imported == "parity" or found.importer == "parity":
            continue
        (own, own_name), (other, other_name) = room_of(found.importer), room_of(found.imported)
        ahead = found.lazy and ((own_name, other_name) in AHEAD or _renders(own_name, other_name))
        if other_name != own_name and other >= own and not ahead:
            wrong.append(where(found))
    assert wrong == []


def _renders(importer: str, imported: str) -> bool:
    """Only the outermost rooms turn results into text, and only when they are asked to."""
    return imported == "report" and importer in ("commands", "cli", "session", "api", "pytest_plugin")


def test_no_room_is_listed_in_vain(graph):
    modules = {found.importer for found in graph["parity"]} | {found.imported for found in graph["parity"]}
    rooms = {room_of(m)[1] for m in modules if m.startswith("parity.")}
    files = {".".join(f.relative_to(ROOT / "parity").with_suffix("").parts) for f in (ROOT / "parity").rglob("*.py")}
    assert {n for names in ROOMS for n in names} - rooms - files == set()


def test_the_package_itself_loads_nothing(graph):
    own = [f for f in graph["parity"] if f.importer == "parity"]
    assert own
    assert {f.imported for f in own} <= {"__future__", "importlib", "typing"}


ALONE = """
import sys
refused = frozenset({refused!r}.split())

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in refused:
            raise ImportError(f"refused: {{name}}")

sys.meta_path.insert(0, Refuse())
import torch
from torch import nn
from parity.capture import Function, Modules, Recorder, capture
import parity

model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
trace = capture(model, (torch.ones(2, 3),), path={out!r})
assert trace.manifest.complete, trace.manifest
assert len(parity.load_trace({out!r})) == len(trace) == 9, len(trace)
own = {{m.partition(".")[0] for m in sys.modules}} & refused
assert not own, own
print("recorded", trace.sites()[0])
"""


def test_capture_needs_torch_numpy_and_safetensors_alone(tmp_path: Path):
    """In somebody else's environment, with nothing else installed, a trace is recorded to disk and read again."""
    script = ALONE.format(refused=FOREIGN, out=str(tmp_path / "trace"))
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "recorded model.in.input"
    assert sorted(p.name.partition("-")[0] for p in (tmp_path / "trace").iterdir()) == ["manifest.json", "records"]


def test_the_whole_way_to_a_trace_imports_only_the_three_at_the_top(graph):
    """What capture and store import, however far, is the standard library, torch, numpy and safetensors."""
    todo, seen, foreign = (
        ["parity.capture", "parity.capture.command", "parity.trace.store", "parity.case.seeding"],
        set(),
        set(),
    )
    while todo:
        module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        for found in graph["parity"]:
            if found.importer != module or found.lazy:
                continue
            if top(found.imported) == "parity":
                todo.append(found.imported)
            elif top(found.imported) not in sys.stdlib_module_names:
                foreign.add(top(found.imported))
    assert len(seen) > 8
    assert foreign == {"torch", "numpy", "safetensors"}
