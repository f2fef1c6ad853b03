"""Faults of the port: those that change numbers are switched on and off again, those that raise do raise."""

from contextlib import ExitStack

import pytest
import torch

from fixtures.interp import runs
from fixtures.interp.faults import FAULTS as BOUND
from fixtures.interp.faults import NOT_BOUND
from fixtures.interp.models import LEVELS, PATCH, build
from fixtures.interp.sides import PORT
from parity.case import Setting
from ported.interp.faults import FAULTS, Port


def test_thirty_five_bugs_of_the_specification_are_switches():
    ids = {fault.spec_id for fault in FAULTS.values()}
    assert len(ids - {"X"}) >= 30
    assert {fault.name for fault in BOUND} | set(NOT_BOUND) == set(FAULTS)


def test_names_and_expectations_are_whole():
    for fault in BOUND:
        assert fault.expect.site
        assert fault.expect.classes
        assert fault.case
        assert fault.text
    assert all(FAULTS[name].outcome == "error" for name in NOT_BOUND)


def corrupted(options=None, **more):
    setting = Setting(dtype=more.pop("dtype", torch.float32))
    inputs = runs.inputs_warp(setting)
    tokens, shape = PORT.patches.patchify(inputs["latents"], PATCH)
    draws = PORT.draws.Draws.seeded(1, 2)
    return PORT.corruption.corrupt_tokens(
        tokens,
        draws,
        3,
        2,
        options or PORT.corruption.Corruption(),
        True,
        patch_size=PATCH,
        spatial_shape=shape,
        **more,
    )


class Plain:
    """A warper without parameters."""

    def interpolate(self, latents, idx):
        return latents, torch.ones_like(latents[:, :, 0])


def toy_text():
    models = build(PORT, ("token",), Setting())
    tokens = torch.zeros(1, 2, 24, 16)
    return models, lambda: models["token"](
        tokens, torch.ones(1, dtype=torch.long), tokens[..., :3], torch.zeros(1, 5, 12), (4, 6)
    )


def half_wan():
    setting = Setting(dtype=torch.bfloat16)
    models = build(PORT, ("wan", "projector"), setting)
    inputs = runs.inputs_wan(setting)
    tokens, shape = PORT.patches.patchify(inputs["latents"], PATCH)
    refiner = PORT.refiners.WanRefiner(models["wan"], inputs["text"], shape, PATCH, LEVELS, models["projector"])
    mask = torch.ones(2, 4, dtype=torch.bool)
    conf = mask.float()
    return models, lambda: refiner.delta(tokens, torch.ones(2, dtype=torch.long), mask, mask, conf, conf)


def half_matcher():
    model = PORT.sinkhorn.SinkhornWarpInterpolator(
        4, 2, 3, global_mode="none", proj_mode="linear", d_match=4
    ).bfloat16()
    latents, idx = torch.randn(1, 4, 4, 8, 12).bfloat16(), torch.tensor([[0, 3]])
    return (model,), lambda: model.interpolate(latents, idx)


def keypoints():
    model = PORT.denoisers.KeypointDenoiser(6, 16, 1, 2, 16, 8, maze_channels=(2, 2))
    return (model,), lambda: PORT.keypoints.sample_keypoints(
        model, torch.zeros(1, 2, 6), torch.tensor([[0, 7]]), 8, count=2, steps=10
    )


def anchored():
    values = torch.zeros(3, 3, 24, 16)
    return (), lambda: corrupted(anchor_values=values, anchor_idx=torch.tensor([[0, 3, 7]] * 3))


def optimiser():
    return (), lambda: PORT.training.AdamW(iter([torch.nn.Parameter(torch.zeros(2))]))


def adapted():
    from fixtures.interp.models import LORA, SLA, WAN

    def build_one():
        model = PORT.wan.build(**WAN)
        PORT.wan.adapt(model, SLA, LORA)
        return model

    checkpoint = build_one().state_dict()  # of a training, made in the right order

    def run():
        build_one().load_state_dict(checkpoint, strict=True)

    return (), run


RAISING = {
    "builder_without_warper": ((TypeError,), lambda: ((), lambda: corrupted(warper=Plain()))),
    "dtype_of_another_function": ((NameError,), lambda: ((), lambda: corrupted(warper=Plain()))),
    "validity_with_an_axis": ((RuntimeError, ValueError, IndexError), anchored),
    "warp_flow_uncast": ((RuntimeError,), half_matcher),
    "matcher_uncast": ((RuntimeError,), half_matcher),
    "smooth_kernel_uncast": (
        (RuntimeError,),
        lambda: ((), lambda: corrupted(PORT.corruption.Corruption(interp_mode="smooth"), dtype=torch.bfloat16)),
    ),
    "projector_of_first_parameter": ((RuntimeError,), half_wan),
    "adapters_in_attention": ((AttributeError,), toy_text),
    "known_mask_rebound": ((RuntimeError,), keypoints),
    "adapters_before_sla": ((RuntimeError,), adapted),
    "optimiser_exhausted": ((ValueError,), optimiser),
    "text_unpooled": ((RuntimeError,), toy_text),
}


@pytest.mark.parametrize("name", sorted(RAISING))
def test_a_crash_of_the_history_is_a_crash(name):
    errors, make = RAISING[name]
    models, run = make()
    modules = tuple(models.networks.values()) if hasattr(models, "networks") else models
    with torch.no_grad():
        run()
        with ExitStack() as stack:
            stack.enter_context(FAULTS[name].inject(Port(modules=modules)))
            with pytest.raises(errors):
                run()
        if name != "projector_of_first_parameter":  # the projector itself was cast
            run()


def test_every_crash_is_tried():
    assert set(RAISING) == set(NOT_BOUND)
