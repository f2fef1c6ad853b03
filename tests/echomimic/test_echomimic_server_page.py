"""The server's page in a real browser: upload, progress, playback, and a failed job that names its operation."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import echomimic_server_kit as kit
import pytest
import torch

from ported.echomimic.tiny import tiny_networks

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is not installed; CI installs it")
        pytest.skip("NOT RUN: chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tool:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        found = tool.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield found
        found.close()


def fill(page, tmp_path: Path) -> None:
    (tmp_path / "me.png").write_bytes(kit.png())
    (tmp_path / "voice.wav").write_bytes(kit.wav())
    page.set_input_files("input[name=image]", str(tmp_path / "me.png"))
    page.set_input_files("input[name=audio]", str(tmp_path / "voice.wav"))
    for name, value in {"width": "64", "height": "64", "fps": "8", "steps": "2", "length": "6"}.items():
        page.fill(f"input[name={name}]", value)
    page.wait_for_selector("select[name=pose_dir_name] option[value='01']", state="attached")
    page.select_option("select[name=pose_dir_name]", "01")


def test_upload_progress_and_playback(browser, tmp_path: Path):
    with kit.serving(kit.make_service(tmp_path)) as url:
        page = browser.new_page(viewport={"width": 390, "height": 800})
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        fill(page, tmp_path)
        page.click("button")
        page.wait_for_selector(".job progress")
        page.wait_for_selector(".job[data-status=completed] video", timeout=120000)
        # The browser that Debian ships plays H.264: the clip has its size and length, and runs.
        page.wait_for_function("document.querySelector('video').readyState >= 2", timeout=30000)
        size = page.evaluate("(v => [v.videoWidth, v.videoHeight, v.duration])(document.querySelector('video'))")
        assert size[:2] == [64, 64]
        assert size[2] == pytest.approx(6 / 8, abs=0.3)
        page.evaluate("(async () => { const v = document.querySelector('video'); v.muted = true; await v.play(); })()")
        page.wait_for_function("document.querySelector('video').currentTime > 0")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert errors == []
        page.fill("input[name=width]", "72")
        page.evaluate("document.querySelector('input[name=width]').step = 1")
        page.fill("input[name=width]", "65")
        page.click("button")
        page.wait_for_function("document.getElementById('refusal').textContent.includes('multiples of 8')")
        page.close()


def test_a_failed_job_shows_the_operation(browser, tmp_path: Path):
    networks = tiny_networks()
    layer = next(n for n, m in networks.denoising_unet.named_modules() if n.endswith("ff.net.2"))
    with torch.no_grad():
        networks.denoising_unet.get_submodule(layer).weight[0, 0] = float("inf")
    with kit.serving(kit.make_service(tmp_path, networks)) as url:
        page = browser.new_page()
        page.goto(url)
        fill(page, tmp_path)
        page.click("button")
        page.wait_for_selector(".job[data-status=failed] .error", timeout=120000)
        assert layer in page.text_content(".job .error")
        page.goto(f"{url}/docs")
        assert "EchoMimicV2" in page.title()
        page.close()
