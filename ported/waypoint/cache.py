"""Key/value cache of the Waypoint port: one ring of frames per layer plus a tail for the current frame (spec A6, B10).

Precision: keys (after norm and rotary) and values are held in the engine's dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import PortOptions, WaypointConfig


class LayerCache(nn.Module):
    """Ring of `window` frames and a tail of one, T tokens each.

    kv [2, B, Hk, L + T, d]: keys at 0, values at 1; written bool [L + T]; L = history_length = window * T. A dilated
    layer keeps every dilation-th frame and uses the first window / dilation places of its ring only.
    """

    kv: Tensor
    written: Tensor

    def __init__(
        self,
        window: int,
        dilation: int,
        tokens: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.dilation = dilation
        self.num_buckets = window // dilation
        self.tokens = tokens
        self.history_length = window * tokens
        self.floor_bucket = False
        total = self.history_length + tokens
        self.register_buffer("kv", torch.empty(2, 1, kv_heads, total, head_dim, dtype=dtype, device=device), False)
        self.register_buffer("written", torch.empty(total, dtype=torch.bool, device=device), False)
        self.reset()

    def reset(self) -> None:
        """Empty the ring; the tail always counts as written."""
        self.kv.zero_()
        self.written.zero_()
        self.written[self.tail()] = True

    def tail(self) -> slice:
        return slice(self.history_length, self.history_length + self.tokens)

    def bucket(self, frame_t: int) -> int:
        """Place in the ring of a frame: ceil(frame_t / dilation) modulo the number of places."""
        rounded = frame_t // self.dilation if self.floor_bucket else -(-frame_t // self.dilation)
        return rounded % self.num_buckets

    def ring(self, frame_t: int) -> slice:
        start = self.bucket(frame_t) * self.tokens
        return slice(start, start + self.tokens)

    def write_step(self, frame_t: int) -> bool:
        """Whether this frame is one that the layer keeps."""
        return frame_t % self.dilation == 0

    def visible(self, frame_t: int) -> Tensor:
        """Tokens that frame_t may attend to, bool [L + T]; the entry that it is about to replace is hidden."""
        keep = self.written.clone()
        if self.write_step(frame_t):
            keep[self.ring(frame_t)] = False
        return keep

    def write(self, k: Tensor, v: Tensor, where: slice) -> None:
        self.kv[0, :, :, where] = k
        self.kv[1, :, :, where] = v

    def upsert(self, k: Tensor, v: Tensor, frame_t: int, frozen: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Put k, v [B, Hk, T, d] of frame_t in the tail, and in the ring unless frozen; return buffers and mask."""
        self.write(k, v, self.tail())
        keep = self.visible(frame_t)
        if not frozen and self.write_step(frame_t):
            self.write(k, v, self.ring(frame_t))
            self.written[self.ring(frame_t)] = True
        return self.kv[0], self.kv[1], keep.view(1, 1, 1, -1)


class WaypointKVCache(nn.Module):
    """The layers' caches and the flag that keeps denoise passes from writing history."""

    def __init__(
        self,
        config: WaypointConfig,
        options: PortOptions,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        shape = (config.tokens_per_frame, config.kv_heads, config.head_dim)
        self.layers = nn.ModuleList(
            LayerCache(*config.window(layer), *shape, dtype=dtype, device=device) for layer in range(config.n_layers)
        )
        for cache in self.layers:
            cache.floor_bucket = options.cache_bucket == "floor"
        self.freezes = options.cache_freezes
        self.frozen = True

    def reset(self) -> None:
        for cache in self.layers:
            cache.reset()
        self.frozen = True

    def upsert(self, k: Tensor, v: Tensor, frame_t: int, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """k, v [B, Hk, T, d] -> key, value [B, Hk, L + T, d] and keep bool [1, 1, 1, L + T], True = attended.

        Key and value are views of the layer's buffers, which later calls write into.
        """
        return self.layers[layer].upsert(k, v, frame_t, self.frozen and self.freezes)
