"""Record a trace without parity: torch and safetensors are enough. `python ten_line_trace.py OUT.safetensors [EPS]`.

The model is a stand-in for anything you cannot change; run it with two values of EPS and compare the two files:

    python ten_line_trace.py reference.safetensors
    python ten_line_trace.py port.safetensors 1e-2
    parity compare reference.safetensors port.safetensors
"""

import json
import sys

import torch
from safetensors.torch import save_file

# -- the model under test

torch.manual_seed(0)
model = torch.nn.Sequential()
model.add_module("norm", torch.nn.LayerNorm(16, eps=float(sys.argv[2]) if len(sys.argv) > 2 else 1e-6))
model.add_module("proj", torch.nn.Linear(16, 16))
model.add_module("act", torch.nn.GELU())
x = torch.randn(2, 5, 16)

# -- recording

records = {}
for name, module in model.named_modules():
    module.register_forward_hook(
        lambda module, args, output, name=name or "model": records.update({f"{name}@step={step}": output.detach().clone()})
    )
for step in range(3):
    x = x + 0.1 * model(x)
save_file(records, sys.argv[1], metadata={"order": json.dumps(list(records))})

# -- end
