"""The page in a real browser: its script runs under its own policy, the table fills, hostile text stays text."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from report_samples import diverged, hostile, hostile_media, media

from parity.report.html import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def dom(path: Path, profile: Path) -> str:
    """The page's document after its scripts ran."""
    if BROWSER is None:
        if os.environ.get("CI") == "true":
            pytest.fail("chromium is not installed, but CI must run the browser tests")
        pytest.skip("NOT RUN: chromium is not installed")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--virtual-time-budget=4000",
    ]
    command = [BROWSER, *flags, f"--user-data-dir={profile}", "--dump-dom", path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_the_table_fills(tmp_path: Path) -> None:
    write_report(diverged(), tmp_path / "page.html", media())
    text = dom(tmp_path / "page.html", tmp_path / "profile")
    assert '<td class="site">blocks.0.attn.q_rope</td>' in text
    assert "1–50 of 600" in text
    assert '<button class="chip" type="button" aria-pressed="false">rope <b>144</b></button>' in text


def test_hostile_text_does_not_run(tmp_path: Path) -> None:
    write_report(hostile(), tmp_path / "page.html", hostile_media())
    text = dom(tmp_path / "page.html", tmp_path / "profile")
    assert '<td class="site">&lt;/script&gt;&lt;script&gt;alert(1)' in text
    assert "<script>alert" not in text
    assert '<img src="x"' not in text
