"""A user's own project: a pyproject.toml, one cases folder, one system with a right port, a fault, and a golden entry."""

from __future__ import annotations

import textwrap
from pathlib import Path

PYPROJECT = '[tool.parity]\ncases = ["cases"]\n'

CASE = '''
"""One small system, written by a user."""

import torch
from torch import nn

from parity.case import Case, Expectation, Fault, GoldenEntry, GoldenRun, Side, System, Variation
from parity.capture.probes import Modules
from parity.trace.names import parse_names
from parity.case.seeding import normal


class Net(nn.Module):
    def __init__(self, eps=1e-6, names=("norm", "proj")):
        super().__init__()
        self.add_module(names[0], nn.LayerNorm(8, eps=eps))
        self.add_module(names[1], nn.Linear(8, 8))
        self.fail = False

    def forward(self, x):
        norm, proj = self.children()
        if self.fail:
            raise ValueError("the port\\ncannot run")
        return x + torch.nn.functional.gelu(proj(norm(x)))


def build(setting, names=("norm", "proj")):
    model = Net(names=names)
    for i, p in enumerate(model.parameters()):
        p.data = 0.3 * normal(p.shape, setting.seed, f"w{i}")
    return model.to(setting.dtype)


def side(names):
    return Side(
        build=lambda setting: build(setting, names),
        run=lambda model, x: model(x),
        probes=lambda model: [Modules(model)],
        modules=lambda model: {"": model},
    )


def wide_eps(model):
    model.ln.eps = 1e-2


def break_it(model):
    model.fail = True


def case(name):
    return Case(
        system="tiny",
        name=name,
        text="a norm and a projection",
        reference=side(("norm", "proj")),
        port=side(("ln", "fc")),
        inputs=lambda setting: normal((2, 3, 8), setting.seed, "x").to(setting.dtype),
        names=parse_names([{"port": r"ln(\\..*)?", "reference": r"norm\\1"}, {"port": r"fc(\\..*)?", "reference": r"proj\\1"}]),
    )


def golden(given):
    model = Net(eps=given.config["eps"])
    model.load_state_dict(dict(given.weights))
    return GoldenRun(outputs={"y": model(given.inputs["x"])})


SYSTEM = System(
    name="tiny",
    text="a user's own system",
    cases=(case("one"), case("two")),
    faults=(
        Fault("wide_eps", "another eps", wide_eps, Expectation(site="norm")),
        Fault("broken", "does not run", break_it, Expectation(site="norm")),
    ),
    variations=(Variation("nothing", "no change", lambda model: None),),
    goldens=(GoldenEntry("forward", golden),),
)
'''


def write_project(root: Path, *, cases: str = "cases", system: str = "tiny", source: str = CASE) -> Path:
    """Write the project below `root`; return the cases folder."""
    (root / "pyproject.toml").write_text(PYPROJECT.replace('"cases"', f'"{cases}"'))
    folder = root / cases / system
    folder.mkdir(parents=True)
    (folder / "case.py").write_text(textwrap.dedent(source).replace('"tiny"', f'"{system}"'))
    return root / cases
