"""Official oddities that this reference keeps, each with the reason, and what it deliberately leaves out.

Kept quirks are part of what a port is compared with: a port that "repairs" one differs from the reference and should
say so.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Quirk:
    """One accepted oddity. `where` is `module:attribute` inside this package."""

    id: str
    where: str
    what: str
    reason: str
    spec: str


KEPT = (
    Quirk(
        "flf2v-81",
        "conditioning:flf2v_mask",
        "The flf2v mask has the literal length 81; any other frame count fails when mask and latents are concatenated.",
        "Only 81 frames were released. `fixed_frames=True` uses the frame count instead, as every patched copy does.",
        "A14, D26",
    ),
    Quirk(
        "flf2v-crop",
        "conditioning:match_last_image",
        "A last image of another size is centre-cropped to [round(W·r), round(H·r)] read as (height, width), never "
        "resized; where the crop is larger it is padded with mid grey; the result also feeds CLIP.",
        "It changes the condition of every flf2v run with images of two sizes.",
        "A14, D27",
    ),
    Quirk(
        "unipc-duplicate",
        "solvers.schedules:start_index",
        "The first index is found by equality of truncated time steps; if the first value occurs twice the second "
        "place is taken, the first sigma is skipped and the last step stops with order 0.",
        "Large shifts with many steps (16: 80 or more, 12: 100) fail upstream; a silent repair gives other videos.",
        "A13, D44",
    ),
    Quirk(
        "timestep-truncation",
        "solvers.schedules:unipc_schedule",
        "Time steps are truncated, not rounded, to int64, so t and sigma disagree by up to one unit.",
        "The transformer sees the integer; one unit of t moves a random model by 15 %.",
        "A13",
    ),
    Quirk(
        "unmasked-text-pads",
        "dit:WanDiT.embed_context",
        "Texts are zero-padded before the projection; the constant, non-zero pad rows take part in cross attention.",
        "The models were trained with them.",
        "A3, D15",
    ),
    Quirk(
        "no-double-first",
        "vae_layers:Resample.double_time",
        "The second chunk's temporal upsampling sees zeros in place of the first frame (marker 'Rep').",
        "The VAE was trained with it; seeing the frame makes frame 1 flicker.",
        "A10, D32",
    ),
    Quirk(
        "spare-slots",
        "vae_cache:FeatureCache",
        "Caches have 26 and 33 slots, of which 24 and 32 are used: shortcut convolutions are counted, yet own none.",
        "Slot numbers of upstream dumps stay valid.",
        "A10",
    ),
    Quirk(
        "trailing-frames",
        "vae:chunk_bounds",
        "Frames that do not complete a chunk of four are dropped silently by the encoder.",
        "Callers upstream rely on 4n+1 frames; the VAE itself accepts any number.",
        "A10",
    ),
    Quirk(
        "clip-squash",
        "clip:resize_square",
        "CLIP input is squashed to a square without antialiasing and the bicubic overshoot is not clamped.",
        "The image tokens the model was trained on.",
        "A12, D28",
    ),
    Quirk(
        "guidance-at-one",
        "pipeline:GuidedModel.velocity",
        "Both passes run at every guidance scale, also at 1.",
        "Rounding differs from a single pass.",
        "A14",
    ),
)

NOT_REPRODUCED = {
    "flash attention's half precision outside autocast": (
        "Upstream casts q, k and v to bf16 even in a float32 run. Here q and k follow the dtype of v, which is bf16 "
        "under autocast and float32 without, so that an exact float32 (or float64) run exists (A4, goldens)."
    ),
    "context parallel path": (
        "Tokens are chunked over ranks after padding to a multiple of the world size (`sequence_length(sp_size)`), "
        "each rank takes its slice of the rotary table, padded with ones, and NO key mask is applied: pads are "
        "attended to, although the single-device path masks them. Its check for clip_fea and y leaves out flf2v (A9)."
    ),
    "base negative prompt": (
        "The fixed Chinese negative prompt is data of the official configuration that the specification does not "
        "quote; pass its encoding as `Prompts.negative`. The prefixes of i2v and flf2v are in `text`."
    ),
    "vace": "A fourth model type exists upstream and is not specified.",
}
