"""The API server over real HTTP with real files: clips, crowds, refusals, restarts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import echomimic_server_kit as kit
import httpx
import numpy as np
import pytest
import torch

from ported.echomimic.files import read_facts
from ported.echomimic.server.loading import PARTS, missing_files
from ported.echomimic.tiny import tiny_networks

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    return kit.make_service(tmp_path_factory.mktemp("service"))


@pytest.fixture(scope="module")
def url(service):
    with kit.serving(service) as url:
        yield url


def test_a_clip_with_sound_comes_back_and_plays(url: str, tmp_path: Path):
    answer = kit.send(url)
    assert answer.status_code == 202
    job = kit.finished(url, answer.json()["job_id"])
    assert (job["status"], job["progress"], job["error"], job["nonfinite"]) == ("completed", 100, None, None)
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(httpx.get(url + job["video_url"]).content)
    facts = read_facts(clip)
    assert (facts.frames, facts.width, facts.height, facts.fps) == (job["total_frames"], 64, 64, 8)
    assert facts.audio_seconds == pytest.approx(job["video_duration"], abs=0.2)
    assert facts.brightest > 24
    assert job["file_size_bytes"] == clip.stat().st_size


def test_twenty_at_once_lose_nothing_and_mix_nothing(url: str):
    """Two requests with four seeds each, five times: equal requests give equal clips, others give others."""

    def one(i: int) -> tuple[int, bytes]:
        answer = kit.send(url, image=kit.png(i % 4), seed=i % 4, length=2, context_frames=2, context_overlap=0)
        assert answer.status_code == 202, answer.text
        job = kit.finished(url, answer.json()["job_id"])
        assert job["status"] == "completed", job["error"]
        assert job["params"]["seed"] == i % 4
        return i % 4, httpx.get(url + job["video_url"], timeout=30).content

    with ThreadPoolExecutor(20) as crowd:
        clips = list(crowd.map(one, range(20)))
    assert len(clips) == 20
    for kind in range(4):
        assert len({clip for k, clip in clips if k == kind}) == 1
    assert len({clip for _, clip in clips}) == 4


BOMB = kit.png(size=(6000, 6000)) if os.environ.get("CI") else kit.png(size=(5900, 5900))
REFUSED = {
    "a text as image": ({"image": b"no picture"}, 422, "image: not a picture"),
    "a cut picture": ({"image": kit.png()[:200]}, 422, "image: not a picture"),
    "a huge picture": ({"image": BOMB}, 413, "image:"),
    "an empty picture": ({"image": b""}, 422, "image: it is empty"),
    "a picture as sound": ({"audio": kit.png()}, 422, "audio: not a sound file"),
    "a short sound": ({"audio": kit.wav(0.05)}, 422, "shorter than one frame"),
    "a long sound": ({"audio": kit.wav(125)}, 413, "is over 120 s"),
    "poses with NaN": ({"pose_dir_name": "nan"}, 422, "2.npz: hands or scores are not finite"),
    "poses off the canvas": ({"pose_dir_name": "outside"}, 422, "outside 64x64"),
    "no such poses": ({"pose_dir_name": "02"}, 400, "there is no '02'; there are: 01"),
    "a path as poses": ({"pose_dir_name": "../../etc"}, 400, "there is no"),
    "an odd width": ({"width": 65}, 422, "multiples of 8"),
    "a huge size": ({"width": 4096, "height": 4096}, 422, "pixels"),
    "a word as width": ({"width": "wide"}, 422, "integer"),
    "no steps": ({"steps": 0}, 422, "greater than or equal"),
    "NaN as guidance": ({"cfg": "nan"}, 422, "finite"),
    "an unknown policy": ({"nonfinite": "hide"}, 422, "'fail' or 'clean'"),
    "an unknown field": ({"guidance": 2}, 400, "unknown fields: 'guidance'"),
    "windows that do not move": ({"context_frames": 4, "context_overlap": 4}, 422, "overlap"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_be_used_is_refused_with_a_reason(url: str, service, name: str):
    given, status, reason = REFUSED[name]
    before = sorted(p.name for p in service.jobs.root.iterdir())
    answer = kit.send(url, **given)
    assert answer.status_code == status, answer.text
    assert reason in answer.text
    assert sorted(p.name for p in service.jobs.root.iterdir()) == before  # nothing is left of it


def test_query_parameters_and_missing_files_are_refused(url: str):
    files = {"image": ("me.png", kit.png()), "audio": ("a.wav", kit.wav())}
    answer = httpx.post(f"{url}/generate-video?steps=30", data=kit.FIELDS, files=files)
    assert (answer.status_code, "query parameters are not read: 'steps'" in answer.text) == (400, True)
    assert httpx.post(f"{url}/generate-video", data=kit.FIELDS).status_code == 422


@pytest.mark.parametrize("path", ["0" * 32, "..%2f..%2fetc%2fpasswd", "../../etc/passwd", "xyz"])
def test_no_path_leads_out_of_the_job_folder(url: str, path: str):
    for place in (f"/job-status/{path}", f"/jobs/{path}/clip.mp4"):
        assert httpx.get(url + place).status_code in (404, 422)


def test_a_value_that_is_not_finite_fails_the_job_and_is_named(tmp_path: Path):
    networks = tiny_networks()
    layer = next(n for n, m in networks.denoising_unet.named_modules() if n.endswith("ff.net.2"))
    with torch.no_grad():
        networks.denoising_unet.get_submodule(layer).weight[0, 0] = float("inf")
    with kit.serving(kit.make_service(tmp_path, networks)) as url:
        failed = kit.finished(url, kit.send(url, length=4).json()["job_id"])
        assert failed["status"] == "failed"
        assert layer in failed["error"]
        assert failed["video_url"] is None
        cleaned = kit.finished(url, kit.send(url, length=4, nonfinite="clean").json()["job_id"])
        assert cleaned["status"] == "completed"
        assert layer in cleaned["nonfinite"]
        assert cleaned["cleaned_values"] > 0


def test_too_many_jobs_and_no_models_are_said(tmp_path: Path):
    service = kit.make_service(tmp_path / "full", waiting=0)
    with kit.serving(service) as url:
        answers = [kit.send(url) for _ in range(3)]
        assert answers[0].status_code == 202
        assert {a.status_code for a in answers[1:]} <= {202, 503}
        assert any(a.status_code == 503 for a in answers)
        kit.finished(url, answers[0].json()["job_id"])
    empty = kit.make_service(tmp_path / "none")
    empty.networks, empty.missing = None, missing_files(tmp_path)
    with kit.serving(empty) as url:
        assert httpx.get(f"{url}/health").json()["status"] == "degraded"
        assert httpx.get(f"{url}/models-status").json()["missing_models"] == [
            n for names in PARTS.values() for n in names
        ]
        refused = kit.send(url)
        assert (refused.status_code, "reference_unet.safetensors" in refused.text) == (503, True)


def test_information(url: str):
    assert httpx.get(f"{url}/health").json()["status"] == "healthy"
    folders = {d["name"]: d["file_count"] for d in httpx.get(f"{url}/pose-directories").json()["directories"]}
    assert folders == {"01": 14, "nan": 14, "outside": 14}
    assert httpx.get(f"{url}/docs").status_code == 200
    assert "/generate-video" in httpx.get(f"{url}/openapi.json").json()["paths"]
    jobs = httpx.get(f"{url}/list-jobs?limit=2").json()["jobs"]
    assert len(jobs) == 2
    assert jobs[0]["created_at"] >= jobs[1]["created_at"]


def test_kill_and_restart_keep_finished_jobs(tmp_path: Path):
    """The documented command, killed while a job runs: what was finished is still there, what was not says so."""
    poses = kit.pose_root(tmp_path / "poses")

    def start() -> tuple[subprocess.Popen, str]:
        port = kit.free_port()
        command = [sys.executable, "-m", "ported.echomimic.server", "--tiny", "--poses", str(poses)]
        command += ["--jobs", str(tmp_path / "jobs"), "--port", str(port)]
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
        kit.wait_for(f"http://127.0.0.1:{port}")
        return process, f"http://127.0.0.1:{port}"

    process, url = start()
    try:
        done = kit.finished(url, kit.send(url, length=2).json()["job_id"])
        clip = httpx.get(url + done["video_url"]).content
        running = [kit.send(url, steps=100).json()["job_id"] for _ in range(2)]
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        process, url = start()
        assert httpx.get(f"{url}/job-status/{done['job_id']}").json() == done
        assert httpx.get(url + done["video_url"]).content == clip
        for job_id in running:
            job = httpx.get(f"{url}/job-status/{job_id}").json()
            assert job["status"] == "failed"
            assert "the server stopped" in job["error"]
    finally:
        process.kill()
        process.wait(30)


@pytest.mark.parametrize(("arguments", "status"), [(["--tiny", "--poses", "/nowhere"], 2), ([], 2)])
def test_a_wrong_command_is_one_line(arguments: list[str], status: int):
    done = subprocess.run(
        [sys.executable, "-m", "ported.echomimic.server", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == status
    assert "Traceback" not in done.stderr


def test_frames_of_two_services_are_their_own():
    first, second = tiny_networks(0), tiny_networks(1)
    assert not np.array_equal(first.vae.quant_conv.weight, second.vae.quant_conv.weight)
