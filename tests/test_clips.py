"""Two clips: what is read, what is refused, which defects and mistakes are named, and on which clips nothing is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from parity.clips.compare import ClipComparison, Limits, compare_clips
from parity.clips.frames import Clip, frames_from_tensor, load_clip, write_clip
from parity.errors import ParityError

Frames = NDArray[np.uint8]
F, H, W = 13, 40, 56


def scene(frames: int = F, height: int = H, width: int = W, seed: int = 0) -> Frames:
    """A moving, textured, coloured scene that no flip, swap or shift leaves as it is."""
    generator = np.random.default_rng(seed)
    texture = generator.normal(0, 14, (height, width, 3))
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    red = 120 + 70 * np.sin((x + 3 * t) / 9)
    green = 90 + 50 * np.sin((y + 2 * t) / 7 + 1)
    blue = 60 + 1.5 * y + 20 * np.cos((x - y + t) / 11)
    return np.clip(np.stack([red, green, blue], -1) + texture, 2, 253).astype(np.uint8)


def noisy(frames: Frames, levels: float = 1.0) -> Frames:
    noise = np.random.default_rng(7).normal(0, levels, frames.shape)
    return np.clip(np.rint(frames + noise), 0, 255).astype(np.uint8)


def compare(reference: Frames, port: Frames, limits: Limits | None = None) -> ClipComparison:
    return compare_clips(Clip(reference), Clip(port), limits)


# reading


@pytest.mark.parametrize("name", ["clip.mkv", "clip.avi", "clip.npy", "folder"])
def test_lossless_round_trip(tmp_path: Path, name: str) -> None:
    frames = scene()
    write_clip(frames, tmp_path / name, fps=12)
    clip = load_clip(tmp_path / name)
    assert np.array_equal(clip.frames, frames)
    assert clip.size == (H, W)
    assert len(clip) == F
    if name.endswith(("mkv", "avi")):
        assert clip.fps == pytest.approx(12, rel=0.01)


def test_folder_is_read_in_natural_order(tmp_path: Path) -> None:
    from PIL import Image

    for number in (1, 2, 10, 11):
        Image.fromarray(np.full((8, 9, 3), number, np.uint8)).save(tmp_path / f"frame{number}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    assert load_clip(tmp_path).frames[:, 0, 0, 0].tolist() == [1, 2, 10, 11]


def test_grey_alpha_and_16_bit_images(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.full((8, 9), 77, np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.full((8, 9, 4), 77, np.uint8)).save(tmp_path / "b.png")
    Image.fromarray(np.full((8, 9), 77 * 257, np.uint16)).save(tmp_path / "c.png")
    clip = load_clip(tmp_path)
    assert clip.frames.shape == (3, 8, 9, 3)
    assert np.unique(clip.frames).tolist() == [77]


def test_safetensors_key(tmp_path: Path) -> None:
    file = tmp_path / "clip.safetensors"
    save_file({"outputs.video": torch.rand(1, 3, 5, 8, 10, dtype=torch.bfloat16), "noise": torch.zeros(3)}, file)
    assert load_clip(file, key="outputs.video").frames.shape == (5, 8, 10, 3)
    with pytest.raises(ParityError, match=r"holds 2 tensors; name one: noise, outputs\.video"):
        load_clip(file)
    with pytest.raises(ParityError, match="no tensor 'video'; it holds noise"):
        load_clip(file, key="video")


def hostile_files(folder: Path) -> dict[str, str]:
    """Write one bad input per name; return the words that its message must hold."""
    from PIL import Image

    frames = scene(8)
    write_clip(frames, folder / "whole.mkv")
    whole = (folder / "whole.mkv").read_bytes()
    (folder / "truncated.mkv").write_bytes(whole[: len(whole) // 2])
    (folder / "header_only.mkv").write_bytes(whole[:300])
    (folder / "noise.mp4").write_bytes(bytes(range(256)) * 8)
    (folder / "empty.mp4").write_bytes(b"")
    np.save(folder / "objects.npy", np.array([{"a": 1}], object), allow_pickle=True)
    np.save(folder / "no_frames.npy", np.zeros((0, 8, 8, 3), np.uint8))
    np.save(folder / "flat.npy", np.zeros((8, 8), np.uint8))
    np.save(folder / "text.npy", np.array(["a", "b"]))
    np.save(folder / "whole.npy", frames)
    (folder / "truncated.npy").write_bytes((folder / "whole.npy").read_bytes()[:-99])
    (folder / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    (folder / "no_images").mkdir()
    (folder / "sizes").mkdir()
    Image.fromarray(frames[0]).save(folder / "sizes" / "1.png")
    Image.fromarray(frames[0, :20]).save(folder / "sizes" / "2.png")
    (folder / "cut").mkdir()
    write_clip(frames[:2], folder / "cut")
    cut = folder / "cut" / "00001.png"
    cut.write_bytes(cut.read_bytes()[:700])
    return {
        "missing.mp4": "there is no such file",
        "truncated.mkv": "truncated|broken",
        "header_only.mkv": "not a whole video|truncated|no frame",
        "noise.mp4": "not a whole video, broken at its start",
        "empty.mp4": "empty",
        "objects.npy": "not a plain .npy",
        "no_frames.npy": "it holds no frame",
        "flat.npy": r"\[8, 8\] to frames: no axis holds 3, 1 or 4 channels",
        "text.npy": "does not hold one array of numbers",
        "truncated.npy": "truncated or not a plain .npy",
        "broken.safetensors": "truncated or not safetensors",
        "no_images": "holds no image",
        "sizes": r"2\.png is 56x20, but 1\.png is 56x40",
        "cut": r"00001\.png: truncated or not an image",
    }


def test_bad_inputs_are_refused_in_one_line(tmp_path: Path) -> None:
    wanted = hostile_files(tmp_path)
    for name, words in wanted.items():
        with pytest.raises(ParityError, match=words) as caught:
            load_clip(tmp_path / name)
        message = str(caught.value)
        assert "\n" not in message
        assert name.split("/")[0] in message
        assert len(message) < 400
    assert len(load_clip(tmp_path / "whole.mkv")) == 8


def test_write_refuses_what_it_cannot_keep(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"unknown suffix \.mp4"):
        write_clip(scene(2), tmp_path / "clip.mp4")
    with pytest.raises(ParityError, match="expected uint8"):
        write_clip(scene(2).astype(np.float32), tmp_path / "clip.npy")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


# tensors


@pytest.mark.parametrize(
    "layout",
    ["f c h w", "c f h w", "f h w c", "b c f h w", "b f c h w", "b f h w c"],
)
def test_layouts(layout: str) -> None:
    from einops import rearrange

    frames = scene(5)
    tensor = rearrange(
        torch.from_numpy(frames).unsqueeze(0),
        f"b f h w c -> {layout if 'b' in layout else f'(b {layout[0]}) {layout[2:]}'}",
    )
    assert np.array_equal(frames_from_tensor(tensor).frames, frames)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 1.0), (0.0, 255.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float_ranges_are_recognised(low: float, high: float, dtype: torch.dtype) -> None:
    frames = scene(4)
    values = torch.from_numpy(frames).to(dtype).permute(0, 3, 1, 2) / 255 * (high - low) + low
    clip = frames_from_tensor(values)
    assert clip.value_range == (low, high)
    assert np.array_equal(clip.frames, frames)
    assert np.array_equal(frames_from_tensor(values, (low, high)).frames, frames)


def test_nonfinite_values_are_counted_and_drawn_black() -> None:
    values = torch.rand(4, 3, 8, 10)
    values[2, 0, 3] = torch.nan
    values[2, 1, 0, 0] = torch.inf
    clip = frames_from_tensor(values, (0, 1))
    assert clip.nonfinite is not None
    assert clip.nonfinite.tolist() == [0, 0, 11, 0]
    assert clip.frames[2, 3, :, 0].max() == 0
    assert clip.frames[2, 0, 0, 1] == 0
    assert "11 values are NaN or Inf, in 1 frames" in " ".join(clip.notes)


def test_all_nan_is_still_a_clip() -> None:
    clip = frames_from_tensor(torch.full((3, 3, 8, 8), torch.nan))
    assert clip.nonfinite is not None
    assert clip.nonfinite.tolist() == [192] * 3
    assert clip.frames.max() == 0


def test_values_outside_the_range_are_noted() -> None:
    values = torch.full((1, 3, 8, 8), 0.5)
    values[0, 0] = 1.3
    assert "33.33% of the values lie outside [0, 1]" in " ".join(frames_from_tensor(values, (0, 1)).notes)


def test_batches_and_ambiguous_layouts_are_noted() -> None:
    clip = frames_from_tensor(torch.zeros(2, 3, 4, 8, 9, dtype=torch.uint8))
    assert clip.frames.shape == (8, 8, 9, 3)
    assert clip.notes == ("2 clips of a batch are laid end to end",)
    assert "ambiguous (FHWC, FCHW); read as FHWC" in frames_from_tensor(np.zeros((4, 3, 8, 3), np.uint8)).notes[0]


def test_empty_range_is_refused() -> None:
    with pytest.raises(ParityError, match="value range"):
        frames_from_tensor(torch.rand(1, 3, 8, 8), (1.0, 1.0))


# comparing: silence


@pytest.mark.parametrize(
    "port",
    [scene(), noisy(scene()), noisy(scene(), 2.5)],
    ids=["equal", "rounding", "codec"],
)
def test_right_ports_match(port: Frames) -> None:
    result = compare(scene(), port)
    assert result.verdict == "match"
    assert result.first_bad is None
    assert result.hints == ()
    assert result.reasons == ()


def test_equal_clips_have_perfect_figures() -> None:
    result = compare(scene(), scene())
    assert np.isinf(result.psnr).all()
    assert (result.ssim == 1).all()
    assert result.max_abs.max() == 0


@pytest.mark.parametrize("content", ["still", "black", "white", "green", "fade"])
def test_legitimate_scenes_are_no_defect(content: str) -> None:
    frames = scene()
    if content == "still":
        frames[:] = frames[0]
    elif content == "fade":
        frames = (frames * np.linspace(0, 1, F)[:, None, None, None]).astype(np.uint8)
    else:
        frames[4:8] = {"black": (0, 0, 0), "white": (255, 255, 255), "green": (10, 160, 10)}[content]
    result = compare(frames, noisy(frames))
    assert result.verdict == "match", result.reasons


# comparing: defects


def flagged(result: ClipComparison, name: str) -> list[int]:
    return [int(i) for i in np.flatnonzero(getattr(result.port_defects, name))]


@pytest.mark.parametrize(
    ("name", "colour"),
    [("black", (0, 0, 0)), ("white", (255, 255, 255)), ("green", (0, 135, 0)), ("blank", (120, 90, 60))],
)
def test_uniform_frames(name: str, colour: tuple[int, int, int]) -> None:
    port = scene()
    port[5:7] = colour
    result = compare(scene(), port)
    assert flagged(result, name) == [5, 6]
    assert result.first_bad == 5
    assert f"the port's frame is {name}" in result.reasons
    assert not getattr(result.reference_defects, name).any()


def test_frozen_frames() -> None:
    port = scene()
    port[6:] = port[5]
    result = compare(scene(), port)
    assert flagged(result, "frozen") == list(range(6, F))
    assert result.first_bad == 6
    assert not result.reference_defects.frozen.any()


def test_a_cut_on_one_side_does_not_freeze_the_other() -> None:
    port = scene()
    port[8] = 0
    result = compare(scene(), port)
    assert not result.reference_defects.frozen.any()
    assert flagged(result, "frozen") == []


def test_flicker() -> None:
    port = scene().astype(np.int16)
    port[7] += 12
    result = compare(scene(), np.clip(port, 0, 255).astype(np.uint8))
    assert 7 in flagged(result, "flicker")
    assert set(flagged(result, "flicker")) <= {6, 7, 8}
    assert result.first_bad in (6, 7)


def test_saturation() -> None:
    port = np.clip(scene().astype(np.int16) * 3 - 255, 0, 255).astype(np.uint8)
    assert flagged(compare(scene(), port), "saturated") == list(range(F))


def test_nonfinite_source() -> None:
    values = torch.from_numpy(scene()).permute(0, 3, 1, 2).float() / 127.5 - 1
    broken = values.clone()
    broken[9, 0, 0, 0] = torch.nan
    result = compare_clips(frames_from_tensor(values), frames_from_tensor(broken))
    assert result.first_bad == 9
    assert result.reasons[0] == "the port's frame is nonfinite"


def test_one_bad_patch_is_seen() -> None:
    port = scene()
    port[4, 16:32, 16:32] = 255 - port[4, 16:32, 16:32]
    result = compare(scene(F, 240, 320), scene(F, 240, 320))
    assert result.verdict == "match"
    big = scene(3, 240, 320)
    patched = big.copy()
    patched[1, 100:116, 30:46] = 255 - patched[1, 100:116, 30:46]
    result = compare(big, patched, Limits(psnr=25, ssim=0.9))
    assert result.first_bad == 1
    assert "worst 16x16 block" in result.reasons[0]


# comparing: hints


@pytest.mark.parametrize("shift", [-3, -1, 1, 2, 5])
def test_frame_shift(shift: int) -> None:
    whole = scene(30)
    result = compare(whole[6:20], whole[6 - shift : 20 - shift])
    assert result.shift == shift
    assert f"frame i{shift:+d} shows the reference's frame i" in result.hints[0]


def test_a_shift_that_begins_late_is_named() -> None:
    port = scene(20)
    port[8:] = scene(20)[7:19]
    result = compare(scene(20), port)
    assert result.first_bad == 8
    assert result.shift == 1


def test_broken_frames_are_no_shift() -> None:
    """Leaving the last frames out makes any shift look better on average."""
    port = scene()
    port[6:10] = np.roll(port[6:10], 5, axis=2)
    port[10:12] = 0
    assert compare(scene(), port).shift == 0


@pytest.mark.parametrize(("reference", "port", "name"), [(9, 12, "port"), (12, 9, "reference"), (17, 24, "port")])
def test_first_frame_of_a_causal_vae(reference: int, port: int, name: str) -> None:
    whole = scene(24)
    result = compare(whole[:reference], whole[:port])
    assert result.verdict == "diverged"
    assert f"the {name} decodes" in result.hints[1]
    assert "(V1)" in result.hints[1]


def test_other_frame_counts_do_not_blame_the_vae() -> None:
    result = compare(scene(24)[:10], scene(24)[:12])
    assert result.verdict == "diverged"
    assert result.first_bad is None
    assert result.hints == ("the frame counts differ: 10 in the reference, 12 in the port",)


def transformed(name: str) -> Frames:
    frames = scene()
    levels = frames.astype(np.float32)
    return {
        "bgr": frames[..., ::-1],
        "gbr": frames[..., [1, 2, 0]],
        "upside down": frames[:, ::-1],
        "mirrored": frames[:, :, ::-1],
        "backwards": frames[::-1],
        "washed": np.rint(levels / 2 + 127.5),
        "clipped": np.rint(np.clip(2 * levels - 255, 0, 255)),
        "limited": np.rint(levels * 219 / 255 + 16),
        "inverted": 255 - levels,
        "dimmer": np.rint(levels * 0.7 + 5),
    }[name].astype(np.uint8)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bgr", "red and blue are swapped"),
        ("gbr", "colour channels are permuted"),
        ("upside down", "upside down"),
        ("mirrored", "mirrored"),
        ("backwards", "run backwards"),
        ("washed", "[0, 1] values are read as [-1, 1]"),
        ("clipped", "[-1, 1] values are read as [0, 1]"),
        ("limited", "limited (TV) range"),
        ("inverted", "inverted"),
        ("dimmer", "port = 0.70"),
    ],
)
def test_whole_clip_mistakes(name: str, words: str) -> None:
    result = compare(scene(), noisy(transformed(name)))
    assert result.verdict == "diverged"
    assert len(result.hints) == 1, result.hints
    assert words in result.hints[0]


def test_a_mistake_that_begins_late_is_named() -> None:
    port = scene()
    port[8:] = port[8:, :, :, ::-1]
    result = compare(scene(), port)
    assert result.first_bad == 8
    assert result.hints == ("red and blue are swapped (BGR written as RGB)",)


def test_unrelated_clips_are_not_explained() -> None:
    result = compare(scene(), np.random.default_rng(3).integers(0, 256, (F, H, W, 3), np.uint8))
    assert result.verdict == "diverged"
    assert result.hints == ()


def test_ranges_that_differ_between_the_sides_are_said() -> None:
    values = torch.from_numpy(scene()).permute(0, 3, 1, 2).float() / 255
    result = compare_clips(frames_from_tensor(values * 2 - 1), frames_from_tensor(values))
    assert result.verdict == "match"
    assert "the reference was read as [-1, 1], the port as [0, 1]" in result.hints[0]


def test_sizes_that_differ_are_incomparable() -> None:
    result = compare(scene(), scene(F, 20, 56))
    assert result.verdict == "incomparable"
    assert result.hints == ("the picture sizes differ: 56x40 against 56x20",)
    assert len(result.psnr) == 0


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 9), (5, 3), (17, 33)])
@pytest.mark.parametrize("frames", [1, 2])
def test_small_clips(frames: int, height: int, width: int) -> None:
    small = scene(frames, height, width)
    assert compare(small, small).verdict == "match"
    assert compare(small, 255 - small).verdict == "diverged"


def test_lines_say_what_was_found() -> None:
    port = scene()
    port[5:7] = 0
    lines = compare(scene(), port).lines()
    assert lines[0] == "diverged: 13 frames of 56x40 (reference), 13 of 56x40 (port)"
    assert lines[1].startswith("PSNR 7.5")
    assert lines[1].endswith("at worst, 1 in the middle; bad frames: 5-6")
    assert lines[2].startswith("first bad frame: 5 (the port's frame is blank; the port's frame is black; PSNR")
    assert lines[3] == "port: blank 5-6; black 5-6; frozen 6"
    assert len(lines) == 4
    assert compare(scene(), scene()).lines()[1] == (
        "PSNR inf dB at worst, inf dB in the middle; SSIM 1 at worst, 1 in the middle; bad frames: none"
    )
    assert compare(scene(), scene(F, 20, 56)).lines()[-1] == "hint: the picture sizes differ: 56x40 against 56x20"


def test_json_is_plain() -> None:
    import json

    port = scene()
    port[5] = 0
    values = json.loads(json.dumps(compare(scene(), port).to_json(), allow_nan=False))
    assert values["verdict"] == "diverged"
    assert values["first_bad"] == 5
    assert values["psnr"][0] == "inf"
    assert values["defects"]["port"]["black"] == [5]
    assert values["defects"]["reference"] == {}
