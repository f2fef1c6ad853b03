"""What differs between snapshots of the port (spec sections 6.3 to 6.5 and 9)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Version:
    """One snapshot.

    end_copies: copies of the end frame in the pixels of an SVI clip with four known sub-frames at its end.
    known_sub_frames: how many sub-frames of an SVI clip's last latent are marked known.
    flag_at_decode: hand the VAE's end flag to the decoder although the end latent is trimmed (fault F7).
    pre_trim_with_end: leading pixel frames that the caller drops after an SVI clip with an end frame (fault F17).
    pixel_motion: the motion amplitude counts its first latents in pixel frames (fault F27).
    empty_statistics: print statistics of the empty frames, which fails when there are none (fault F26).
    pasted_end: overwrite the last latent by the end frame encoded alone (fault F31).
    """

    end_copies: int = 4
    known_sub_frames: int = 4
    flag_at_decode: bool = False
    pre_trim_with_end: int = 0
    pixel_motion: bool = False
    empty_statistics: bool = False
    pasted_end: bool = False


RIGHT = Version()
LATEST = Version(flag_at_decode=True, pre_trim_with_end=1, pixel_motion=True, empty_statistics=True)  # 50066ea
BASE = Version(pixel_motion=True)  # Wan2GP v9.1, 9190973; without SVI and end frame together
UPSTREAM = Version(end_copies=1, known_sub_frames=1, pixel_motion=True, pasted_end=True)  # since March 2026
SINGLE_END = Version(end_copies=1, known_sub_frames=1)  # 43f9eeb: equals the reference's inline variant
