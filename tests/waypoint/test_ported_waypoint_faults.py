"""Every fault of the port changes what it says it changes; every variation leaves the result alone."""

import copy
import re
from functools import cache

import pytest
import torch
from waypoint_port_tiny import tiny_port, tiny_run

from ported.waypoint.faults import FAULTS, VARIATIONS

ROUNDING = 2e-6  # of fp32 latents, where attention is over another number of keys
# Faults of the specification that need history: the frames before are right. All others show from frame 0.
ONSET = {
    "rope_memo_stale": 1,
    "rope_time_ignored": 1,
    "rope_time_base10": 1,
    "keys_cached_unrotated": 1,
    "cache_unused": 1,
    "cache_flat_fifo": 2,
    "cache_pass_skipped": 1,
    "cache_pass_frozen": 1,
    "cache_pass_last_sigma": 1,
    "cache_pass_on_noise": 1,
    "timestamp_advanced_early": 1,
    "timestamp_stuck": 1,
    "cache_overwritten_visible": 3,
    "cache_dilation_ignored": 2,
    "cache_buckets_undivided": 4,
    "cache_layers_swapped": 2,
    "cache_overlapping_shift": 3,
    "latent_std_pulled": 1,
    "controls_first_reused": 1,
    "controls_by_global_index": 2,
}
# The latents differ by rotary rounding alone in frame 0: a relative embedding does not see a common offset.
ROUNDING_AT_FRAME_0 = {"timestamp_from_one"}
# Below every other fault: eps shows where an activation is nearly zero.
SMALL = {"rms_eps_1e6": 1e-7}
BUG_CLASSES = re.compile(r"[WPANTCVKQDS]\d+")
SPEC_IDS = re.compile(r"[MKPST]\d+|17|B10")
NEEDS = {
    "dtype",
    "frames",
    "wraps",
    "frames_per_call",
    "calls",
    "scroll",
    "injected_noise",
    "prompt_padding",
    "text_encoder",
    "vae",
    "kv_heads_min",
    "group_min",
    "head_dim_not",
    "patch_not",
    "gated",
    "noise_conditioning",
    "tokens_not_multiple_of",
}


@cache
def baseline(needs):
    return tiny_run(tiny_port(dict(needs)), dict(needs))


def runs(entry):
    """Outputs without and with the entry: latents, or video where frames are decoded."""
    port = tiny_port(entry.needs)
    entry.inject(port)
    torch.manual_seed(0)
    latents, video = tiny_run(port, entry.needs)
    right_latents, right_video = baseline(tuple(sorted(entry.needs.items())))
    return (right_latents, latents) if right_video is None else (right_video, video)


def relative(right, wrong):
    return float((wrong.double() - right.double()).norm() / right.double().norm())


def test_there_are_enough_faults_and_their_records_are_whole():
    assert len(FAULTS) >= 45
    for name, entry in FAULTS.items():
        assert entry.name == name == entry.inject.__name__
        assert entry.text.endswith(".")
        assert SPEC_IDS.fullmatch(entry.spec_id)
        assert entry.bug_class is None or BUG_CLASSES.fullmatch(entry.bug_class)
        assert set(entry.needs) <= NEEDS
    for name, entry in VARIATIONS.items():
        assert entry.name == name == entry.inject.__name__
        assert entry.text.endswith(".")
    assert not set(FAULTS) & set(VARIATIONS)


def test_right_port_is_deterministic():
    for right, again in zip(tiny_run(tiny_port()), baseline(()), strict=True):
        assert right is again or torch.equal(right, again)


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_fault_changes_the_output_from_its_onset_on(name):
    entry = FAULTS[name]
    right, wrong = runs(entry)
    if right.shape != wrong.shape:
        assert name == "decode_rows_padded"
        return
    onset, floor = ONSET.get(name, 0), SMALL.get(name, 5e-4)
    frames = [relative(right[:, :, f], wrong[:, :, f]) for f in range(right.shape[2])]
    assert max(frames[:onset], default=0.0) < ROUNDING
    assert max(frames) > floor
    if name in ROUNDING_AT_FRAME_0:
        assert 0 < frames[0] < ROUNDING
    elif name not in SMALL:
        assert frames[onset] > floor


@pytest.mark.parametrize("name", sorted(VARIATIONS))
@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_variation_leaves_the_output_within_rounding(name):
    entry = VARIATIONS[name]
    right, other = runs(entry)
    assert relative(right, other) < (2e-2 if entry.needs.get("dtype") == "bf16" else ROUNDING)


def test_reinterleaved_rotary_permutes_queries_and_cached_keys():
    right, other = tiny_port(), tiny_port()
    VARIATIONS["rope_reinterleaved"].inject(other)
    tiny_run(right)
    tiny_run(other)
    keys = [port.kv_cache.layers[1].kv[0] for port in (right, other)]
    assert relative(*keys) > 0.5
    torch.testing.assert_close(keys[1].unflatten(-1, (16, 2)).mT.flatten(-2), keys[0], atol=1e-4, rtol=1e-4)


def test_documented_schedule_rounds_to_the_same_bf16_values_only():
    for dtype, same in (("bf16", True), ("fp32", False)):
        port = tiny_port({"dtype": dtype})
        before = port.denoising.sigmas.clone()
        VARIATIONS["schedule_documented"].inject(port)
        assert torch.equal(port.denoising.sigmas, before) == same


@pytest.mark.parametrize("name", ["rope_halves", "attention_token_causal", "cache_flat_fifo", "layer1_weight_zeroed"])
def test_fault_stays_in_its_port(name):
    FAULTS[name].inject(tiny_port())
    latents, _ = tiny_run(tiny_port())
    assert torch.equal(latents, baseline(())[0])


@pytest.mark.parametrize("name", ["gate_after_out_proj", "cache_overlapping_shift", "euler_sign_reversed"])
def test_copy_of_a_faulty_port_has_the_fault_and_its_own_state(name):
    port = tiny_port()
    FAULTS[name].inject(port)
    twin = copy.deepcopy(port)
    latents, _ = tiny_run(port)
    tiny_run(port)
    again, _ = tiny_run(twin)
    assert torch.equal(latents, again)
    assert not torch.equal(latents, baseline(())[0])


def test_dropout_at_inference_is_not_reproducible():
    port = tiny_port()
    FAULTS["cfg_dropout_at_inference"].inject(port)
    torch.manual_seed(0)
    first, _ = tiny_run(port)
    second, _ = tiny_run(port)
    assert not torch.equal(first, second)


def test_uninitialised_table_makes_every_noise_level_look_alike():
    embedding = tiny_port().model.denoise_step_emb
    sigmas = torch.tensor([[0.2, 0.9]])
    assert not torch.allclose(*embedding(sigmas)[0])
    port = tiny_port()
    FAULTS["noise_frequencies_uninitialised"].inject(port)
    torch.testing.assert_close(*port.model.denoise_step_emb(sigmas)[0])


def test_text_fault_needs_a_text_stage():
    with pytest.raises(AttributeError, match="NoneType has no zero_padding"):
        FAULTS["prompt_padding_not_zeroed"].inject(tiny_port())
