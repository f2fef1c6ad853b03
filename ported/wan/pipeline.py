"""The sampling loop of the port: diffusers' own pipelines, called with given noise and features (spec A14, B4).

`WanPipeline.__call__` and `WanImageToVideoPipeline.__call__` run unchanged: conditional pass, unconditional pass,
guidance, `scheduler.step`, and the VAE at the end. `images="official"` swaps in the official picture preparation;
"native" keeps the library's. Latents stay float32; the model runs in its own dtype.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline, WanPipeline, WanTransformer3DModel
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionModel, UMT5EncoderModel

from ported.wan import image as pictures
from ported.wan import text

Pipe = WanPipeline | WanImageToVideoPipeline


@dataclass(frozen=True)
class Request:
    """One generation. noise `(16, t, h, w)`; positive and negative features `(l, dim)`; images uint8 `(H, W, 3)`."""

    noise: Tensor
    positive: Tensor
    negative: Tensor
    steps: int
    guidance: float
    image: Tensor | None = None
    last_image: Tensor | None = None


@dataclass(frozen=True)
class Generated:
    """Noise and the latent after each step, `(b, 16, t, h, w)` each; the video `(b, 3, F, H, W)` in [-1, 1]."""

    latents: list[Tensor]
    video: Tensor | None


def build_pipeline(
    dit: WanTransformer3DModel,
    scheduler: Any,
    vae: AutoencoderKLWan | None = None,
    image_encoder: CLIPVisionModel | None = None,
    text_encoder: UMT5EncoderModel | None = None,
    images: Literal["official", "native"] = "official",
) -> Pipe:
    """Build the library's t2v pipeline, or its i2v / flf2v one when the DiT takes image features."""
    parts: dict[str, Any] = {"vae": vae, "scheduler": scheduler, "transformer": dit, "transformer_2": None}
    parts |= {"text_encoder": text_encoder, "tokenizer": text.IdTokenizer() if text_encoder else None}
    if dit.config.image_dim is None:
        pipe: Pipe = WanPipeline(**parts)
    else:
        if image_encoder is None or vae is None:
            raise ValueError("an image-conditioned DiT needs a VAE and an image encoder")
        size = image_encoder.config.image_size
        official = images == "official"
        processor = pictures.OfficialClipProcessor(size) if official else pictures.native_clip_processor(size)
        pipe = WanImageToVideoPipeline(**parts, image_encoder=image_encoder, image_processor=processor)
        if official:
            pipe.video_processor = pictures.OfficialVideoProcessor(vae_scale_factor=pipe.vae_scale_factor_spatial)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: Pipe, request: Request) -> Generated:
    """Run the library's pipeline on a request; without a VAE the video is None."""
    latents = [request.noise[None]]

    def keep(_: Pipe, __: int, ___: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        latents.append(state["latents"])
        return {}

    factor = pipe.vae_scale_factor_spatial
    frames = pipe(
        prompt_embeds=text.pad_context([request.positive]),
        negative_prompt_embeds=text.pad_context([request.negative]),
        height=request.noise.shape[-2] * factor,
        width=request.noise.shape[-1] * factor,
        num_frames=(request.noise.shape[-3] - 1) * pipe.vae_scale_factor_temporal + 1,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        latents=latents[0],
        output_type="latent" if pipe.vae is None else "pt",
        callback_on_step_end=keep,
        return_dict=False,
        **condition_images(pipe, request),
    )[0]
    # the library maps the decoded video to [0, 1], (b f c h w)
    return Generated(latents, None if pipe.vae is None else (2 * frames - 1).transpose(1, 2))


def condition_images(pipe: Pipe, request: Request) -> dict[str, Any]:
    """`image` and `last_image`: tensors in [-1, 1] for the official preparation, PIL images for the native."""
    if request.image is None:
        return {}
    if not isinstance(pipe.video_processor, pictures.OfficialVideoProcessor):
        last = None if request.last_image is None else Image.fromarray(request.last_image.numpy())
        return {"image": Image.fromarray(request.image.numpy()), "last_image": last}
    first = pictures.unit_image(request.image)
    if request.last_image is None:
        return {"image": first}
    return {"image": first, "last_image": pictures.match_last_image(first, pictures.unit_image(request.last_image))}


def condition_latents(pipe: WanImageToVideoPipeline, request: Request) -> Tensor:
    """The 20 condition channels, mask first `(b, 20, t, h, w)`, by the library's `prepare_latents`."""
    factor = pipe.vae_scale_factor_spatial
    height, width = request.noise.shape[-2] * factor, request.noise.shape[-1] * factor
    prepared = {
        name: pipe.video_processor.preprocess(picture, height=height, width=width)
        for name, picture in condition_images(pipe, request).items()
        if picture is not None
    }
    frames = (request.noise.shape[-3] - 1) * pipe.vae_scale_factor_temporal + 1
    return pipe.prepare_latents(
        prepared["image"],
        1,
        height=height,
        width=width,
        num_frames=frames,
        dtype=torch.float32,
        device=torch.device("cpu"),
        latents=request.noise[None],
        last_image=prepared.get("last_image"),
    )[1]


def image_features(pipe: WanImageToVideoPipeline, request: Request) -> Tensor:
    """CLIP features `(n_images, tokens, dim)`: the penultimate hidden state, by the library's `encode_image`."""
    found = [picture for picture in condition_images(pipe, request).values() if picture is not None]
    return pipe.encode_image(found, torch.device("cpu"))
