"""The reference picture (spec 6.4)."""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor


def picture_to_tensor(picture: NDArray[np.uint8] | Tensor, width: int, height: int, twice: bool = False) -> Tensor:
    """uint8 RGB (h, w, 3) -> (1, 3, height, width) float32 in [−1, 1], resized with Lanczos.

    `twice`: the standard caller first resizes with the library's default (bicubic), which leaves Lanczos nothing to do;
    the accelerated one gives the picture as it is.
    """
    image = Image.fromarray(np.asarray(picture)).convert("RGB")
    if twice:
        image = image.resize((width, height))
    resized = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
    unit = torch.from_numpy(resized.astype(np.float32) / 255.0)
    return (2.0 * unit - 1.0).permute(2, 0, 1)[None].contiguous()
