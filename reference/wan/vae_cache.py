"""The feature cache of the causal VAE: what each convolution remembers of the previous chunk (spec A10).

One `FeatureCache` belongs to one network (encoder or decoder) and one encode or decode. A slot is empty (None), holds a
tensor, or, in the decoder's temporal upsampling only, the marker `REPEAT`. The cursor restarts at 0 for every chunk and
advances in execution order.
"""

import torch
from torch import Tensor

REPEAT = "Rep"
KEPT_FRAMES = 2  # what a time kernel of 3 needs from the past

Slot = Tensor | str | None


class FeatureCache:
    """Slots and a cursor.

    `slots` has one entry for each CausalConv3d of the network (encoder 26, decoder 33), as upstream; the 1x1x1 shortcut
    convolutions are counted yet own none, so the last entries (2 and 1) are never used.
    """

    def __init__(self, size: int) -> None:
        self.slots: list[Slot] = [None] * size
        self.cursor = 0

    def restart(self) -> None:
        """Begin a chunk."""
        self.cursor = 0

    def read(self) -> Slot:
        """Return the slot under the cursor, as the previous chunk left it."""
        return self.slots[self.cursor]

    def store(self, value: Tensor | str) -> None:
        """Fill the slot under the cursor and advance."""
        self.slots[self.cursor] = value
        self.cursor += 1


def recent_frames(x: Tensor, old: Tensor | None) -> Tensor:
    """Return what a slot keeps of `x` `(b, c, t, h, w)`: its last two frames.

    When x has one frame only and the slot is filled, the last frame of the old content goes in front of it.
    """
    new = x[:, :, -KEPT_FRAMES:].clone()
    if new.shape[2] < KEPT_FRAMES and old is not None:
        new = torch.cat([old[:, :, -1:].to(new.device), new], dim=2)
    return new
