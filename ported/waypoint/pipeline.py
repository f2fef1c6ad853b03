"""The port's pipeline: text encoding, denoising, decoding (spec B10)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from .autoencoder import WaypointVAE
from .cache import WaypointKVCache
from .decoding import DecodingStage
from .denoising import DenoisingStage
from .model import WaypointWorldModel
from .text import TextEncodingStage

DEFAULT_PROMPT = "An explorable world"


@dataclass(frozen=True)
class StreamingOutput:
    """What one streaming step returns: latents [B, C, T, h, w] and, with an autoencoder, video [B, 3, T, H, W]."""

    latents: Tensor
    video: Tensor | None


class WaypointPipeline(nn.Module):
    """The stages in order; the text encoder and the autoencoder may be left out when their outputs are not wanted."""

    def __init__(
        self, denoising: DenoisingStage, decoding: DecodingStage | None, text_encoding: TextEncodingStage | None
    ) -> None:
        super().__init__()
        self.text_encoding = text_encoding
        self.denoising = denoising
        self.decoding = decoding

    @property
    def model(self) -> WaypointWorldModel:
        return self.denoising.model

    @property
    def kv_cache(self) -> WaypointKVCache:
        return self.denoising.kv_cache

    @property
    def vae(self) -> WaypointVAE:
        if self.decoding is None:
            raise ValueError("Waypoint port: this pipeline was built without an autoencoder")
        return self.decoding.vae

    def encode_prompt(self, prompt: str) -> tuple[Tensor, Tensor]:
        if self.text_encoding is None:
            raise ValueError("Waypoint port: this pipeline was built without a text encoder; give prompt_emb")
        return self.text_encoding(prompt)

    def streaming_reset(
        self,
        prompt: str = DEFAULT_PROMPT,
        *,
        prompt_emb: Tensor | None = None,
        prompt_pad_mask: Tensor | None = None,
        image: Tensor | None = None,
        image_latent: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        """Start a session from a prompt or its embedding, and an image (uint8 [H, W, C]) or its latent [1, C, h, w]."""
        if prompt_emb is None and self.model.prompt_cfg is not None:
            prompt_emb, prompt_pad_mask = self.encode_prompt(prompt)
        if image is not None:
            image_latent = self.vae.encode(image)
        self.denoising.streaming_reset(prompt_emb, prompt_pad_mask, image_latent, seed)

    def streaming_step(
        self, keyboard: Tensor, mouse: Tensor, scroll: Tensor | None = None, noise: Tensor | None = None
    ) -> StreamingOutput:
        """Generate and decode the next frames; arguments as in `DenoisingStage.streaming_step`."""
        latents = self.denoising.streaming_step(keyboard, mouse, scroll, noise)
        return StreamingOutput(latents, None if self.decoding is None else self.decoding(latents))

    def streaming_clear(self) -> None:
        self.denoising.streaming_clear()
