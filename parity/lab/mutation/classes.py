"""The class of an edit by construction: what kind of edit it is and what the edited code is about. Several ids where two are fair (shared/BUGS.md's ids)."""

from __future__ import annotations

import re
from collections.abc import Collection

# What code is about: the first topic whose pattern is found in the function's qualified name, or in the names of the edited statement.
TOPICS = (
    ("rotary", r"rotary|rope|rotate_half|freqs_cis"),
    ("time", r"timestep|time_proj|time_text|sinusoid|time_embed"),
    ("cache", r"cache|past_key|feat_idx"),
    ("mask", r"mask"),
    ("position", r"pos_embed|position|relative|bucket"),
    ("modulation", r"\b(c_)?(shift|gate|scale)_m|\bshift\b|modulat|adaln|\btemb\b"),
    ("norm", r"norm"),
    ("attention", r"attn|attention|sdpa|\bquery|\bkey\b|scaling"),
    ("activation", r"gelu|silu|sigmoid|swish|activation|act_fn"),
)

# kind of edit -> classes of any topic. The classes of (kind, topic) come first where the topic says more.
OF_KIND: dict[str, tuple[str, ...]] = {
    "eps": ("N1",),
    "activation": ("N2",),
    "left out": ("N5",),
    "twice": ("N6",),
    "sign": ("N5", "T8"),
    "term missing": ("N5",),
    "factor missing": ("N5",),
    "plus for times": ("N5",),
    "operands exchanged": ("N5", "T8"),
    "results exchanged": ("W3", "W5"),
    "arguments exchanged": ("W3", "A10"),
    "parts in another order": ("C5", "W3", "V5"),
    "axis": ("V5", "V6", "V11", "A10"),
    "sizes exchanged": ("V5", "V6", "V11", "A10"),
    "mask left out": ("A2",),
    "causal": ("A1",),
    "scale": ("A5",),
    "constant": ("W12", "C8"),
    "theta": ("P5",),
    "off by one": ("W3", "C5", "K6"),
    "rounded": ("N4",),
    "other variable": ("N5",),
    "cache unused": ("K3", "K1"),
    "cache index": ("K1", "K5"),
}

