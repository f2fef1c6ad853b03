"""A script of somebody who never heard of parity: three calls of one root, by keyword too, with a keyword tensor at the first."""

SCRIPT = """
import sys, torch
from torch import nn
torch.manual_seed(0)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.n, self.b = nn.Linear(8, 8), nn.LayerNorm(8, eps=float(sys.argv[1])), nn.Linear(8, 4)
    def forward(self, x, *, gain):
        return self.b(torch.nn.functional.gelu(self.n(self.a(x * gain))))
model, x = Net().eval(), torch.randn(3, 8)
with torch.no_grad():
    for i in range(3):
        y = model(x, gain=torch.tensor(1.5))
        x = x + 0.1 * torch.cat([y, y], -1)
"""
