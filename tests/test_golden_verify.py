"""`parity golden verify` on wrong files: one clear line, and the exit status that says what kind of wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from parity.cli import main

ROOT = Path(__file__).parents[1]
CASES = ROOT / "fixtures/waypoint"
SESSION, SCHEDULE = (CASES / "golden" / f"{name}.safetensors" for name in ("session", "kv_schedule"))
WEIGHT = "weights.transformer.blocks.1.mlp.fc1.weight"


def rewrite(source, path, change):
    """Write a copy of a golden to which change(tensors, metadata) was done."""
    with safe_open(source, "pt") as file:
        metadata = dict(file.metadata())
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 (no mapping)
    change(tensors, metadata)
    save_file(tensors, path, metadata)
    return path


@pytest.fixture
def verify(monkeypatch, capsys):
    """Run the command; returns its exit status and the lines that it printed."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["parity", "golden", "verify", "--cases", str(CASES), *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        assert "Traceback" not in printed.out + printed.err
        return stop.value.code, (printed.out + printed.err).strip().splitlines()

    return run


def set_config(**values):
    def change(tensors, metadata):
        metadata["config"] = json.dumps({**json.loads(metadata["config"]), **values})

    return change


def drop_config(key):
    def change(tensors, metadata):
        metadata["config"] = json.dumps({k: v for k, v in json.loads(metadata["config"]).items() if k != key})

    return change


def set_metadata(**values):
    return lambda tensors, metadata: metadata.update(values)


def set_tensor(name, value):
    return lambda tensors, metadata: tensors.update({name: value})


def drop(name):
    return lambda tensors, metadata: tensors.pop(name)


