"""A system as small as can be, whose goldens are mutated: `y = gelu(proj(norm(x)))`."""

CASE = """
import torch
from torch import nn

from parity.capture.probes import Modules
from parity.case import Case, GoldenEntry, GoldenRun, Side, System


class Net(nn.Module):
    def __init__(self, eps):
        super().__init__()
        self.norm = nn.LayerNorm(8, eps=eps)
        self.proj = nn.Linear(8, 8)

    def forward(self, x):
        return torch.nn.functional.gelu(self.proj(self.norm(x)))


def side():
    return Side(build=lambda setting: Net(1e-6), run=lambda model, x: model(x), probes=lambda model: [Modules(model)], modules=lambda model: {"": model})


def golden(given):
    model = Net(eps=given.config["eps"])
    model.load_state_dict(dict(given.weights))
    h = model.norm(given.inputs["x"])
    return GoldenRun(outputs={"y": model(given.inputs["x"])}, acts={"norm": h})


SYSTEM = System(
    name="fuzzed",
    text="what goldens are mutated of",
    cases=(Case(system="fuzzed", name="one", text="one", reference=side(), port=side(), inputs=lambda setting: torch.ones(2, 8)),),
    goldens=(GoldenEntry("forward", golden),),
)
"""
