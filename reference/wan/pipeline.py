"""The t2v, i2v and flf2v pipelines with classifier-free guidance (spec A14).

Precision: latents and solver float32. The official run puts the transformer under autocast(bf16) with float32 weights:
`autocast=torch.bfloat16`; with `autocast=None` it computes in the dtype of its weights. The VAE is always outside.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from . import conditioning, solvers
from .clip import CLIPVision
from .config import ModelType
from .dit import WanDiT
from .vae import WanVAE


@dataclass(frozen=True)
class Sampling:
    """How to run the loop."""

    steps: int
    shift: float
    guide_scale: float
    solver: solvers.SolverName = "unipc"
    autocast: torch.dtype | None = None


@dataclass(frozen=True)
class Models:
    """The networks; `clip` is None for t2v."""

    dit: WanDiT
    vae: WanVAE
    clip: CLIPVision | None = None


@dataclass(frozen=True)
class Prompts:
    """Encoded texts, `(L ≤ 512, text_dim)` each."""

    positive: Tensor
    negative: Tensor


@dataclass(frozen=True)
class ImageCondition:
    """What i2v and flf2v give to every pass of the transformer."""

    clip_fea: Tensor  # (1 or 2, clip_tokens, clip_dim)
    y: Tensor  # (20, T_lat, h, w)


@dataclass(frozen=True)
class Generated:
    """The last latent `(16, T_lat, h, w)` and the decoded video `(3, 4(T_lat−1)+1, 8h, 8w)` in [−1, 1]."""

    latent: Tensor
    video: Tensor


@dataclass(frozen=True)
class GuidedModel:
    """The transformer with everything that stays the same over the steps."""

    dit: WanDiT
    prompts: Prompts
    seq_len: int
    guide_scale: float
    image: ImageCondition | None = None
    autocast: torch.dtype | None = None

    def predict(self, latent: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        """One pass: latent and velocity `(16, T_lat, h, w)`, timestep a scalar tensor, context `(L, text_dim)`."""
        image = {} if self.image is None else {"clip_fea": self.image.clip_fea, "y": [self.image.y]}
        device = latent.device
        with torch.autocast(device.type, dtype=self.autocast or torch.bfloat16, enabled=self.autocast is not None):
            return self.dit([latent], timestep.to(device)[None], [context], self.seq_len, **image)[0]

    def velocity(self, latent: Tensor, timestep: Tensor) -> Tensor:
        """Two separate passes, conditional first, and their guided combination; also at scale 1."""
        v_cond = self.predict(latent, timestep, self.prompts.positive)
        v_uncond = self.predict(latent, timestep, self.prompts.negative)
        return guide(v_cond, v_uncond, self.guide_scale)


def guide(v_cond: Tensor, v_uncond: Tensor, scale: float) -> Tensor:
    """`v = v_u + g·(v_c − v_u)`."""
    return v_uncond + scale * (v_cond - v_uncond)


def default_sampling(model_type: ModelType, size: tuple[int, int] | None = None) -> Sampling:
    """Official function defaults; i2v at 832x480 or 480x832 (`size` = width, height) uses shift 3."""
    if model_type == "t2v":
        return Sampling(steps=50, shift=5.0, guide_scale=5.0)
    if model_type == "i2v":
        return Sampling(steps=40, shift=3.0 if size in ((832, 480), (480, 832)) else 5.0, guide_scale=5.0)
    return Sampling(steps=50, shift=16.0, guide_scale=5.5)


def draw_noise(shape: tuple[int, ...], seed: int, device: torch.device) -> Tensor:
    """Standard normal float32 from a generator on the compute device; CUDA and CPU streams differ for a seed."""
    generator = torch.Generator(device=device).manual_seed(seed)
    return torch.randn(shape, dtype=torch.float32, generator=generator, device=device)


def denoise_step(model: GuidedModel, solver: solvers.Solver, latent: Tensor, timestep: Tensor) -> Tensor:
    """One step of the loop: `(16, T_lat, h, w)` -> the latent at the next sigma."""
    velocity = model.velocity(latent, timestep)
    return solver.step(velocity[None], timestep, latent[None])[0]


@torch.no_grad()
def denoise(model: GuidedModel, noise: Tensor, sampling: Sampling) -> Tensor:
    """Run the loop from noise `(16, T_lat, h, w)` to the last latent."""
    solver = solvers.make_solver(sampling.solver, sampling.steps, sampling.shift)
    latent = noise
    for timestep in solver.timesteps:
        latent = denoise_step(model, solver, latent, timestep)
    return latent


@torch.no_grad()
def decode(vae: WanVAE, latent: Tensor) -> Tensor:
    """Latent `(16, T_lat, h, w)` -> video `(3, T, 8h, 8w)`, clamped to [−1, 1]."""
    return vae.decode(latent)


def to_uint8(video: Tensor) -> Tensor:
    """`truncate((x+1)/2·255)`, uint8 of the same shape."""
    return ((video + 1) / 2 * 255).to(torch.uint8)


def generate(
    models: Models,
    prompts: Prompts,
    shape: tuple[int, int, int, int],
    sampling: Sampling,
    noise: Tensor | int,
    image: ImageCondition | None = None,
) -> Generated:
    """Noise, loop, decode. `noise` is the tensor of `shape` itself or the seed to draw it from."""
    if isinstance(noise, int):
        noise = draw_noise(shape, noise, models.dit.patch_embedding.weight.device)
    if tuple(noise.shape) != shape:
        raise ValueError(f"noise has shape {tuple(noise.shape)}, this video needs {shape}")
    seq_len = conditioning.sequence_length(shape)
    model = GuidedModel(models.dit, prompts, seq_len, sampling.guide_scale, image, sampling.autocast)
    latent = denoise(model, noise, sampling)
    return Generated(latent, decode(models.vae, latent))


def t2v(
    models: Models, prompts: Prompts, size: tuple[int, int], frames: int, sampling: Sampling, noise: Tensor | int
) -> Generated:
    """Text to video; `size` is (width, height) in pixels, `frames` 4n+1."""
    return generate(models, prompts, conditioning.t2v_latent_shape(size, frames), sampling, noise)


@torch.no_grad()
def encode_images(
    models: Models, mask: Tensor, first: Tensor, last: Tensor | None, frames: int, shape: tuple[int, int, int, int]
) -> ImageCondition:
    """CLIP features of the images as they are, and y from one VAE encode of the whole condition video."""
    if models.clip is None:
        raise ValueError("i2v and flf2v need the CLIP vision tower")
    images = [first] if last is None else [first, last]
    _, _, h, w = shape
    video = conditioning.condition_video(
        first, last, frames, h * conditioning.SPACE_STRIDE, w * conditioning.SPACE_STRIDE
    )
    y = conditioning.condition_tensor(mask, models.vae.encode(video.to(models.vae.conv1.weight.device)))
    return ImageCondition(models.clip.encode_images(images), y)


def i2v(
    models: Models,
    prompts: Prompts,
    image: Tensor,
    max_area: int,
    frames: int,
    sampling: Sampling,
    noise: Tensor | int,
) -> Generated:
    """Image to video; `image` is `(3, h, w)` in [−1, 1] and becomes the first frame."""
    shape = conditioning.image_latent_shape(tuple(image.shape[1:]), max_area, frames)
    mask = conditioning.i2v_mask(frames, *shape[2:])
    condition = encode_images(models, mask, image, None, frames, shape)
    return generate(models, prompts, shape, sampling, noise, condition)


def flf2v(
    models: Models,
    prompts: Prompts,
    first: Tensor,
    last: Tensor,
    max_area: int,
    frames: int,
    sampling: Sampling,
    noise: Tensor | int,
    fixed_frames: bool = False,
) -> Generated:
    """First and last frame to video; images are `(3, h, w)` in [−1, 1], the first one sets the size.

    Only 81 frames work unless `fixed_frames` (quirk `flf2v-81`); a last image of another size is cropped oddly
    (quirk `flf2v-crop`), and the cropped one also feeds CLIP.
    """
    shape = conditioning.image_latent_shape(tuple(first.shape[1:]), max_area, frames)
    mask = conditioning.flf2v_mask(frames, *shape[2:], fixed_frames=fixed_frames)
    last = conditioning.match_last_image(first, last)
    condition = encode_images(models, mask, first, last, frames, shape)
    return generate(models, prompts, shape, sampling, noise, condition)
