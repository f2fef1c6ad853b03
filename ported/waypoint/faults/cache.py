"""Faults of the key/value cache and of time (spec C14)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..cache import LayerCache
from ..pipeline import WaypointPipeline
from .registry import PortFault, fault, rebind

FIFO_FRAMES = 64


class FlatFifoLayer(nn.Module):
    """The cache of the early ports: one list of frames, oldest first, all of them visible (spec B12, variant 2).

    kv [2, B, Hk, (capacity + 1) T, d], `end` tokens of history in front, then the current frame.
    """

    kv: Tensor
    written: Tensor

    def __init__(self, layer: LayerCache, capacity: int, frozen_ignored: bool = False) -> None:
        super().__init__()
        self.tokens = layer.tokens
        self.history_length = capacity * self.tokens
        self.frozen_ignored = frozen_ignored
        places = self.history_length + self.tokens
        kv = layer.kv.new_zeros(*layer.kv.shape[:3], places, layer.kv.shape[-1])
        self.register_buffer("kv", kv, persistent=False)
        self.register_buffer("written", layer.written.new_zeros(places), persistent=False)
        self.end = 0

    def reset(self) -> None:
        self.kv.zero_()
        self.written.zero_()
        self.end = 0

    def evict(self) -> None:
        """Shift everything left by one frame."""
        self.kv[:, :, :, : -self.tokens] = self.kv[:, :, :, self.tokens :].clone()
        self.end -= self.tokens

    def upsert(self, k: Tensor, v: Tensor, frame_t: int, frozen: bool) -> tuple[Tensor, Tensor, Tensor]:
        if self.end > self.history_length:
            self.evict()
        here = slice(self.end, self.end + self.tokens)
        self.kv[0, :, :, here], self.kv[1, :, :, here] = k, v
        key, value = self.kv[0, :, :, : here.stop], self.kv[1, :, :, : here.stop]
        keep = torch.ones(1, 1, 1, here.stop, dtype=torch.bool, device=k.device)
        if not frozen or self.frozen_ignored:
            self.end, self.written[here] = here.stop, True
        return key, value, keep


def cache_unused(port: WaypointPipeline) -> None:
    """There is no cache: a frame attends to itself only, and the cache pass is never made."""

    def upsert(self, k, v, frame_t, frozen):
        return k, v, torch.ones(1, 1, 1, k.shape[2], dtype=torch.bool, device=k.device)

    for layer in port.kv_cache.layers:
        rebind(layer, "upsert", upsert)
    cache_pass_skipped(port)


def cache_flat_fifo(port: WaypointPipeline) -> None:
    """Every layer sees all of the last 64 frames: no local window, no dilation."""
    port.kv_cache.layers = nn.ModuleList(FlatFifoLayer(layer, FIFO_FRAMES) for layer in port.kv_cache.layers)


def cache_written_while_denoising(port: WaypointPipeline) -> None:
    """The first-in-first-out cache is appended to by every denoise pass too."""
    layers = port.kv_cache.layers
    port.kv_cache.layers = nn.ModuleList(FlatFifoLayer(layer, FIFO_FRAMES, frozen_ignored=True) for layer in layers)


def cache_overlapping_shift(port: WaypointPipeline) -> None:
    """Local layers evict by shifting in place token by token from the end, so that the copy reads what it wrote."""

    def evict(self):
        for token in reversed(range(self.history_length)):
            self.kv[:, :, :, token] = self.kv[:, :, :, token + self.tokens]
        self.end -= self.tokens

    for i, layer in enumerate(port.kv_cache.layers):
        if layer.dilation == 1:
            # A list of window - 1 frames sees what the ring of this window sees, as long as eviction is right.
            fifo = FlatFifoLayer(layer, layer.num_buckets - 1)
            rebind(fifo, "evict", evict)
            port.kv_cache.layers[i] = fifo


def cache_pass_skipped(port: WaypointPipeline) -> None:
    """The finished frame is never passed through the model for the cache."""

    def cache_pass(self, x, timestamp, controls):
        return None

    rebind(port.denoising, "cache_pass", cache_pass)


def cache_pass_frozen(port: WaypointPipeline) -> None:
    """The cache stays frozen in the cache pass."""

    def cache_pass(self, x, timestamp, controls):
        self.kv_cache.frozen = True
        self.predict(x, self.cache_sigma(), timestamp, controls)

    rebind(port.denoising, "cache_pass", cache_pass)


def cache_pass_last_sigma(port: WaypointPipeline) -> None:
    """The cache pass is conditioned on the last denoise step's sigma instead of 0."""

    def cache_sigma(self):
        return self.sigmas[-2].view(1, 1)

    rebind(port.denoising, "cache_sigma", cache_sigma)


