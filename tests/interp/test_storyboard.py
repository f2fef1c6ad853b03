"""Storyboard to video: what the files say, what is kept, and that a short training run beats interpolation."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from ported.interp.__main__ import main
from ported.interp.storyboard import load_run, make_board, refine_board, save_run
from ported.interp.toy_training import Budget, Run, Shape, compare, make_model, train

TINY = Shape(d_model=32, d_ff=64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "keys"
    made.mkdir()
    for i in range(3):
        pixels = np.random.RandomState(i).randint(0, 256, (16, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(made / f"k{i}.png")
    return made


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = make_model(TINY)
    torch.nn.init.normal_(model.out.weight, std=0.05)
    save_run(Run(model.eval(), TINY), tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def test_a_short_training_run_beats_interpolation_on_clips_it_has_not_seen():
    run = train(Shape(), Budget(steps=100, batch=10, lr=5e-3))
    plain, refined = compare(run)
    assert refined < 0.97 * plain
    assert sum(run.losses[-25:]) < sum(run.losses[:25])
    untrained = compare(Run(make_model(TINY), TINY), count=4)
    assert untrained[0] == pytest.approx(untrained[1], rel=1e-6)  # it starts as the interpolation


def test_the_same_seed_gives_the_same_losses():
    one, two = (train(TINY, Budget(steps=2, batch=2, seed=3)).losses for _ in range(2))
    assert one == two
    assert train(TINY, Budget(steps=2, batch=2, seed=4)).losses != one


def test_keyframes_come_back_bit_for_bit_and_frames_between_are_refined(weights: Path):
    run = load_run(weights)
    pictures = torch.randint(0, 256, (3, 16, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    board = make_board(pictures, 11, (0, 3, 10), TINY.patch_size)
    clip, plain = refine_board(run, board), refine_board(run, board, plain=True)
    assert clip.shape == (11, 16, 24, 3)
    assert torch.equal(clip[[0, 3, 10]], pictures)
    assert torch.equal(plain[[0, 3, 10]], pictures)
    assert not torch.equal(clip, plain)
    halfway = (pictures[0].float() * 2 + pictures[1].float()) / 3
    assert (plain[1].float() - halfway).abs().max() <= 0.51


def test_the_command_writes_a_clip_that_plays(folder: Path, weights: Path, tmp_path: Path, capsys):
    out = tmp_path / "clip.mp4"
    assert (
        main(["--keyframes", str(folder), "--out", str(out), "--frames", "9", "--fps", "5", "--weights", str(weights)])
        == 0
    )
    assert "9 frames of 24x16, keyframes at 0, 4, 8" in capsys.readouterr().out
    with av.open(str(out)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 5
    assert len(frames) == 9
    assert frames[0].shape == (16, 24, 3)


def test_the_tiny_weights_are_there(folder: Path, tmp_path: Path):
    assert main(["--keyframes", str(folder), "--out", str(tmp_path / "clip.mp4"), "--size", "32x16"]) == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--keyframes", "nowhere"], "no such folder"),
        (["--frames", "2"], "2 frames for 3 keyframes"),
        (["--at", "0,5"], "2 places for 3 keyframes"),
        (["--at", "0,9,5"], "must ascend"),
        (["--at", "1,5,15"], "the first must be 0 and the last 15"),
        (["--size", "25x16"], "multiples of 4"),
        (["--size", "512x512"], "patches"),
        (["--weights", "nothing.safetensors"], "no such file"),
        (["--weights", "{folder}/k0.png"], "weights"),
        (["--out", "nowhere/clip.mp4"], "folder does not exist"),
        (["--fps", "0"], "at least 2 and 1"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(more, said, folder: Path, weights: Path, tmp_path: Path, capsys):
    given = {"--keyframes": str(folder), "--out": str(tmp_path / "clip.mp4"), "--weights": str(weights)}
    given |= {more[0]: more[1].replace("{folder}", str(folder))}
    assert main([part for pair in given.items() for part in pair]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "clip.mp4").exists()


@pytest.mark.parametrize("bad", ["empty", "broken", "sizes"])
def test_bad_pictures_are_named(bad, folder: Path, weights: Path, tmp_path: Path, capsys):
    for path in folder.iterdir():
        if bad == "empty":
            path.unlink()
    if bad == "broken":
        (folder / "k1.png").write_bytes(b"no picture")
    if bad == "sizes":
        Image.new("RGB", (8, 8)).save(folder / "k1.png")
    assert main(["--keyframes", str(folder), "--out", str(tmp_path / "c.mp4"), "--weights", str(weights)]) == 2
    assert {"empty": "0 pictures", "broken": "k1.png", "sizes": "k1.png is 8x8"}[bad] in capsys.readouterr().err