OF_TOPIC: dict[tuple[str, str], tuple[str, ...]] = {
    ("scale", "time"): ("T6", "T2"),
    ("plus for times", "attention"): ("A5", "N5"),
    ("constant", "activation"): ("N2", "W12"),
    ("factor missing", "activation"): ("N2", "N5"),
    ("plus for times", "activation"): ("N2", "N5"),
    ("sign", "activation"): ("N2", "N5"),
    ("scale", "rotary"): ("P5", "W12"),
    ("scale", "norm"): ("W12", "N3"),
    ("scale", "modulation"): ("W12", "N5"),
    ("sign", "rotary"): ("P7", "P1"),
    ("term missing", "rotary"): ("P1", "P4", "P5", "N5"),
    ("factor missing", "rotary"): ("P1", "P5", "N5"),
    ("plus for times", "rotary"): ("P1", "P5", "P7", "N5"),
    ("operands exchanged", "rotary"): ("P7", "P1", "P5"),
    ("results exchanged", "rotary"): ("P1", "P3", "P7"),
    ("arguments exchanged", "rotary"): ("P1", "P7", "P3", "W3"),
    ("parts in another order", "rotary"): ("P1", "P3", "P7"),
    ("axis", "rotary"): ("P1", "P3", "A10"),
    ("sizes exchanged", "rotary"): ("P1", "P3", "A10"),
    ("constant", "rotary"): ("P5", "P2", "P1"),
    ("off by one", "rotary"): ("P1", "P2", "P3", "P4"),
    ("rounded", "rotary"): ("P6", "N4"),
    ("other variable", "rotary"): ("P1", "P3", "P7"),
    ("left out", "rotary"): ("N5", "P1"),
    ("twice", "rotary"): ("N6", "P5"),
    ("sign", "time"): ("T2", "T8", "N5"),
    ("term missing", "time"): ("N5", "T2", "T6"),
    ("factor missing", "time"): ("T6", "T2", "N5"),
    ("plus for times", "time"): ("T2", "T6", "N5"),
    ("operands exchanged", "time"): ("T2", "T6", "N5"),
    ("parts in another order", "time"): ("T2",),
    ("results exchanged", "time"): ("T2", "W5"),
    ("constant", "time"): ("T2", "T6", "W12"),
    ("theta", "time"): ("T2", "P5"),
    ("off by one", "time"): ("T2", "T5"),
    ("rounded", "time"): ("T1", "N4"),
    ("axis", "time"): ("T2", "V5"),
    ("off by one", "position"): ("P2", "P3"),
    ("constant", "position"): ("P2", "P5", "W12"),
    ("sign", "position"): ("P2", "P7", "N5"),
    ("term missing", "position"): ("N5", "P2"),
    ("axis", "position"): ("P3", "V5", "A10"),
    ("off by one", "cache"): ("K1", "K6", "P2"),
    ("term missing", "cache"): ("P2", "K1", "N5"),
    ("sign", "cache"): ("P2", "K1", "N5"),
    ("parts in another order", "cache"): ("K1", "K6"),
    ("axis", "cache"): ("K1", "K6", "A10"),
    ("arguments exchanged", "cache"): ("K1", "W3"),
    ("left out", "cache"): ("K3", "N5"),
    ("off by one", "mask"): ("A11", "A3", "A2"),
    ("term missing", "mask"): ("A2", "N5"),
    ("sign", "mask"): ("A2", "N5"),
    ("left out", "mask"): ("A2", "N5"),
    ("other variable", "mask"): ("A2", "A3"),
    ("operands exchanged", "mask"): ("A2", "A3"),
    ("axis", "mask"): ("A2", "A3"),
    ("constant", "mask"): ("A2", "A4"),
    ("term missing", "norm"): ("N1", "N3", "N5", "W6"),
    ("factor missing", "norm"): ("N3", "N5", "W6"),
    ("plus for times", "norm"): ("N3", "N5", "W6"),
    ("sign", "norm"): ("N3", "N1", "N5"),
    ("axis", "norm"): ("N7", "A7"),
    ("constant", "norm"): ("N3", "N1", "W12"),
    ("rounded", "norm"): ("N3", "N4"),
    ("left out", "norm"): ("N5", "N3", "A7"),
    ("left out", "attention"): ("N5", "A7"),
    ("factor missing", "attention"): ("A5", "N5"),
    ("constant", "attention"): ("A5", "W12"),
    ("axis", "attention"): ("A10", "N7", "V6", "V11", "A6"),
    ("sizes exchanged", "attention"): ("A10", "V6", "V11", "A6"),
    ("off by one", "attention"): ("A11", "K6", "W3", "A6"),
    ("results exchanged", "attention"): ("W3", "A10"),
    ("other variable", "attention"): ("W3", "A10", "N5"),
    ("parts in another order", "attention"): ("C5", "W3", "A3"),
    ("results exchanged", "modulation"): ("W5",),
    ("other variable", "modulation"): ("W5", "N5"),
    ("term missing", "modulation"): ("N5", "W6"),
    ("factor missing", "modulation"): ("N5",),
    ("constant", "modulation"): ("W6", "W12"),
}  # fmt: skip


def topic_of(function: str, names: Collection[str]) -> str:
    """Return what an edited statement is about: its own names first, then those of its function and file."""
    for text in (" ".join(sorted(names)), function):
        for topic, pattern in TOPICS:
            if re.search(pattern, text.lower()):
                return topic
    return ""


def classes_of(kind: str, topic: str) -> tuple[str, ...]:
    """Return the ids that name an edit of a kind in code about a topic, the best first."""
    return OF_TOPIC.get((kind, topic), OF_KIND[kind])
