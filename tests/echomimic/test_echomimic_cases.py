"""The cases of EchoMimicV2 and its faults: bound completely, and right where nothing is wrong."""

import pytest
import torch

from fixtures.echomimic.case import CASES, SYSTEM
from fixtures.echomimic.models import Build, build_port, build_reference
from fixtures.echomimic.models_runs import pose_inputs
from parity.case import Setting
from parity.pipeline import run_case
from ported.echomimic import pipeline, poses, quantise, windows
from ported.echomimic.faults import FAULTS, in_state
from ported.echomimic.settings import STATES

LIGHT = ("poses", "files")


def test_every_fault_of_the_port_is_bound_to_a_case():
    assert {fault.name for fault in SYSTEM.faults} == set(FAULTS)
    assert {fault.spec_id for fault in SYSTEM.faults} == {f"B{i:02d}" for i in range(1, 36)}
    names = {case.name for case in CASES}
    assert {fault.case for fault in SYSTEM.faults} <= names
    assert {variation.case for variation in SYSTEM.variations} <= names
    assert len(SYSTEM.variations) >= 20


def test_both_sides_have_the_same_weights():
    setting = Setting(torch.float16)
    wanted = Build(amplified=True, small_rows=True)
    reference, port = build_reference(wanted, setting), build_port(wanted, setting)
    for prefix, module in reference.modules().items():
        mine, theirs = module.state_dict(), port.modules()[prefix].state_dict()
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) or key.endswith(".pe") for key in mine)


@pytest.mark.parametrize("name", LIGHT)
def test_a_right_port_matches(name):
    result, _ = run_case(SYSTEM.case(name), Setting())
    assert result.verdict == "match"


@pytest.mark.parametrize("fault", [f for f in SYSTEM.faults if f.case in LIGHT], ids=lambda fault: fault.name)
def test_a_light_fault_is_found_at_its_place(fault):
    import re

    result, _ = run_case(SYSTEM.case(fault.case), Setting(), fault=fault)
    assert result.verdict == "diverged"
    assert re.fullmatch(fault.expect.site, result.first.site)


def test_faults_leave_nothing_behind():
    setting = Setting()
    port = build_port(Build(int8=("vae", "reference_unet", "denoising_unet")), setting)
    before = {name: id(value) for owner in (pipeline, poses) for name, value in vars(owner).items()}
    classes = [type(module) for part in port.networks.parts().values() for module in part.modules()]
    state = {k: v.clone() for part in port.networks.parts().values() for k, v in part.state_dict().items()}
    for fault in FAULTS.values():
        with fault.inject(port.networks):
            pass
    assert before == {name: id(value) for owner in (pipeline, poses) for name, value in vars(owner).items()}
    assert classes == [type(module) for part in port.networks.parts().values() for module in part.modules()]
    after = {k: v for part in port.networks.parts().values() for k, v in part.state_dict().items()}
    assert all(torch.equal(value, after[key]) for key, value in state.items())


@pytest.mark.parametrize("name", STATES)
def test_a_published_state_is_a_set_of_faults(name):
    port = build_port(Build(int8=("vae", "reference_unet", "denoising_unet")), Setting())
    with in_state(name, port.networks):
        drawn = poses.draw_maps([poses.Pose(*pose_of())], 72, 56) if name == "B" else None
    assert drawn is None or drawn.shape == (1, 56, 72, 3)
    assert set(STATES[name].faults) <= set(FAULTS)


def pose_of():
    """A drawing that lies partly outside its canvas."""
    inputs = pose_inputs(Setting())
    return inputs.hands[2].numpy(), inputs.scores[2].numpy(), tuple(inputs.params[2].tolist())


def test_small_rows_lose_their_levels_in_half_precision():
    weight = torch.full((1, 4), 1e-3, dtype=torch.float16) * torch.tensor([1.0, 0.5, 0.25, 0.0], dtype=torch.float16)
    exact, _ = quantise.levels(weight)
    broken, _ = quantise.levels(weight, exact=False)
    assert exact.tolist() == [[127, 64, 32, 0]]
    assert broken.tolist() == [[127, 127, 127, 0]]


def test_windows_wrap_around():
    assert windows.closed_windows(13, 12, 3)[1] == [9, 10, 11, 12, 0, 1, 2, 3, 4, 5, 6, 7]
