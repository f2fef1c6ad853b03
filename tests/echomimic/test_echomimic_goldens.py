"""Goldens of EchoMimicV2: the recorded files, by the reference and by the port."""

from pathlib import Path

import pytest
import torch

from fixtures.echomimic.goldens import GOLDENS
from fixtures.echomimic.goldens_pipeline import MICRO_POSE, MICRO_VAE
from fixtures.echomimic.goldens_recording import UNET_KEYS, below
from parity.case import System
from parity.lab.golden import read_golden, verify_golden
from ported.echomimic import quantise
from ported.echomimic.build import build_networks
from ported.echomimic.nonfinite import NonFiniteError
from ported.echomimic.pipeline import animate
from ported.echomimic.settings import Settings

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "fixtures/echomimic/golden"
SHARED = ROOT.parent / "shared/goldens/echomimic"
SYSTEMS = {"echomimic": System("echomimic", "", (), goldens=GOLDENS)}
OTHERS = [path for path in sorted(SHARED.glob("*.safetensors")) if not (GOLDEN / path.name).exists()]


def check(path):
    report = verify_golden(path, SYSTEMS)
    failed = [f"{c.name} {c.relative:.1e} {c.detail}" for c in report.checks if not c.ok]
    assert report.ok, f"{path.name}: failed {failed[:5]}, not produced {report.missing[:5]}"


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.safetensors")), ids=lambda path: path.stem)
def test_reference_reproduces_the_recorded_file(path):
    check(path)


@pytest.mark.skipif(not OTHERS, reason="NOT RUN: no folder shared/goldens/echomimic beside the checkout")
@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.stem)
def test_reference_reproduces_the_rest_of_the_set(path):
    check(path)


@pytest.fixture(scope="module")
def blank():
    return read_golden(GOLDEN / "pipeline_acc_fp16_int8_blank.safetensors")


def port_frames(golden, order=None, nonfinite="fail"):
    """Run the port on a recorded request, with its denoiser quantised in float16 where `order` says so."""
    config = golden.config
    unet = {name: config[name] for name in UNET_KEYS}
    configs = {"reference_unet": unet, "denoising_unet": unet, "vae": MICRO_VAE, "pose_encoder": MICRO_POSE}
    states = {name: below(golden.weights, f"{name}.") for name in configs}
    networks = build_networks(configs, states, torch.float16)
    if order:
        quantise.quantise(networks.denoising_unet, order, exact=False)
    settings = Settings(
        width=config["width"],
        height=config["height"],
        length=config["video_length"],
        steps=config["steps"],
        cfg=config["guidance_scale"],
        seed=config["seed"],
        nonfinite=nonfinite,
    )
    inputs = golden.inputs
    return animate(
        networks, inputs["ref_image_u8"], inputs["whisper_features"].float(), inputs["pose_maps_u8"], settings
    )


@pytest.mark.parametrize(("order", "name"), [(None, "fp16"), ("fp32", "int8_mm32")])
def test_port_gives_the_recorded_picture(blank, order, name):
    frames = torch.from_numpy(port_frames(blank, order).frames)
    difference = (frames.int() - blank.outputs[f"frames_u8.{name}"].int()).abs()
    assert difference.max() <= 2
    assert frames.float().mean() > 50


def test_port_fails_with_the_first_operation(blank):
    with pytest.raises(NonFiniteError, match=r"down_blocks\.0\.motion_modules\.0\.temporal_transformer\.proj_out") as e:
        port_frames(blank, "after")
    finding = e.value.finding
    assert (finding.stage, finding.step, finding.window) == ("denoising_unet", 0, 0)
    assert "before its scale" in finding.term
    assert finding.input_max < 65504


def test_port_says_what_it_cleaned(blank):
    done = port_frames(blank, "after", nonfinite="clean")
    assert (done.frames == 0).all()
    assert done.cleaned == done.video.numel()
    assert done.nonfinite.module.endswith("motion_modules.0.temporal_transformer.proj_out")
