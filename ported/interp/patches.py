"""Patch tokens by view and permute (spec 2)."""

import torch.nn.functional as F
from torch import Tensor


def patchify(latents: Tensor, patch_size: int) -> tuple[Tensor, tuple[int, int]]:
    """Latents `(b, t, c, h, w)` -> tokens `(b, t, n, c·p·p)` and (Hp, Wp); ValueError when the size does not divide."""
    b, t, c, h, w = latents.shape
    p = patch_size
    if h % p or w % p:
        raise ValueError(f"height {h} and width {w} must divide by the patch size {p}")
    cut = latents.reshape(b, t, c, h // p, p, w // p, p).permute(0, 1, 3, 5, 2, 4, 6)
    return cut.reshape(b, t, (h // p) * (w // p), c * p * p), (h // p, w // p)


def unpatchify(tokens: Tensor, patch_size: int, shape: tuple[int, int]) -> Tensor:
    """Tokens back to latents `(b, t, c, h, w)`."""
    b, t, _, d = tokens.shape
    p, (rows, columns) = patch_size, shape
    cut = tokens.reshape(b, t, rows, columns, d // p**2, p, p).permute(0, 1, 4, 2, 5, 3, 6)
    return cut.reshape(b, t, d // p**2, rows * p, columns * p)


def patchify_confidence(confidence: Tensor, patch_size: int) -> Tensor:
    """Mean of every patch: `(b, t, h, w)` -> `(b, t, n)`."""
    return F.avg_pool2d(confidence, patch_size).flatten(2)