UNUSABLE = {
    "missing weight": (drop(WEIGHT), ["missing", WEIGHT.removeprefix("weights.")]),
    "unexpected weight": (set_tensor("weights.extra.weight", torch.zeros(3)), ["unexpected", "extra.weight", "[3]"]),
    "weight of another shape": (set_tensor(WEIGHT, torch.zeros(2, 2)), ["[2, 2]", "expected", "[128, 64]"]),
    "unknown config key": (set_config(rotary_base=500), ["unknown keys ['rotary_base']"]),
    "missing config key": (drop_config("local_window"), ["missing keys ['local_window']"]),
    "impossible config": (set_config(tokens_per_frame=17), ["tokens_per_frame 17", "height*width 16"]),
    "config of another type": (set_config(n_layers="three"), ["config, weights or inputs do not fit"]),
    "config no JSON": (set_metadata(config="{d_model: 64"), ["config is no JSON"]),
    "config no object": (set_metadata(config="[1]"), ["config is no JSON object"]),
    "unknown entry": (set_metadata(entry="dream"), ["no golden entry 'dream'", "session", "frames"]),
    "unknown side": (set_metadata(side="port"), ["'session' for side 'port'"]),
    "unknown system": (set_metadata(system="cosmos"), ["'cosmos'", "waypoint"]),
    "unknown dtype": (set_metadata(dtype="int4"), ["unknown dtype 'int4'"]),
    "no entry": (lambda tensors, metadata: metadata.pop("entry"), ["no 'entry'"]),
    "missing input": (drop("inputs.noise"), ["inputs.noise is missing"]),
    "input of another shape": (set_tensor("inputs.mouse", torch.zeros(5, 3)), ["inputs.mouse", "[5, 3]", "[5, 2]"]),
    "half-pressed button": (set_tensor("inputs.button", torch.full((5, 8), 0.5)), ["inputs.button", "0 and 1"]),
    "too few frames": (set_tensor("inputs.noise", torch.zeros(3, 1, 1, 4, 8, 8)), ["3 frames", "needs 4"]),
    "stray key": (set_tensor("notes.text", torch.zeros(1)), ["unknown key 'notes.text'"]),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_unusable_file_is_one_line_and_status_2(tmp_path, verify, name):
    change, words = UNUSABLE[name]
    status, lines = verify(rewrite(SESSION, tmp_path / "bad.safetensors", change))
    assert status == 2
    assert len(lines) == 1
    assert lines[0].startswith("error  bad.safetensors: ")
    for word in words:
        assert word in lines[0]


def test_truncated_files(tmp_path, verify):
    """Cut anywhere: in the header, in the data, to nothing."""
    whole = SCHEDULE.read_bytes()
    for size in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        bad = tmp_path / f"cut{size}.safetensors"
        bad.write_bytes(whole[:size])
        status, lines = verify(bad)
        assert (status, len(lines)) == (2, 1)
        assert "no whole safetensors file" in lines[0]


@pytest.mark.parametrize("name", ["absent.safetensors", "."])
def test_a_path_that_is_no_file(tmp_path, verify, name):
    status, lines = verify(tmp_path / name)
    assert (status, len(lines)) == (2, 1)
    assert lines[0].startswith("error")


def test_a_corrupted_weight_is_a_mismatch(tmp_path, verify):
    """A weight of layer 1's MLP a percent off: after the append layers 0 and 1 have right caches, layer 2 has not."""

    def change(tensors, metadata):
        tensors[WEIGHT][0] *= 1.01

    status, lines = verify(rewrite(SESSION, tmp_path / "bad.safetensors", change))
    text = "\n".join(lines)
    assert status == 1
    assert lines[0].startswith("FAILED bad.safetensors: waypoint/session (reference), 10 values, worst ")
    assert "acts.after_append.layers.2.kv" in text
    assert "outputs.latents:" in text
    assert "layers.0.kv" not in text
    assert "layers.1.kv" not in text


def test_changed_values_are_mismatches(tmp_path, verify):
    """One element of a large tensor, an integer, a shape: each says what is wrong, and nothing else fails."""

    def change(tensors, metadata):
        tensors["outputs.latents"].view(-1)[7] += 1.0
        tensors["acts.after_append.frame_ts"] += 4
        tensors["acts.after_reset.frame_ts"] = torch.zeros(2, 3)

    status, lines = verify(rewrite(SESSION, tmp_path / "bad.safetensors", change))
    assert (status, len(lines)) == (1, 4)
    details = {line.split(":")[0].strip(): line for line in lines[1:]}
    assert "max abs 1.0" in details["outputs.latents"]
    assert "100.00% of the elements differ" in details["acts.after_append.frame_ts"]
    assert "shape [2, 3] in the file, [1, 1] computed" in details["acts.after_reset.frame_ts"]


def test_values_that_cannot_be_produced_fail(tmp_path, verify):
    """Another frame, another layer, an output of no name."""
    names = ["acts.out_norm.f99s0", "acts.transformer.blocks.7.f01s0", "outputs.frames"]

    def change(tensors, metadata):
        tensors.update({name: torch.zeros(1) for name in names})

    status, lines = verify(rewrite(SESSION, tmp_path / "bad.safetensors", change))
    assert status == 1
    assert lines[0].startswith("FAILED")
    assert "3 NOT PRODUCED" in lines[0]
    assert sorted(line.strip() for line in lines[1:]) == [f"not produced: {name}" for name in names]


def test_a_file_without_expectations_is_no_match(tmp_path, verify):
    def change(tensors, metadata):
        for name in [n for n in tensors if n.startswith(("acts.", "outputs."))]:
            del tensors[name]

    status, lines = verify(rewrite(SESSION, tmp_path / "bad.safetensors", change))
    assert status == 1
    assert "0 values" in lines[0]


def test_the_worst_of_several_files_decides(tmp_path, verify):
    entry = rewrite(SCHEDULE, tmp_path / "entry.safetensors", set_metadata(entry="dream"))
    wrong = rewrite(SCHEDULE, tmp_path / "wrong.safetensors", lambda t, m: t["outputs.local3.visible"].logical_not_())
    assert verify(SCHEDULE)[0] == 0
    assert verify(SCHEDULE, wrong)[0] == 1
    status, lines = verify(entry, SCHEDULE, wrong, "--json", tmp_path / "result.json")
    assert status == 2
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == ["error", "ok", "FAILED"]
    result = json.loads((tmp_path / "result.json").read_text())
    assert [file["ok"] for file in result["files"]] == [False, True, False]
    assert result["ok"] is False


def test_omissions_are_counted_and_explained(verify):
    status, lines = verify(CASES / "golden/units.safetensors", "-v")
    assert status == 0
    assert lines[0].endswith("1 omitted with reason")
    assert "its input is not in the file" in lines[1]


def test_the_command_itself(tmp_path):
    """As a process: the status is real, and nothing but one line a file is printed."""
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(SCHEDULE.read_bytes()[:-9])
    command = [sys.executable, "-m", "parity.cli", "golden", "verify", "--cases", str(CASES)]
    done = subprocess.run([*command, str(cut), str(SCHEDULE)], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "")
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        ["error", "cut.safetensors:"],
        ["ok", "kv_schedule.safetensors:"],
    ]
