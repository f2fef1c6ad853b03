"""Run the port's DiT on official inputs: lists of samples, contexts and condition latents (spec A3, B4)."""

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from ported.wan import text


class DiTForward(nn.Module):
    """Official call signature around `WanTransformer3DModel`, which stays reachable as `.model`.

    The library takes dense batches without padding, so samples of equal size go in one call and samples of unequal size
    in one call each. Inputs are cast to the model's dtype as the pipelines do; outputs are in the model's dtype.
    """

    def __init__(self, model: WanTransformer3DModel):
        super().__init__()
        self.model = model

    def forward(
        self,
        x: list[Tensor],
        t: Tensor,
        context: list[Tensor],
        clip_fea: Tensor | None = None,
        y: list[Tensor] | None = None,
    ) -> list[Tensor]:
        """Velocity of each sample.

        x: latents `(16, F, H, W)` each; t `(B,)`; context `(l_i, text_dim)` each; clip_fea `(B, n, dim)`, for flf2v
        `(2B, n, dim)` with first and last interleaved; y: `(20, F, H, W)` each, mask first. Returns `(16, F, H, W)`
        each.
        """
        latents = x if y is None else [torch.cat(pair) for pair in zip(x, y, strict=True)]
        if len({sample.shape for sample in latents}) == 1:
            return list(self.dense(torch.stack(latents), t, text.pad_context(context), clip_fea).unbind())
        rows = [None] * len(x) if clip_fea is None else list(clip_fea.chunk(len(x)))
        return [
            self.dense(latents[i][None], t[i : i + 1], text.pad_context(context[i : i + 1]), rows[i])[0]
            for i in range(len(x))
        ]

    def dense(self, latents: Tensor, t: Tensor, context: Tensor, clip_fea: Tensor | None) -> Tensor:
        """One library call: latents `(B, c, F, H, W)`, context `(B, 512, text_dim)` -> velocity `(B, 16, F, H, W)`."""
        dtype = self.model.dtype
        return self.model(
            hidden_states=latents.to(dtype),
            timestep=t,
            encoder_hidden_states=context.to(dtype),
            encoder_hidden_states_image=None if clip_fea is None else clip_fea.to(dtype),
            return_dict=False,
        )[0]
