"""Hazards of the reference that are kept, each with its reason (spec section 12.1)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Quirk:
    """One kept oddity. `where` is `module:attribute` inside this package."""

    id: str
    where: str
    what: str
    reason: str


KEPT = (
    Quirk(
        "H1",
        "encode:pixel_concat",
        "Split with more than two known frames: up to three frames before the end frame are never encoded.",
        "The tensor is n-1+s+m frames long and the encode with the end flag ignores what fills no chunk; four end "
        "frames are marked `0111 1111` although grey was encoded before the last.",
    ),
    Quirk(
        "H2",
        "encode:pixel_concat",
        "Split with six or more known frames gives one latent more than the mask has.",
        "It fails where mask and latents are joined, not before.",
    ),
    Quirk(
        "H3",
        "encode:pad_empty_frames",
        "A pad picture with split and more than two known frames is an index error.",
        "The pixel tensor is longer than the mask that says which frames are empty.",
    ),
    Quirk(
        "H4",
        "encode:svi_pro_embeds",
        "The mask of a continuation in latent space does not mark the motion latents, although they are there.",
        "By design: they guide, they are not kept.",
    ),
    Quirk(
        "H5",
        "encode:whole_frames",
        "4k+2, 4k+3 and 4k+4 frames are cut to 4k+1 without a word.",
        "Latents stand for whole groups of four.",
    ),
    Quirk(
        "last-frame",
        "sampler:decode",
        "A split clip decodes n+1 frames and drops the last.",
        "The end picture itself is no part of the clip; users ask where it went.",
    ),
)
