"""Where the port differs from the reference by right, each with its reason."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Quirk:
    """One accepted difference. `where` is `module:attribute` inside this package."""

    id: str
    where: str
    what: str
    reason: str


ACCEPTED = (
    Quirk(
        "one-conv",
        "vae:encode",
        "The 1x1x1 convolutions of the VAE run once over all latents, in the reference once more for an isolated end.",
        "The same sums; float32 differs by up to 1.2e-7 in latents and 2.3e-6 in frames at some sizes.",
    ),
    Quirk(
        "trim-then-decode",
        "sampling:decode",
        "The end latent of a split clip is dropped before a plain decode; the reference decodes it alone and drops its "
        "frame.",
        "Bit-equal frames, one chunk less work.",
    ),
    Quirk(
        "clamp",
        "vae:decode",
        "Decoded frames are limited to [-1, 1] at once; the reference limits them when it makes pictures.",
        "The pictures are the same.",
    ),
    Quirk(
        "end-four-times",
        "conditioning:end_pixels",
        "In SVI mode of Wan 2.2 the end frame fills a latent: four copies in the pixels, four known sub-frames.",
        "One known sub-frame of four is not kept by these models; the reference does the same when it is given the end "
        "picture four times.",
    ),
    Quirk(
        "reimpose",
        "sampling:Sampling",
        "A plain window can put its clean start latents back at every step; off here.",
        "The reference never does it and SVI mode does not either.",
    ),
    Quirk(
        "noise-device",
        "sampling:draw_noise",
        "Noise comes from a generator on the compute device; the reference draws it on the CPU.",
        "On a GPU the streams differ for one seed, so a comparison draws on the CPU.",
    ),
    Quirk(
        "no-motion",
        "conditioning:move",
        "A motion amplitude above 1 scales the latents; the reference has no such input.",
        "Off by default; nothing to compare it with.",
    ),
)