def cache_pass_on_noise(port: WaypointPipeline) -> None:
    """The cache pass is made on the initial noise instead of the finished latent."""

    def generate_frame(self, i, controls, noise):
        x = noisy = self.initial_latent(i, noise)
        timestamp, inputs = self.timestamp(), self.controls_at(i, controls)
        x = self.denoise_frame(x, timestamp, inputs)
        self.cache_pass(noisy, timestamp, inputs)
        self.advance()
        return x

    rebind(port.denoising, "generate_frame", generate_frame)


def timestamp_advanced_early(port: WaypointPipeline) -> None:
    """The frame index advances between the denoise passes and the cache pass."""

    def generate_frame(self, i, controls, noise):
        x = self.initial_latent(i, noise)
        inputs = self.controls_at(i, controls)
        x = self.denoise_frame(x, self.timestamp(), inputs)
        self.advance()
        self.cache_pass(x, self.timestamp(), inputs)
        return x

    rebind(port.denoising, "generate_frame", generate_frame)


def timestamp_stuck(port: WaypointPipeline) -> None:
    """The frame index never advances."""

    def advance(self):
        return None

    rebind(port.denoising, "advance", advance)


def timestamp_from_one(port: WaypointPipeline) -> None:
    """The first frame has index 1."""

    def timestamp(self):
        return torch.full((1, 1), self.frame_index + 1, dtype=torch.int64, device=self.device)

    rebind(port.denoising, "timestamp", timestamp)


def cache_overwritten_visible(port: WaypointPipeline) -> None:
    """The ring entry that the frame is about to replace stays visible to it."""

    def visible(self, frame_t):
        return self.written.clone()

    for layer in port.kv_cache.layers:
        rebind(layer, "visible", visible)


def cache_dilation_ignored(port: WaypointPipeline) -> None:
    """Global layers keep every frame instead of every dilation-th."""
    for layer in port.kv_cache.layers:
        layer.num_buckets *= layer.dilation
        layer.dilation = 1


def cache_buckets_undivided(port: WaypointPipeline) -> None:
    """The number of places in a dilated ring is the window, not the window over the dilation."""
    for layer in port.kv_cache.layers:
        layer.num_buckets *= layer.dilation


def cache_layers_swapped(port: WaypointPipeline) -> None:
    """Global layers get the local window and local layers the global one."""
    config = port.model.config
    windows = {True: (config.local_window, 1), False: (config.global_window, config.global_pinned_dilation)}
    shape = (config.tokens_per_frame, config.kv_heads, config.head_dim)
    for i, layer in enumerate(port.kv_cache.layers):
        window = windows[config.is_global(i)]
        port.kv_cache.layers[i] = LayerCache(*window, *shape, dtype=layer.kv.dtype, device=layer.kv.device)


def cache_unwritten_attended(port: WaypointPipeline) -> None:
    """The mask is dropped: places of the ring that nothing was written to are attended as zeros."""

    def visible(self, frame_t):
        return torch.ones_like(self.written)

    for layer in port.kv_cache.layers:
        rebind(layer, "visible", visible)


FAULTS: list[PortFault] = [
    fault(cache_unused, "K1", "K3", frames=2),
    fault(cache_flat_fifo, "K2", "A11", frames=3),
    fault(cache_written_while_denoising, "K3", "K3"),
    fault(cache_pass_skipped, "K4", "K3", frames=2),
    fault(cache_pass_frozen, "K4", "K3", frames=2),
    fault(cache_pass_last_sigma, "K5", "K2"),
    fault(cache_pass_on_noise, "K6", "K2"),
    fault(timestamp_advanced_early, "K7", "K1"),
    fault(timestamp_stuck, "K8", "P2", frames=2),
    fault(timestamp_from_one, "K9", "P2"),
    fault(cache_overwritten_visible, "K10", "A11", wraps="local"),
    fault(cache_dilation_ignored, "K11", "A11", frames=3),
    fault(cache_buckets_undivided, "K12", "K6", wraps="global"),
    fault(cache_layers_swapped, "K13", "A11", frames=3),
    fault(cache_unwritten_attended, "K14", "A2"),
    fault(cache_overlapping_shift, "K15", "K6", wraps="local"),
]
