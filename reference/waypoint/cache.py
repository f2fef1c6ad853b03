"""Ring KV cache with local and dilated global layers (spec waypoint, section 6).

Buffer of a layer: L = window * T ring tokens, then T tail tokens that always hold the current frame. A layer with
dilation D keeps only every D-th frame and uses the first window/D slots of its ring; the rest is never written (as in
the original).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reference.waypoint.config import Config
from reference.waypoint.rope import PositionIds


class LayerKVCache(nn.Module):
    """Hold one layer's keys (after norm and rotary) and values.

    Fields: `kv` [2, 1, Hk, L+T, d], index 0 keys; `written` bool [L+T], ring False and tail True at the start.
    """

    def __init__(
        self,
        tokens_per_frame: int,
        window: int,
        dilation: int,
        n_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if window % dilation:
            raise ValueError(f"dilation {dilation} does not divide the window of {window} frames")
        self.tokens_per_frame, self.dilation = tokens_per_frame, dilation
        self.ring_tokens = window * tokens_per_frame  # L
        self.num_buckets = window // dilation
        size = self.ring_tokens + tokens_per_frame
        self.register_buffer("kv", torch.zeros(2, 1, n_kv_heads, size, head_dim, dtype=dtype, device=device), False)
        self.register_buffer("written", torch.zeros(size, dtype=torch.bool, device=device), False)
        self.reset()

    def reset(self) -> None:
        """Forget everything: zero the buffer, mark only the tail as written."""
        self.kv.zero_()
        self.written.zero_()
        self.written[self.ring_tokens :] = True

    def slot(self, frame: int) -> int:
        """Return the ring slot of a frame: ceil(frame / dilation) mod buckets."""
        return -(-frame // self.dilation) % self.num_buckets

    def upsert(self, k: Tensor, v: Tensor, frame: int, frozen: bool) -> tuple[Tensor, Tensor]:
        """Show the current frame, k and v [1, Hk, T, d], and store it unless frozen.

        Returns the whole buffer `kv` and the mask `keep` bool [L+T] of what the frame may see. `keep` is taken before
        the write, so the frame is seen once, through the tail, and the entry that it replaces is already hidden.
        """
        if frame < 0:
            raise ValueError(f"frame index must not be negative, got {frame}")
        start = self.slot(frame) * self.tokens_per_frame
        ring = slice(start, start + self.tokens_per_frame)
        tail = slice(self.ring_tokens, None)
        write_step = frame % self.dilation == 0

        current = torch.stack([k, v]).to(self.kv.dtype)
        self.kv[..., tail, :] = current
        keep = self.written.clone()
        if write_step:
            keep[ring] = False
        if not frozen:
            destination = ring if write_step else tail
            self.kv[..., destination, :] = current
            self.written[destination] = True
        return self.kv, keep


class StaticKVCache(nn.Module):
    """Hold one `LayerKVCache` a layer in `layers`, and the flag `frozen` (initially True) that all share."""

    def __init__(
        self, config: Config, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.frozen = True
        self.layers = nn.ModuleList()
        for i in range(config.n_layers):
            window, dilation = (
                (config.global_window, config.global_pinned_dilation)
                if config.is_global(i)
                else (config.local_window, 1)
            )
            self.layers.append(
                LayerKVCache(
                    config.tokens_per_frame, window, dilation, config.n_kv_heads, config.head_dim, dtype, device
                )
            )

    def set_frozen(self, frozen: bool) -> None:
        """Forbid (denoise passes) or allow (cache pass) storing."""
        self.frozen = frozen

    def reset(self) -> None:
        """Empty every layer and freeze again."""
        for layer in self.layers:
            layer.reset()
        self.set_frozen(True)

    def upsert(self, k: Tensor, v: Tensor, pos_ids: PositionIds, layer: int) -> tuple[Tensor, Tensor]:
        """Pass the current frame through one layer's cache; see `LayerKVCache.upsert`."""
        frame = int(pos_ids.t.flatten()[0])  # constant within the frame
        return self.layers[layer].upsert(k, v, frame, self.frozen)
