"""The causal 3D VAE: chunked encode and decode (spec A10). Precision: float32 throughout.

Encoding T frames runs in chunks of 1, 4, 4, …; decoding in chunks of one latent frame. What a chunk needs from the one
before it is in a `FeatureCache` that lives for one encode or decode only.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from .config import VAEConfig
from .vae_cache import FeatureCache
from .vae_layers import AttentionBlock, CausalConv3d, Resample, ResidualBlock, RMSNorm, cached_conv


class Encoder(nn.Module):
    """Video chunk to moments: `(b, 3, t, h, w)` -> `(b, 2·z_dim, t', h/8, w/8)`."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        dims = [config.dim * m for m in (1, *config.dim_mult)]
        self.conv1 = CausalConv3d(3, dims[0], 3, padding=1)
        layers: list[nn.Module] = []
        for level, (in_dim, out_dim) in enumerate(pairwise(dims)):
            layers += [ResidualBlock(in_dim if i == 0 else out_dim, out_dim) for i in range(config.num_res_blocks)]
            if level < len(config.temperal_downsample):
                layers.append(
                    Resample(out_dim, "downsample3d" if config.temperal_downsample[level] else "downsample2d")
                )
        self.downsamples = nn.Sequential(*layers)
        self.middle = middle(out_dim)
        self.head = nn.Sequential(RMSNorm(out_dim), nn.SiLU(), CausalConv3d(out_dim, 2 * config.z_dim, 3, padding=1))

    def forward(self, x: Tensor, cache: FeatureCache) -> Tensor:
        x = cached_conv(self.conv1, x, cache)
        for layer in self.downsamples:
            x = layer(x, cache)
        x = run_middle(self.middle, x, cache)
        return run_head(self.head, x, cache)


