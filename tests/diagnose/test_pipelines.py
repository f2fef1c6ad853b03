"""What pipelines get wrong around and inside a video model: each rule on a tensor that shows it, and on one that almost does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from recognise import named, normal, top
from torch import Tensor
from torch.nn import functional

from parity.capture.operations import Op
from parity.diagnose.attention import HYPOTHESES as ATTENTION
from parity.diagnose.attention_arguments import attention_arguments
from parity.diagnose.caches import HYPOTHESES as CACHES
from parity.diagnose.conditioning import HYPOTHESES as CONDITIONING
from parity.diagnose.evidence import Evidence, Hypothesis
from parity.diagnose.layout import HYPOTHESES as LAYOUT
from parity.diagnose.masks import describe
from parity.diagnose.positions import HYPOTHESES as POSITIONS
from parity.diagnose.precision import HYPOTHESES as PRECISION
from parity.diagnose.randomness import HYPOTHESES as RANDOMNESS
from parity.diagnose.ranges import HYPOTHESES as RANGES
from parity.diagnose.time import HYPOTHESES as TIME
from parity.diagnose.weights import HYPOTHESES as WEIGHTS

ARGUMENTS = (Hypothesis("attention arguments", "A5", attention_arguments, 0.85),)
Place = tuple[str, Mapping[str, int]]


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


def test_given_frames_missing_or_moved() -> None:
    for port, said in ((torch.zeros_like(video(0, 8)), "missing"), (video(0, 7), "stand at [0, 7]")):
        name, class_id, found = top(Evidence(video(0, 8), port, kind="activation"), CONDITIONING + LAYOUT)
        assert (name, class_id) == ("given_frames", "C5")
        assert said in found.text
    other = video(0, 8)
    other[:, :, 8] += 0.1  # the frame is there, its picture is another one
    full = normal(1, 3, 9, 8, 12)  # no fill at all
    for reference, port in ((video(0, 8), other), (full, full.roll(1, 2))):
        assert "given_frames" not in named(Evidence(reference, port, kind="activation"), CONDITIONING)


def test_a_mask_inverted_beside_latents() -> None:
    mask = (normal(4, 3, 4, 6) > 0.3).double()
    latents = normal(16, 3, 4, 6, seed=1)
    reference = torch.cat([mask, latents])
    assert top(Evidence(reference, torch.cat([1 - mask, latents]), kind="input"), CONDITIONING)[:2] == (
        "inverted_mask",
        "C5",
    )
    assert "inverted_mask" not in named(
        Evidence(reference, torch.cat([1 - mask, 1 - latents]), kind="input"), CONDITIONING
    )


def test_a_condition_in_place_of_noise() -> None:
    condition = normal(20, 3, 4, 6)
    reference = normal(16, 3, 4, 6, seed=1)
    ev = Evidence(reference, condition[4:].clone(), site="noise", kind="latent", inputs={"y": condition})
    name, class_id, found = top(ev, CONDITIONING)
    assert (name, class_id, found.parameters["start"]) == ("part_of_other", "C5", 4)
    almost = replace(ev, port=condition[4:] + 0.01 * normal(16, 3, 4, 6, seed=2))
    assert "part_of_other" not in named(almost, CONDITIONING)
    slices = replace(ev, reference=condition[:16].clone())  # R is a part of it too
    assert "part_of_other" not in named(slices, CONDITIONING)


def test_the_state_of_another_layer() -> None:
    records = {f"layers.{i}": normal(2, 6, 8, seed=i) for i in range(3)}
    ev = Evidence(
        records["layers.1"],
        records["layers.2"],
        site="features",
        sites=("layers.0", "layers.1", "features"),  # the reference never runs the last layer
        port_sites=("layers.0", "layers.1", "layers.2", "features"),
        ref_at=lookup({k: records[k] for k in ("layers.0", "layers.1")}),
        port_at=lookup(records),
    )
    name, class_id, found = top(ev, CONDITIONING)
    assert (name, class_id, found.parameters["port"]) == ("other_origin", "C2", "layers.2")
    unknown = replace(ev, port=normal(2, 6, 8, seed=9))
    assert "other_origin" not in named(unknown, CONDITIONING)
    null = normal(2, 6, 8, seed=7)  # a vector of its own stands for the condition: no layer
    stranger = replace(ev, port=null, port_sites=("layers.0", "null"), port_at=lookup({**records, "null": null}))
    assert "other_origin" not in named(stranger, CONDITIONING)


def test_channels_of_a_fused_tensor_cut_in_another_order() -> None:
    q, k, v = (normal(2, 9, 12, seed=i) for i in range(3))
    fused = torch.cat([q, k, v], -1).unflatten(-1, (3, 3, 4)).transpose(2, 3).flatten(2)  # read per head
    ev = Evidence(q, fused[..., :12].clone(), site="q", sites=("q", "k", "v"), ref_at=lookup({"q": q, "k": k, "v": v}))
    assert top(ev, CONDITIONING)[:2] == ("mixed_channels", "W3")
    assert "mixed_channels" not in named(replace(ev, port=q[..., torch.arange(12).roll(3)]), CONDITIONING)
    assert "mixed_channels" not in named(replace(ev, port=0.5 * (q + k)), CONDITIONING)
    turned = replace(ev, port=torch.cat([q[..., :6], k[..., 6:]], -1))  # every channel in its place
    assert "mixed_channels" not in named(turned, CONDITIONING)
    picture = replace(ev, reference=q.reshape(1, 2, 1, 9, 12), port=fused[..., :12].reshape(1, 2, 1, 9, 12))
    assert "mixed_channels" not in named(picture, CONDITIONING)  # columns are no channels
    assert "mixed_channels" not in named(replace(ev, kind="frame"), CONDITIONING)
    echo = replace(ev, port=q[..., torch.arange(12).roll(3)], ref_at=lookup({"q": q, "k": q.flip(0)}))
    assert "mixed_channels" not in named(echo, CONDITIONING)


def test_a_posterior_beside_a_mask() -> None:
    moments = normal(1, 32, 3, 4, 6)
    mean, log_variance = moments[0].chunk(2)
    mask = torch.ones(4, 3, 4, 6, dtype=torch.float64)
    reference = torch.cat([mask, 2 * mean])
    port = torch.cat([mask, 2 * (mean + (0.5 * log_variance).exp() * normal(16, 3, 4, 6, seed=3))])
    ev = Evidence(
        reference, port, site="y", kind="input", sites=("moments", "y"), ref_at=lookup({"moments@video=0": moments})
    )
    assert top(ev, CONDITIONING)[:2] == ("sampled_posterior", "C9")
    plain = torch.cat([mask, 2 * mean + normal(16, 3, 4, 6, seed=3)])  # noise of one size
    assert "sampled_posterior" not in named(replace(ev, port=plain), CONDITIONING)


def framed_pictures() -> tuple[Tensor, Tensor, Tensor]:
    """One picture [1, 3, 40, 60] squashed to a square, cropped to it, and resized with antialiasing."""
    picture = functional.avg_pool2d(normal(1, 3, 41, 61, dtype=torch.float64), 2, 1)
    squashed = functional.interpolate(picture, (48, 48), mode="bilinear")
    cropped = functional.interpolate(picture, (48, 72), mode="bilinear")[..., 12:60]
    return squashed, cropped, functional.interpolate(picture, (48, 48), mode="bilinear", antialias=True)


def test_another_crop_of_a_picture() -> None:
    squashed, cropped, smooth = framed_pictures()
    name, class_id, found = top(Evidence(squashed, cropped, kind="input"), CONDITIONING)
    assert (name, class_id) == ("framed", "C6")
    assert found.parameters["columns"] == pytest.approx((2 / 3, 1 / 6), abs=0.04)
    for port in (smooth + 0.2, normal(1, 3, 48, 48, seed=5), squashed.flip(-1)):
        assert "framed" not in named(Evidence(squashed, port, kind="input"), CONDITIONING)


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


def test_a_branch_is_no_chance() -> None:
    """The condition is another one at every call of one branch: that is an order."""
    own = [normal(1, 12, 8, seed=i) for i in range(6)]
    ported = [own[0]] * 6
    for axis, expected in (("branch", False), ("draw", True)):
        coords = [{"step": i // 2, axis: i % 2 if axis == "branch" else i} for i in range(6)]
        wrong = (1, 3, 5) if axis == "branch" else (1, 2, 4)
        keys = ["text@" + ",".join(f"{a}={n}" for a, n in c.items()) for c in coords]
        port = {k: ported[i] if i in wrong else own[i] for i, k in enumerate(keys)}
        ev = Evidence(
            own[1], ported[1], site="text", coords=coords[1], kind="input",
            ref_at=lookup(dict(zip(keys, own, strict=True))), port_at=lookup(port),
            table=[("text", c, 1.0 if i in wrong else 0.0, 1e-6) for i, c in enumerate(coords)],
        )  # fmt: skip
        assert ("constant condition" in named(ev, RANGES)) is expected


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


def test_history_of_an_earlier_request() -> None:
    reference = normal(2, 4, 3, 5, 7)
    place = {"request": 1, "step": 1}
    right = [("x", {"request": 0, "step": i}, 1e-8, 1e-6) for i in range(3)]
    ev = Evidence(
        reference, 1.1 * reference, site="x", coords=place, kind="latent", table=[*right, ("x", place, 0.1, 1e-6)]
    )
    assert "surviving history" in named(ev, TIME)
    wrong = [(site, coords, 0.1, floor) for site, coords, _, floor in right]
    assert "surviving history" not in named(replace(ev, table=[*wrong, ("x", place, 0.1, 1e-6)]), TIME)


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


def call(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Op:
    out = functional.scaled_dot_product_attention(q, k, v, scale=scale)
    return Op("scaled_dot_product_attention", (q, k, v), (out,), {"scale": scale, "is_causal": False})


@pytest.mark.parametrize(
    ("change", "class_id"),
    [
        (lambda q, k, v: call(q[..., :8], k[..., :8], v, 0.25), "A9"),  # part of the head dimension
        (lambda q, k, v: call(q, k[:, :, :-1], v[:, :, :-1], 0.25), "A2"),  # no cache: the rest is dropped
        (lambda q, k, v: call(q.flip(-1)[..., :8], k[..., :8], v, 0.25), ""),  # other entries
    ],
)
def test_arguments_of_a_cut_call(change, class_id: str) -> None:
    q, k, v = (normal(1, 2, 10, 16, seed=i) for i in range(3))
    ours, theirs = call(q, k, v, 0.25), change(q, k, v)
    ev = Evidence(ours.outputs[0], theirs.outputs[0], ref_ops=(ours,), port_ops=(theirs,))
    found = named(ev, ARGUMENTS)
    assert found == ({"attention arguments": class_id} if class_id else {})


def test_operands_among_many_tensors() -> None:
    """q, k and v are found among everything that was seen on the way to them."""
    b, n, h, d = 2, 15, 4, 8
    q, k = (normal(b, n, h, d, seed=i) for i in (1, 2))
    v = normal(b, n, h * d, seed=3)

    def attend(scale: float) -> Tensor:
        parts = (q.transpose(1, 2), k.transpose(1, 2), v.unflatten(-1, (h, d)).transpose(1, 2))
        return functional.scaled_dot_product_attention(*parts, scale=scale).transpose(1, 2).flatten(2)

    seen = {f"before {i}": normal(b, n, h * d, seed=10 + i) for i in range(10)}
    inputs = {
        **seen,
        "v": v,
        "q_heads": normal(b, n, h, d, seed=4),
        "k_heads": normal(b, n, h, d, seed=5),
        "q": q,
        "k": k,
    }
    ev = Evidence(attend(d**-0.5), attend((h * d) ** -0.5), inputs=inputs)
    _, class_id, found = top(ev, ATTENTION)
    assert class_id == "A5"
    assert found.parameters["ratio"] == pytest.approx(1 / math.sqrt(h), rel=1e-3)
