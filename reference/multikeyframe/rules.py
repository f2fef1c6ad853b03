"""Where upstream departs from what its invariants ask for: one field a difference (specification, sections 8 and 10).

`UPSTREAM` reproduces the authors' program, `REPAIRED` keeps the invariants; goldens recorded from upstream are checked
with the first, the pair of reference and port runs with the second.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rules:
    """True keeps the invariant, False does what upstream does."""

    drop_shared: bool  # the keyframe that two segments share is shown once (M10)
    relabel: bool  # frames are played at the planned rate, not re-timed from the model's 16 fps (M12, M29)
    true_junctions: bool  # a junction is the first frame of the later segment in the joined video (M11)
    junctions_only: bool  # without a junction nothing is smoothed, instead of everything (M13)
    merge_windows: bool  # overlapping windows become one, instead of repeating frames (M14)
    centred: bool  # the 1-2-1 filter is centred, instead of one frame late (M15)
    whole_result: bool  # a resumed run returns every segment, not only those it visited (M3)
    tied_to_plan: bool  # a finished segment is used again only for the same request (M6)
    clear_failed: bool  # success removes an earlier failure (M7)
    pass_force: bool  # forced regeneration reaches the generator (M2)


UPSTREAM = Rules(*[False] * 10)
REPAIRED = Rules(*[True] * 10)
