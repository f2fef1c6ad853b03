"""Float32 regions inside a network that runs under `torch.autocast(device, bfloat16)` with float32 weights (spec A8).

The official run wraps generation in autocast(bf16): Linear and convolution round their operands to bf16, everything
else follows its inputs. Some parts are written to stay in float32. Real autocast is used here too, so nothing has to be
switched inside the modules: without autocast every module computes in the dtype of its weights, and float64 tensors are
never touched by autocast, so an upcast copy of a model stays in float64 even inside the region.
"""

from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def fp32_region(device: torch.device) -> AbstractContextManager[None]:
    """Suspend autocast: operations follow the dtypes of their operands."""
    return torch.autocast(device.type, enabled=False)


class Linear32(nn.Linear):
    """Linear layer of a float32 region: input and weights are cast up, the result is float32."""

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        with fp32_region(x.device):
            return F.linear(x.float(), self.weight.float(), None if self.bias is None else self.bias.float())
