"""Real files and a real server on the loopback, for the tests of the API."""

from __future__ import annotations

import io
import socket
import threading
import time
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import uvicorn
from PIL import Image

from ported.echomimic.server import Service, ServiceLimits, create_app
from ported.echomimic.settings import Limits
from ported.echomimic.tiny import tiny_networks

SIZE, FPS = 64, 8
FIELDS = {"width": SIZE, "height": SIZE, "fps": FPS, "steps": 1, "pose_dir_name": "01"}


def png(seed: int = 0, size: tuple[int, int] = (70, 50)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def wav(seconds: float = 1.6, pitch: float = 220.0) -> bytes:
    t = np.arange(int(seconds * 16000)) / 16000
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16000)
        sound.writeframes((8000 * np.sin(2 * np.pi * pitch * t)).astype("<i2").tobytes())
    return file.getvalue()


def write_poses(folder: Path, count: int = 14, change: dict | None = None) -> None:
    """Numbered pose files; `change` replaces fields of the third."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    for i in range(count):
        fields = {
            "hands": rng.uniform(0.1, 0.9, (2, 21, 2)),
            "hands_score": rng.uniform(0.5, 1.0, (2, 21)),
            "draw_pose_params": np.array([48, 48, 8, 56, 8, 56]),
        }
        np.savez(folder / f"{i}.npz", **(fields | (change or {} if i == 2 else {})))


def pose_root(root: Path) -> Path:
    write_poses(root / "01")
    hands = np.full((2, 21, 2), 0.5)
    hands[0, 3, 1] = np.nan
    write_poses(root / "nan", change={"hands": hands})
    write_poses(root / "outside", change={"draw_pose_params": np.array([48, 48, 900, 948, 8, 56])})
    return root


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            httpx.get(f"{url}/health", timeout=5)
            return
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError(f"no server at {url} after {seconds} s")


def make_service(root: Path, networks=None, **limits) -> Service:
    poses = root / "poses" if (root / "poses").exists() else pose_root(root / "poses")
    return Service(networks or tiny_networks(), poses, root / "jobs", ServiceLimits(request=Limits(side=16), **limits))


@contextmanager
def serving(service: Service) -> Iterator[str]:
    """Serve on a free port of the loopback while the block runs."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(create_app(service), host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url)
        yield url
    finally:
        server.should_exit = True
        thread.join(30)
        service.close()


def send(url: str, *, image: bytes | None = None, audio: bytes | None = None, **fields) -> httpx.Response:
    files = {
        "image": ("me.png", image if image is not None else png()),
        "audio": ("a.wav", wav() if audio is None else audio),
    }
    return httpx.post(f"{url}/generate-video", data=FIELDS | fields, files=files, timeout=60)


def finished(url: str, job_id: str, seconds: float = 240.0) -> dict:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        job = httpx.get(f"{url}/job-status/{job_id}", timeout=30).json()
        if job["status"] in ("completed", "failed"):
            return job
        time.sleep(0.1)
    raise AssertionError(f"job {job_id} did not finish: {job}")
