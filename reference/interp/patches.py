"""Latents to patch tokens and back (spec 2)."""

from einops import rearrange, reduce
from torch import Tensor


def patchify(latents: Tensor, patch_size: int) -> tuple[Tensor, tuple[int, int]]:
    """Cut latents `(b, t, c, h, w)` into tokens `(b, t, n, c·p·p)` with n = y·Wp + x; also returns (Hp, Wp).

    Errors: ValueError when h or w is not divisible by the patch size.
    """
    h, w = latents.shape[-2:]
    if h % patch_size or w % patch_size:
        raise ValueError(f"latents of {h}x{w} are not divisible into patches of {patch_size}")
    pattern = "b t c (y py) (x px) -> b t (y x) (c py px)"
    tokens = rearrange(latents, pattern, py=patch_size, px=patch_size)
    return tokens, (h // patch_size, w // patch_size)


def unpatchify(tokens: Tensor, patch_size: int, shape: tuple[int, int]) -> Tensor:
    """The exact inverse: `(b, t, n, c·p·p)` -> `(b, t, c, h, w)`."""
    pattern = "b t (y x) (c py px) -> b t c (y py) (x px)"
    return rearrange(tokens, pattern, y=shape[0], x=shape[1], py=patch_size, px=patch_size)


def patchify_confidence(confidence: Tensor, patch_size: int) -> Tensor:
    """Average a map over every patch: `(b, t, h, w)` -> `(b, t, n)`."""
    return reduce(confidence, "b t (y py) (x px) -> b t (y x)", "mean", py=patch_size, px=patch_size)
