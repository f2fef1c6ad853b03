"""The diffusion transformer of t2v, i2v and flf2v, with the official key names (spec A2-A4, A6, A7).

Precision under autocast(bf16) with float32 weights (spec A8): patches and text bf16; time, modulation and head float32;
the residual stream is bf16 before block 0 and float32 from the first gated add on; the output is float32.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from . import embeddings, rope
from .attention import CrossAttention, ImageCrossAttention, SelfAttention
from .config import DiTConfig
from .norms import LayerNorm
from .precision import Linear32


class Block(nn.Module):
    """Self attention, cross attention, feed-forward: `(b, s, d)` -> `(b, s, d)`."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        d, eps = config.dim, config.eps
        self.norm1 = LayerNorm(d, eps)
        self.self_attn = SelfAttention(config)
        self.norm3 = LayerNorm(d, eps, elementwise_affine=True)
        self.cross_attn = ImageCrossAttention(config) if config.has_image else CrossAttention(config)
        self.norm2 = LayerNorm(d, eps)
        self.ffn = nn.Sequential(
            nn.Linear(d, config.ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(config.ffn_dim, d)
        )
        self.modulation = nn.Parameter(torch.randn(1, 6, d) / d**0.5)

    def modulation_table(self, e0: Tensor) -> Tensor:
        """`modulation + e0`, float32 `(b, 6, d)`: shift, scale, gate of self attention, then of the feed-forward."""
        return self.modulation + e0

    def forward(
        self, x: Tensor, e0: Tensor, seq_lens: Tensor, grid_sizes: Tensor, freqs: Tensor, context: Tensor
    ) -> Tensor:
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = self.modulation_table(e0).chunk(6, dim=1)  # (b, 1, d)
        y = self.self_attn(self.norm1(x).float() * (1 + scale) + shift, seq_lens, grid_sizes, freqs)
        x = x + y * gate
        x = x + self.cross_attn(self.norm3(x), context)
        y = self.ffn(self.norm2(x).float() * (1 + ffn_scale) + ffn_shift)
        return x + y * ffn_gate


class Head(nn.Module):
    """Modulated norm and projection to patch values, a float32 region: `(b, s, d)` -> `(b, s, pt·ph·pw·out_dim)`."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        pt, ph, pw = config.patch_size
        self.norm = LayerNorm(config.dim, config.eps)
        self.head = Linear32(config.dim, pt * ph * pw * config.out_dim)
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)

    def modulation_table(self, e: Tensor) -> Tensor:
        """`modulation + e`, float32 `(b, 2, d)`: shift, scale. It takes e, not the projection of the blocks."""
        return self.modulation + e[:, None]

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        shift, scale = self.modulation_table(e).chunk(2, dim=1)
        return self.head(self.norm(x) * (1 + scale) + shift)


class WanDiT(nn.Module):
    """The official WanModel.

    `freqs` is a plain attribute, not a buffer, so that `.to(dtype)` never touches the complex128 table.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        patch = config.patch_size
        self.patch_embedding = nn.Conv3d(config.in_dim, config.dim, kernel_size=patch, stride=patch)
        self.text_embedding = embeddings.text_embedding(config)
        self.time_embedding = embeddings.time_embedding(config)
        self.time_projection = embeddings.time_projection(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.head = Head(config)
        self.img_emb = embeddings.ImageEmbedding(config) if config.has_image else None
        self.freqs = rope.table(config.head_dim)
        nn.init.zeros_(self.head.head.weight)  # as upstream: re-initialise before a parity test

    def embed_patches(self, x: list[Tensor], seq_len: int) -> tuple[Tensor, Tensor, Tensor]:
        """Cut samples `(c, f, h, w)` into patches and pad the tokens, not the video, with exact zeros.

        Returns the tokens `(b, seq_len, d)`, their numbers `(b,)` and their grids `(b, 3)`, both int64.

        Errors: ValueError when a sample has more than `seq_len` tokens.
        """
        patches = [self.patch_embedding(u[None]) for u in x]
        grid_sizes = torch.tensor([u.shape[2:] for u in patches], dtype=torch.long)
        seq_lens = grid_sizes.prod(dim=1)
        if int(seq_lens.max()) > seq_len:
            raise ValueError(f"samples of {seq_lens.tolist()} tokens do not fit into seq_len {seq_len}")
        tokens = [rearrange(u, "1 d f h w -> (f h w) d") for u in patches]
        padded = torch.stack([torch.cat([u, u.new_zeros(seq_len - u.shape[0], u.shape[1])]) for u in tokens])
        return padded, seq_lens, grid_sizes

    def embed_time(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Time steps `(b,)` -> float32 e `(b, d)` and e0 `(b, 6, d)`."""
        e = self.time_embedding(embeddings.sinusoid(self.config.freq_dim, t))
        return e, rearrange(self.time_projection(e), "b (six d) -> b six d", six=6)

    def embed_context(self, texts: list[Tensor], clip_fea: Tensor | None) -> Tensor:
        """Pad and project the texts, put the image tokens in front: `(b, [n_img +] 512, d)`.

        Texts are padded with zeros before the projection, so pad rows are a constant non-zero vector;
        nothing masks them.
        """
        context = self.text_embedding(embeddings.pad_texts(texts, self.config.text_len))
        if self.img_emb is None:
            return context
        return torch.cat([self.img_emb(clip_fea), context], dim=1)

    def unpatchify(self, rows: Tensor, grid_sizes: Tensor) -> list[Tensor]:
        """`(b, s, pt·ph·pw·c)` with c fastest -> list of `(c, f·pt, h·ph, w·pw)`, padding rows dropped."""
        pt, ph, pw = self.config.patch_size
        pattern = "(f h w) (pt ph pw c) -> c (f pt) (h ph) (w pw)"
        return [
            rearrange(u[: f * h * w], pattern, f=f, h=h, w=w, pt=pt, ph=ph, pw=pw)
            for u, (f, h, w) in zip(rows, grid_sizes.tolist(), strict=True)
        ]

    def check_inputs(self, clip_fea: Tensor | None, y: list[Tensor] | None) -> None:
        """Refuse a missing or a superfluous image condition (ValueError)."""
        for name, value in (("clip_fea", clip_fea), ("y", y)):
            if (value is not None) != self.config.has_image:
                verb = "needs" if self.config.has_image else "takes no"
                raise ValueError(f"a model of type {self.config.model_type} {verb} {name}")

    def forward(
        self,
        x: list[Tensor],
        t: Tensor,
        context: list[Tensor],
        seq_len: int,
        clip_fea: Tensor | None = None,
        y: list[Tensor] | None = None,
    ) -> list[Tensor]:
        """Predict the velocity of every sample.

        x: noisy latents `(16, F, H, W)`, sizes may differ; t: `(b,)`; context: `(L_i ≤ 512, text_dim)` each;
        clip_fea: `(b, n, clip_dim)`, for flf2v `(2b, n, clip_dim)` ordered first₀, last₀, first₁, …;
        y: `(20, F, H, W)` each, 4 mask channels then 16 condition latents. Returns a list of `(16, F, H, W)`.
        """
        self.check_inputs(clip_fea, y)
        if y is not None:
            x = [torch.cat([u, v]) for u, v in zip(x, y, strict=True)]
        tokens, seq_lens, grid_sizes = self.embed_patches(x, seq_len)
        e, e0 = self.embed_time(t)
        context_tokens = self.embed_context(context, clip_fea)
        freqs = self.freqs.to(tokens.device)
        for block in self.blocks:
            tokens = block(tokens, e0, seq_lens, grid_sizes, freqs, context_tokens)
        return [u.float() for u in self.unpatchify(self.head(tokens, e), grid_sizes)]