class Decoder(nn.Module):
    """Latent frame to video chunk: `(b, z_dim, 1, h, w)` -> `(b, 3, 1 or 4, 8h, 8w)`."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        dims = [config.dim * m for m in (config.dim_mult[-1], *reversed(config.dim_mult))]
        time_up = config.temperal_downsample[::-1]
        self.conv1 = CausalConv3d(config.z_dim, dims[0], 3, padding=1)
        self.middle = middle(dims[0])
        layers: list[nn.Module] = []
        for level, (in_dim, out_dim) in enumerate(pairwise(dims)):
            if level > 0:
                in_dim //= 2  # upsampling halved the channels
            layers += [ResidualBlock(in_dim if i == 0 else out_dim, out_dim) for i in range(config.num_res_blocks + 1)]
            if level < len(time_up):
                layers.append(Resample(out_dim, "upsample3d" if time_up[level] else "upsample2d"))
        self.upsamples = nn.Sequential(*layers)
        self.head = nn.Sequential(RMSNorm(out_dim), nn.SiLU(), CausalConv3d(out_dim, 3, 3, padding=1))

    def forward(self, x: Tensor, cache: FeatureCache) -> Tensor:
        x = cached_conv(self.conv1, x, cache)
        x = run_middle(self.middle, x, cache)
        for layer in self.upsamples:
            x = layer(x, cache)
        return run_head(self.head, x, cache)


def middle(dim: int) -> nn.Sequential:
    """Residual block, attention, residual block."""
    return nn.Sequential(ResidualBlock(dim, dim), AttentionBlock(dim), ResidualBlock(dim, dim))


def run_middle(layers: nn.Sequential, x: Tensor, cache: FeatureCache) -> Tensor:
    """Run the middle; its attention never caches."""
    first, attention, last = layers
    return last(attention(first(x, cache)), cache)


def run_head(layers: nn.Sequential, x: Tensor, cache: FeatureCache) -> Tensor:
    """Run norm, SiLU and the last convolution."""
    norm, activation, conv = layers
    return cached_conv(conv, activation(norm(x)), cache)


def causal_convs(network: nn.Module) -> list[str]:
    """Names of all causal convolutions in execution order: encoder 26, decoder 33."""
    return [name for name, module in network.named_modules() if isinstance(module, CausalConv3d)]


def slot_names(network: nn.Module) -> list[str]:
    """Name the cache slots of an encoder or decoder, in order (24 and 32): every causal convolution but shortcuts."""
    return [name for name in causal_convs(network) if not name.endswith("shortcut")]


def chunk_bounds(frames: int) -> list[tuple[int, int]]:
    """Frame ranges of the encoder chunks, `[0:1], [1:5], [5:9], …`; an unfinished last chunk is dropped silently."""
    return [(0, 1)] + [(4 * i - 3, 4 * i + 1) for i in range(1, 1 + (frames - 1) // 4)]


class WanVAE(nn.Module):
    """The VAE with its wrapper: latents are normalised by channel, decoded video is clamped.

    mean and 1/std are not part of the official state dict (194 tensors); they are buffers that are not saved.
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.conv1 = CausalConv3d(2 * config.z_dim, 2 * config.z_dim, 1)
        self.conv2 = CausalConv3d(config.z_dim, config.z_dim, 1)
        self.decoder = Decoder(config)
        std = torch.tensor(config.latents_std, dtype=torch.float32, device="cpu")
        mean = torch.tensor(config.latents_mean, dtype=torch.float32, device="cpu")
        self.register_buffer("latent_mean", mean.view(-1, 1, 1, 1), persistent=False)
        self.register_buffer("latent_inverse_std", (1.0 / std).view(-1, 1, 1, 1), persistent=False)

    def encode_chunk(self, x: Tensor, cache: FeatureCache) -> Tensor:
        """Encode one chunk, `(b, 3, 1 or 4, h, w)` -> `(b, 2·z_dim, 1, h/8, w/8)`; fills `cache`."""
        cache.restart()
        return self.encoder(x, cache)

    def decode_chunk(self, z: Tensor, cache: FeatureCache) -> Tensor:
        """Decode one latent frame, `(b, z_dim, 1, h, w)` -> `(b, 3, 1 or 4, 8h, 8w)`; fills `cache`."""
        cache.restart()
        return self.decoder(z, cache)

    def encode_moments(self, video: Tensor) -> Tensor:
        """Encode `(b, 3, t, h, w)` in [−1, 1] -> `(b, 2·z_dim, 1+⌊(t−1)/4⌋, h/8, w/8)`: means, then log-variances."""
        cache = FeatureCache(len(causal_convs(self.encoder)))
        chunks = [self.encode_chunk(video[:, :, a:b], cache) for a, b in chunk_bounds(video.shape[2])]
        return self.conv1(torch.cat(chunks, dim=2))

    def encode(self, video: Tensor) -> Tensor:
        """Encode `(3, t, h, w)` in [−1, 1] -> normalised latent means `(z_dim, 1+⌊(t−1)/4⌋, h/8, w/8)`; no sampling."""
        mean, _log_variance = self.encode_moments(video[None])[0].chunk(2, dim=0)
        return self.normalise(mean)

    def decode_unclamped(self, latent: Tensor) -> Tensor:
        """Decode normalised `(z_dim, t, h, w)` -> `(3, 1+4(t−1), 8h, 8w)`, not limited to [−1, 1]."""
        z = self.conv2(self.denormalise(latent)[None])
        cache = FeatureCache(len(causal_convs(self.decoder)))
        chunks = [self.decode_chunk(z[:, :, i : i + 1], cache) for i in range(z.shape[2])]
        return torch.cat(chunks, dim=2)[0]

    def decode(self, latent: Tensor) -> Tensor:
        """Decode normalised `(z_dim, t, h, w)` -> `(3, 1+4(t−1), 8h, 8w)`, clamped to [−1, 1]."""
        return self.decode_unclamped(latent).clamp(-1, 1)

    def normalise(self, mean: Tensor) -> Tensor:
        """`(μ − mean) · (1/std)` per channel of `(z_dim, t, h, w)`."""
        return (mean - self.latent_mean) * self.latent_inverse_std

    def denormalise(self, latent: Tensor) -> Tensor:
        """`z / (1/std) + mean` per channel of `(z_dim, t, h, w)`."""
        return latent / self.latent_inverse_std + self.latent_mean
