"""Session and sampler (spec waypoint, section 7).

One frame: N Euler steps with the cache frozen, then one forward at sigma 0 on the clean latent that stores its keys and
values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from reference.waypoint.autoencoder import Autoencoder
from reference.waypoint.cache import StaticKVCache
from reference.waypoint.model import WorldModel

DEFAULT_PROMPT = "An explorable world"


@dataclass(frozen=True)
class Controls:
    """Hold a frame's controls as a user gives them; the default is idle."""

    button: frozenset[int] = frozenset()  # ids of the pressed buttons
    mouse: tuple[float, float] = (0.0, 0.0)  # raw velocity
    scroll_wheel: float = 0.0  # only its sign reaches the model


@dataclass(frozen=True)
class ModelInputs:
    """Hold what all forwards of one frame share; shapes as in `WorldModel.forward`."""

    frame_timestamp: Tensor
    prompt_emb: Tensor | None
    prompt_pad_mask: Tensor | None
    mouse: Tensor
    button: Tensor
    scroll: Tensor


@dataclass(frozen=True)
class Frame:
    """Hold a generated frame: latent [1,1,C,h,w], and image uint8 [360,640,3] when the engine has an autoencoder."""

    latent: Tensor
    image: Tensor | None


def euler_step(x: Tensor, v: Tensor, sigma: Tensor, next_sigma: Tensor) -> Tensor:
    """Advance x along the velocity: x + (next_sigma - sigma) * v, all in the engine dtype."""
    return x + (next_sigma - sigma) * v


class Engine:
    """Generate frames one after the other from controls and a prompt.

    State: `frame_ts` int64 [1,1], `kv_cache`, `prompt_emb`, `prompt_pad_mask`. The engine dtype is the dtype of the
    model's weights.
    """

    def __init__(
        self,
        model: WorldModel,
        autoencoder: Autoencoder | None = None,
        prompt_encoder: Callable[[str], tuple[Tensor, Tensor]] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self.model, self.config = model, model.config
        self.autoencoder, self.prompt_encoder, self.generator = autoencoder, prompt_encoder, generator
        self.dtype, self.device = model.patchify.weight.dtype, model.patchify.weight.device
        self.kv_cache = StaticKVCache(self.config, self.dtype, self.device)
        self.frame_ts = torch.zeros(1, 1, dtype=torch.int64, device=self.device)
        self.prompt_emb: Tensor | None = None
        self.prompt_pad_mask: Tensor | None = None

    def reset(self) -> None:
        """Start over: empty cache, frame 0. The prompt stays."""
        self.kv_cache.reset()
        self.frame_ts.zero_()

    def set_prompt(self, text: str = DEFAULT_PROMPT) -> None:
        """Encode and set the prompt for the next frames; allowed between any two frames."""
        if self.prompt_encoder is None:
            raise ValueError("this engine has no prompt encoder: use set_prompt_embeds")
        self.set_prompt_embeds(*self.prompt_encoder(text))

    def set_prompt_embeds(self, prompt_emb: Tensor, prompt_pad_mask: Tensor | None = None) -> None:
        """Set the encoded prompt [1,S,P], padded rows zero; pad mask bool [1,S], True on padding."""
        self.prompt_emb = prompt_emb.to(self.device, self.dtype)
        self.prompt_pad_mask = None if prompt_pad_mask is None else prompt_pad_mask.to(self.device)

    def prep_inputs(self, ctrl: Controls) -> ModelInputs:
        """Turn the controls into tensors, stamp the frame with the current index, and advance the index."""
        if self.config.prompt_conditioning is not None and self.prompt_emb is None:
            self.set_prompt()
        like = {"dtype": self.dtype, "device": self.device}
        button = torch.zeros(1, 1, self.config.n_buttons, **like)
        button[..., sorted(ctrl.button)] = 1.0
        inputs = ModelInputs(
            frame_timestamp=self.frame_ts.clone(),
            prompt_emb=self.prompt_emb,
            prompt_pad_mask=self.prompt_pad_mask,
            mouse=torch.tensor(ctrl.mouse, **like).view(1, 1, 2),
            button=button,
            scroll=torch.tensor(ctrl.scroll_wheel, **like).sign().view(1, 1, 1),
        )
        self.frame_ts += 1
        return inputs

    def velocity(self, x: Tensor, sigma: Tensor, inputs: ModelInputs) -> Tensor:
        """Run the model once at noise level sigma (scalar tensor)."""
        return self.model(x, sigma.view(1, 1), **vars(inputs), kv_cache=self.kv_cache)

    def denoise_step(self, x: Tensor, sigma: Tensor, next_sigma: Tensor, inputs: ModelInputs) -> Tensor:
        """Take one Euler step from sigma to next_sigma."""
        v = self.velocity(x, sigma, inputs)
        return euler_step(x, v, sigma, next_sigma)

    def denoise_pass(self, x: Tensor, inputs: ModelInputs) -> Tensor:
        """Integrate over the schedule with the cache frozen: noise in, clean latent out."""
        self.kv_cache.set_frozen(True)
        sigmas = self.model.scheduler_sigmas
        for sigma, next_sigma in pairwise(sigmas):
            x = self.denoise_step(x, sigma, next_sigma, inputs)
        return x

    def cache_pass(self, x: Tensor, inputs: ModelInputs) -> None:
        """Store the clean latent's keys and values: one forward at sigma 0, output dropped.

        The cache stays unfrozen until the next denoise pass.
        """
        self.kv_cache.set_frozen(False)
        self.velocity(x, x.new_zeros(()), inputs)

    @torch.no_grad()
    def gen_frame(self, ctrl: Controls | None = None, noise: Tensor | None = None) -> Frame:
        """Generate the next frame from controls (None: idle) and noise [1,1,C,h,w] (None: drawn)."""
        x = self.draw_noise() if noise is None else noise.to(self.device, self.dtype)
        inputs = self.prep_inputs(ctrl or Controls())
        latent = self.denoise_pass(x, inputs)
        self.cache_pass(latent, inputs)
        return Frame(latent, None if self.autoencoder is None else self.decode(latent))

    @torch.no_grad()
    def append_frame(self, image: Tensor, ctrl: Controls | None = None) -> Tensor:
        """Take an image uint8 [H,W,C] as the next frame of the history; returns its latent."""
        return self.append_latent(self.encode(image), ctrl)

    @torch.no_grad()
    def append_latent(self, latent: Tensor, ctrl: Controls | None = None) -> Tensor:
        """Take a clean latent [1,C,h,w] as the next frame: cache pass only, the index advances."""
        x = latent.to(self.device, self.dtype).unsqueeze(1)
        self.cache_pass(x, self.prep_inputs(ctrl or Controls()))
        return x

    def draw_noise(self) -> Tensor:
        """Draw standard normal noise [1,1,C,h,w] in the engine dtype."""
        shape = (1, 1, *self.config.latent_shape)
        return torch.randn(shape, dtype=self.dtype, device=self.device, generator=self.generator)

    def encode(self, image: Tensor) -> Tensor:
        """Encode an image uint8 [H,W,C] to a latent [1,C,h,w] in the engine dtype."""
        return self.require_autoencoder().encode(image).to(self.dtype)

    def decode(self, latent: Tensor) -> Tensor:
        """Decode a latent [1,1,C,h,w] to an image uint8 [360,640,3]."""
        return self.require_autoencoder().decode(latent.squeeze(1))

    def require_autoencoder(self) -> Autoencoder:
        """Return the autoencoder or say that there is none."""
        if self.autoencoder is None:
            raise ValueError("this engine has no autoencoder: use append_latent and Frame.latent")
        return self.autoencoder
