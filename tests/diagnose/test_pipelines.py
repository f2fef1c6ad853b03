"""What pipelines get wrong around and inside a video model: each rule on a tensor that shows it, and on one that almost does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from recognise import named, normal, top
from torch import Tensor
from torch.nn import functional

from parity.diagnose.caches import HYPOTHESES as CACHES
from parity.diagnose.conditioning import HYPOTHESES as CONDITIONING
from parity.diagnose.evidence import Evidence
from parity.diagnose.layout import HYPOTHESES as LAYOUT
from parity.diagnose.masks import describe
from parity.diagnose.positions import HYPOTHESES as POSITIONS
from parity.diagnose.precision import HYPOTHESES as PRECISION
from parity.diagnose.randomness import HYPOTHESES as RANDOMNESS
from parity.diagnose.time import HYPOTHESES as TIME
from parity.diagnose.weights import HYPOTHESES as WEIGHTS


def lookup(records: Mapping[str, Tensor]):
    """A lookup by site; coordinates after an @, as `site@step=0,branch=1`."""

    def at(site: str, coords: Mapping[str, int]) -> Tensor | None:
        key = ",".join(f"{axis}={index}" for axis, index in coords.items())
        return records.get(f"{site}@{key}" if key else site)

    return at


# -- conditions -------------------------------------------------------------------------------------------------------


def video(*given: int, frames: int = 9) -> Tensor:
    """A condition video [1, 3, t, h, w] of zeros with some given frames; equal numbers are equal pictures."""
    made = torch.zeros(1, 3, frames, 8, 12, dtype=torch.float64)
    for order, place in enumerate(given):
        made[:, :, place] = normal(1, 3, 8, 12, seed=order)
    return made


# -- what an axis is --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "change", "class_id", "options"),
    [
        (normal(3, 32, 48), lambda x: x.flip(0), "C7", {"kind": "input"}),
        (normal(20, 3, 4, 6), lambda x: x.roll(-4, 0), "C5", {"kind": "input"}),
        (normal(2, 45, 64), lambda x: x.unflatten(2, (2, 2, 16)).transpose(2, 3).flatten(2), "V5", {}),
        (normal(1, 8, 2, 4, 6), lambda x: x.flip(2), "V2", {"coords": {"video": 4, "chunk": 1}}),
        (normal(3, 32, 48), lambda x: 255 * x + 254, "C8", {"kind": "input"}),
    ],
)
def test_an_axis_is_known(reference: Tensor, change, class_id: str, options: dict) -> None:
    assert top(Evidence(reference, change(reference), **options), LAYOUT)[1] == class_id


def test_vectors_of_a_modulation() -> None:
    table = {"modulation": (normal(1, 6, 24), None)}
    reference = normal(2, 6, 24)
    port = reference[:, [1, 0, 2, 4, 3, 5]]
    assert top(Evidence(reference, port, parameters=table), LAYOUT)[1] == "W5"
    assert top(Evidence(reference, port), LAYOUT)[1] != "W5"  # nothing says that these are such vectors


def test_conditions_before_a_guided_loop() -> None:
    """The batch of a run whose guidance makes two passes is no pair of branches."""
    reference = normal(2, 17, 20)
    ev = Evidence(reference, reference.flip(0), sites=("v",))
    assert top(ev, LAYOUT)[1] == "C1"
    guided = replace(ev, ref_at=lookup({"v@step=0,branch=1": reference}))
    assert top(guided, LAYOUT)[1] == "C5"


# -- parts that are not there -----------------------------------------------------------------------------------------


def test_why_entries_are_missing() -> None:
    text = torch.cat([normal(2, 5, 8), torch.zeros(2, 20, 8, dtype=torch.float64)], 1)
    assert top(Evidence(text, text[:, :11].clone()), LAYOUT)[1] == "C3"
    assert top(Evidence(text.flip(1), text.flip(1)[:, :22].clone()), LAYOUT)[1] == "D3"  # zeros in front are kept
    image, words = normal(2, 4, 8, seed=1), normal(2, 9, 8, seed=2)
    ev = Evidence(torch.cat([image, words], 1), words, sites=("img_emb",), ref_at=lookup({"img_emb": image}))
    assert top(ev, LAYOUT)[1] == "N5"
    computed = replace(ev, port_at=lookup({"img_emb": image}))  # the port has it and drops it
    assert top(computed, LAYOUT)[1] == "D3"
    whole = normal(1, 3, 1, 16, 24)
    ev = Evidence(whole, whole[..., :16].clone(), site="x", coords={"chunk": 0})
    assert top(ev, LAYOUT)[1] == "V7"
    tiled = replace(ev, port_at=lookup({"x@chunk=1": whole[..., 8:]}))
    assert top(tiled, LAYOUT)[1] == "V4"


def test_memory_of_a_convolution() -> None:
    """A remembered frame has five axes; keys and values have four."""
    memory = normal(1, 4, 2, 6, 8)
    assert top(Evidence(memory, memory[:, :, 1:].clone(), kind="kv"), CACHES + LAYOUT)[1] == "V2"
    keys = normal(1, 4, 6, 8)
    assert top(Evidence(keys, keys[:, :, 2:].clone(), kind="kv"), CACHES + LAYOUT)[1] in ("K3", "K6")
    other = normal(1, 4, 2, 6, 8, seed=1)
    ev = Evidence(
        memory, other, site="cache.1", kind="kv", sites=("cache.1", "cache.2"), ref_at=lookup({"cache.2": other})
    )
    assert top(ev, CONDITIONING)[1] == "V2"


def test_weights_of_another_module() -> None:
    mine, theirs = normal(32, 4), normal(32, 4, seed=1)
    weights = {"blocks.0.table": theirs, "blocks.1.table": mine}
    ev = Evidence(mine[:9], theirs[:9], parameters={"table": (mine, theirs)}, weights=weights)
    _, class_id, found = top(ev, WEIGHTS)
    assert class_id == "W2"
    assert "blocks.0.table" in found.text
    unknown = replace(ev, parameters={"table": (mine, normal(32, 4, seed=2))})
    assert top(unknown, WEIGHTS)[1] != "W2"


# -- guidance, noise, precision ---------------------------------------------------------------------------------------


def test_whose_condition_is_given() -> None:
    own, other = normal(1, 12, 8), normal(1, 12, 8, seed=1)
    at = lookup({"text@step=0,branch=0": other, "text@step=0,branch=1": own})
    ev = Evidence(own, other, site="text", coords={"step": 0, "branch": 1}, kind="input", module="model", ref_at=at)
    assert top(ev, CACHES)[1] == "C1"
    inside = replace(ev, module="blocks.0.cross_attn")
    assert top(inside, CACHES)[1] == "K5"


def test_a_rounded_step_is_no_rounded_noise() -> None:
    noise = normal(2, 4, 6, 8)
    fresh = Evidence(noise, noise.bfloat16().double(), kind="latent")
    assert "dtype of noise" in named(fresh, RANDOMNESS)
    step = noise + 0.1 * normal(2, 4, 6, 8, seed=1)
    made = Evidence(step, step.bfloat16().double(), kind="latent", inputs={"x": noise})
    assert "dtype of noise" not in named(made, RANDOMNESS)


def test_a_norm_with_half_precision_gains() -> None:
    gain = 1 + 0.2 * normal(1, 4, 1, 1)
    x = functional.normalize(normal(2, 4, 16, 24), dim=1) * 2
    half = (x.bfloat16() * gain.bfloat16()).double()
    assert top(Evidence((x * gain).float(), half.float()), PRECISION)[1] == "N4"
    coarse = ((x * gain) * 1.01).float()
    assert "rounded" not in named(Evidence((x * gain).float(), coarse), PRECISION)


# -- schedules --------------------------------------------------------------------------------------------------------


def shifted(u: Tensor, shift: float = 5.0) -> Tensor:
    return shift * u / (1 + (shift - 1) * u)


def table(first: float, last: float, count: int = 6) -> Tensor:
    u = torch.linspace(first, last, count, dtype=torch.float64)
    return torch.cat([shifted(u), torch.zeros(1, dtype=torch.float64)])


@pytest.mark.parametrize(
    ("reference", "port", "class_id"),
    [
        (table(0.999, 0.1665), table(float(shifted(torch.tensor(0.999))), 0.1666), "T3"),  # the upper end point
        (table(1.0, 0.25, 4), table(1.0, float(shifted(torch.tensor(1e-3))), 4), "T3"),  # the lower one
        (table(0.999, 0.1665), table(0.99999, 0.1675), "T5"),  # other ends, shifted once
        (table(0.999, 0.333, 3), table(0.99999, 0.334, 3), "T5"),  # three steps are enough
    ],
)
def test_end_points(reference: Tensor, port: Tensor, class_id: str) -> None:
    assert top(Evidence(reference, port, kind="schedule"), TIME)[1] == class_id


def test_whole_timesteps() -> None:
    sigmas = table(0.999, 0.1665)
    exact = 1000 * sigmas[:-1]
    ev = Evidence(exact.floor().long(), exact.round().long(), kind="schedule", inputs={"sigmas": sigmas})
    assert top(ev, TIME)[:2] == ("whole timesteps", "T1")
    one_off = exact.floor().long()
    one_off[1] += 1  # neither rounded nor rounded up
    assert "whole timesteps" not in named(replace(ev, port=one_off), TIME)


# -- positions and attention ------------------------------------------------------------------------------------------


def rotary_tables(sections: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """cos and sin [n, 28] of a grid 3 × 3 × 5, frequencies of widths 12, 8, 8, cut among the axes at `sections`."""
    own = torch.cat([10000 ** (-torch.arange(0, w, 2, dtype=torch.float64) / w) for w in (12, 8, 8)]).repeat_interleave(
        2
    )
    grid = torch.stack(torch.meshgrid(*(torch.arange(n) for n in (3, 3, 5)), indexing="ij"), -1).reshape(-1, 3).double()
    axis = torch.repeat_interleave(torch.arange(3), torch.tensor(sections))
    angle = grid[:, axis] * own
    return angle.cos(), angle.sin()


def test_head_split_elsewhere_among_the_axes() -> None:
    (cos, sin), (cos_p, sin_p) = rotary_tables((12, 8, 8)), rotary_tables((10, 9, 9))
    ev = Evidence(
        cos, cos_p, site="rope.cos", kind="rope", precise=cos, sites=("rope.cos", "rope.sin"),
        ref_at=lookup({"rope.sin": sin}), port_at=lookup({"rope.sin": sin_p}),
    )  # fmt: skip
    assert top(ev, POSITIONS)[:2] == ("position axes", "P3")
    noisy = replace(ev, port=cos_p + 1e-3 * normal(45, 28), port_at=lookup({"rope.sin": sin_p}))
    assert "position axes" not in named(noisy, POSITIONS)


def test_shards_that_were_not_exchanged() -> None:
    everything = torch.ones(1, 1, 9, 9, dtype=torch.bool)
    parts = torch.zeros(1, 1, 9, 9, dtype=torch.bool)
    parts[..., :5, :5], parts[..., 5:, 5:] = True, True
    change = describe(everything, parts)
    assert change is not None
    assert (change.class_id, change.parameters["starts"]) == ("D3", [0, 5])
    overlapping = parts.clone()
    overlapping[..., 4, 5] = True
    for other in (overlapping, parts.flip(-1), everything.tril()):
        found = describe(everything, other)
        assert found is None or found.class_id != "D3"
