"""The port's key map: complete, invertible and strict."""

import dataclasses

import pytest
import torch
from waypoint_port_tiny import CONFIG, random_weights

from ported.waypoint import WaypointConfig, build_model, from_reference, to_reference
from ported.waypoint.keys import PORT_TO_REFERENCE, REFERENCE_TO_PORT, bake_weight_norm, rename
from ported.waypoint.model import WaypointWorldModel

SMALL = WaypointConfig(
    d_model=2560,
    n_heads=40,
    n_kv_heads=20,
    n_layers=22,
    mlp_ratio=5,
    channels=16,
    height=16,
    width=16,
    patch=(2, 2),
    tokens_per_frame=256,
    n_frames=4096,
    local_window=16,
    global_window=128,
    global_pinned_dilation=8,
    gated_attn=True,
    n_buttons=256,
    scheduler_sigmas=(1.0, 0.8609585762023926, 0.729332447052002, 0.3205108940601349, 0.0),
)


def meta_weights(config):
    with torch.device("meta"):
        return WaypointWorldModel(config).state_dict()


def test_small_has_366_keys_and_its_parameter_count():
    weights = meta_weights(SMALL)
    with torch.device("meta"):
        model = WaypointWorldModel(SMALL)
    assert len(weights) == 366
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(2.303e9, rel=1e-3)
    assert sum(t.numel() for t in weights.values()) == pytest.approx(3.129e9, rel=1e-3)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("denoise_step_emb.mlp.fc1.weight", (10240, 512)),
        ("ctrl_emb.mlp.fc1.weight", (12800, 259)),
        ("transformer.blocks.3.ctrl_mlpfusion.mlp.fc1.weight", (2560, 5120)),
        ("transformer.blocks.21.mlp.fc2.weight", (2560, 12800)),
        ("transformer.blocks.1.attn.k_proj.weight", (1280, 2560)),
        ("transformer.blocks.1.attn.gate_proj.weight", (40, 40)),
        ("transformer.blocks.0.prompt_cross_attn.q_proj.weight", (2048, 2560)),
        ("patchify.weight", (2560, 16, 2, 2)),
        ("unpatchify.weight", (64, 2560)),
        ("out_norm.fc.weight", (5120, 2560)),
    ],
)
def test_reference_names_and_shapes_of_small(key, shape):
    reference = to_reference(meta_weights(SMALL), SMALL)
    assert reference[key].shape == shape


def test_round_trip_of_small():
    port = meta_weights(SMALL)
    reference = to_reference(port, SMALL)
    back = from_reference(reference, SMALL)
    assert list(back) == list(port)
    assert len(reference) == 366
    assert not any(".fc_" in key for key in reference)
    assert all(back[key] is port[key] for key in port)


def test_rules_are_inverse_of_each_other():
    for key in meta_weights(CONFIG):
        other = rename(key, PORT_TO_REFERENCE)
        assert other is not None
        assert rename(other, REFERENCE_TO_PORT) == key


def test_every_wrong_key_is_listed_at_once():
    reference = dict(to_reference(random_weights(), CONFIG))
    reference.pop("patchify.weight")
    reference["transformer.blocks.9.mlp.fc1.weight"] = torch.zeros(1)
    reference["transformer.blocks.0.attn.v_lamb"] = torch.zeros(())
    with pytest.raises(ValueError, match="do not fit the config") as caught:
        from_reference(reference, CONFIG)
    message = str(caught.value)
    assert "1 unmapped: transformer.blocks.0.attn.v_lamb" in message
    assert "1 missing: patchify.weight" in message
    assert "1 unexpected: transformer.blocks.9.mlp.fc_in.weight" in message


def test_reference_names_are_no_port_names():
    reference = to_reference(random_weights(), CONFIG)
    with pytest.raises(ValueError, match=r"missing.*fc_in.*unexpected.*fc1"):
        build_model(CONFIG, reference)


def test_misshapen_weight_is_named():
    weights = random_weights()
    weights["unpatchify.bias"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"1 misshapen: unpatchify.bias \(3,\) for \(8,\)"):
        build_model(CONFIG, weights)


@pytest.mark.parametrize("fused_out", ["fc2", "mlp.fc2"])
def test_patched_reference_is_taken_apart(fused_out):
    port = random_weights()
    patched = dict(to_reference(port, CONFIG))
    for i in range(CONFIG.n_layers):
        attn = f"transformer.blocks.{i}.attn"
        rows = [patched.pop(f"{attn}.{name}_proj.weight") for name in "qkv"]
        patched[f"{attn}.qkv_proj.weight"] = torch.cat(rows)
        if CONFIG.has_controls(i):
            fusion = f"transformer.blocks.{i}.ctrl_mlpfusion"
            columns = patched.pop(f"{fusion}.mlp.fc1.weight").chunk(2, dim=1)
            patched[f"{fusion}.fc1_x.weight"], patched[f"{fusion}.fc1_c.weight"] = columns
            patched[f"{fusion}.{fused_out}.weight"] = patched.pop(f"{fusion}.mlp.fc2.weight")
    assert set(patched) != set(to_reference(port, CONFIG))
    back = from_reference(patched, CONFIG)
    assert all(torch.equal(back[key], port[key]) for key in port)


def test_half_a_split_fusion_is_an_error():
    patched = dict(to_reference(random_weights(), CONFIG))
    fusion = "transformer.blocks.0.ctrl_mlpfusion"
    patched[f"{fusion}.fc1_x.weight"] = patched.pop(f"{fusion}.mlp.fc1.weight")[:, :128]
    with pytest.raises(ValueError, match=rf"unmapped: {fusion}.fc1_x.weight.*missing: {fusion}.mlp.fc_in.weight"):
        from_reference(patched, CONFIG)


def test_conditioning_matrices_stay_shared_and_must_agree():
    weights = random_weights()
    model = build_model(CONFIG, weights)
    heads = [block.cond_head.cond_proj[2].weight for block in model.transformer.blocks]
    assert all(weight is heads[0] for weight in heads)
    weights["transformer.blocks.2.cond_head.cond_proj.2.weight"] = weights["transformer.blocks.2.attn.out_proj.weight"]
    with pytest.raises(ValueError, match="shares the conditioning matrices"):
        build_model(CONFIG, weights)


def test_unshared_conditioning_has_no_bias_and_own_matrices():
    config = dataclasses.replace(CONFIG, noise_conditioning=None)
    model = build_model(config, random_weights(config))
    first, second = (block.cond_head for block in model.transformer.blocks[:2])
    assert first.bias_in is None
    assert first.cond_proj[0].weight is not second.cond_proj[0].weight


def test_built_model_does_not_alias_the_given_weights():
    weights = random_weights()
    model = build_model(CONFIG, weights)
    model.unpatchify.weight.zero_()
    assert weights["unpatchify.weight"].abs().sum() > 0


def test_weight_norm_is_multiplied_out():
    conv = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv2d(3, 5, 3))
    conv.parametrizations.weight.original0.data.mul_(2.5)
    baked = bake_weight_norm({f"decoder.conv.{k}": v.detach() for k, v in conv.state_dict().items()})
    assert set(baked) == {"decoder.conv.weight", "decoder.conv.bias"}
    torch.testing.assert_close(baked["decoder.conv.weight"], conv.weight.detach())


def test_weight_norm_without_its_direction_is_an_error():
    with pytest.raises(ValueError, match=r"1 missing: a\.weight"):
        bake_weight_norm({"a.parametrizations.weight.original0": torch.ones(2, 1, 1, 1)})
