"""The page: complete, safe, small, the same every time."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import zlib
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_samples import (
    HOSTILE,
    bad_clip,
    clip,
    diverged,
    hostile,
    hostile_media,
    hostile_zoomed,
    incomparable,
    many,
    match,
    media,
    rows,
    shape_fault,
    zoomed,
)

from parity.clips.compare import compare_clips
from parity.clips.frames import Clip
from parity.report.html import report_html, write_index, write_report, write_video_report
from parity.report.media import Media
from parity.report.payload import payload
from parity.result import Coverage, Divergence, Result

LIMIT = 5_000_000


class Page(HTMLParser):
    """Tags, text and attributes of a page; fails on tags that do not nest."""

    VOID = frozenset({"meta", "img", "input", "br", "link"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def table(page: str) -> dict[str, Any]:
    found = re.search(r'id="rows-data">([^<]*)<', page)
    assert found
    values = json.loads(zlib.decompress(base64.b64decode(found[1])))
    assert isinstance(values, dict)
    return values


def test_a_divergence_is_told_in_full() -> None:
    text = Page(report_html(diverged(), media())).text
    for words in (
        "first departs at blocks.2.attn.q_rope frame 1 step 0 rope",
        "relative L2 0.0547 floor 6.5e-06",
        "element [0, 5, 12, 3] of [2, 60, 4, 16] reference 0.123456789 port -0.0912345678",
        "all heads alike · channels 8..15 of 16 · frames >= 1",
        "blocks.2.attn.rope first unmatched operation aten.cat",
        "ported/waypoint/rope.py:41 return torch.cat([x1 * cos",
        "Independent culprits 1",
        "P1 The port rotates half-split channel pairs",
        "confidence 0.97 · leaves 0.04% of the difference",
        "pairs = half",
        "18 of 60 entries hold another frame, first after frame 7, slot 0: frame 6 in the reference, frame 5 in",
        "Differs at 27 of 48 positions (first 21)",
        "288 keys are hidden and 0 shown that should not be, in 48 of 72 rows; first query 24 sees 24 instead of 30.",
        "First bad frame 6",
        "black – 10-11",
        "Unaligned in the port 1 blocks.0.attn.to_qkv",
        "accepted quirk: keys are stored after rotation",
        "torch: 2.13.0 (reference), 2.12.1 (port)",
        "sdpa.flash False True",
        "isolate 3.50 s",
        "parity run waypoint/tiny --fault rope_half_split --html reports",
    ):
        assert words in text, words


def test_culprits_of_one_line_are_told_once() -> None:
    base = diverged()
    assert base.culprit is not None
    same = tuple(replace(base.culprit, module=f"blocks.{i}.attn.rope") for i in range(2, 16))
    text = Page(report_html(replace(base, culprits=(*same, *base.culprits)))).text
    assert text.count("ported/waypoint/rope.py:41") == 2  # in the head, and in its card
    assert "the same line departs in blocks.3.attn.rope, blocks.4.attn.rope," in text
    assert "blocks.10.attn.rope and 5 more" in text
    assert "Independent culprits 1 each departs" in text
    unplaced = tuple(replace(c, source=None) for c in same[:3])
    with_first, without = (replace(base, culprits=unplaced, culprit=first) for first in (unplaced[0], None))
    assert "Independent culprits 2 each departs" in Page(report_html(with_first)).text
    assert "Independent culprits 3 each departs" in Page(report_html(without)).text


def test_sections_and_anchors_agree() -> None:
    for result, views in ((match(), None), (diverged(), media()), (incomparable(), None)):
        page = Page(report_html(result, views))
        ids = [value for _, name, value in page.attributes if name == "id"]
        links = [
            value[1:]
            for tag, name, value in page.attributes
            if tag == "a" and name == "href" and not value.startswith("#at=")
        ]
        assert set(links) <= set(ids)
        assert len(ids) == len(set(ids))


def test_match_and_incomparable_show_no_divergence() -> None:
    for result, title in (
        (match(), "Match"),
        (incomparable(), "Not comparable"),
        (replace(match(), verdict="incomplete"), "Incomplete"),
    ):
        text = Page(report_html(result)).text
        assert title in text
        assert "first departs at" not in text
    assert "give a name map (--map)" in Page(report_html(incomparable())).text


def test_nothing_from_outside_is_loaded() -> None:
    page = Page(report_html(diverged(), media()))
    sources = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "action", "data")]
    assert all(value.startswith(("data:image/", "#")) for value in sources)
    assert page.tags["link"] == page.tags["iframe"] == page.tags["object"] == page.tags["form"] == 0
    assert "@import" not in report_html(match())
    assert "url(" not in report_html(match())


def test_the_policy_allows_the_one_script_alone() -> None:
    page = report_html(diverged())
    scripts = re.findall(r"<script>(.*?)</script>", page, re.S)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src &#39;sha256-{digest}&#39;" in page or f"script-src 'sha256-{digest}'" in page
    assert "default-src 'none'" in page


@pytest.mark.parametrize("with_media", [False, True])
def test_hostile_text_never_becomes_markup(with_media: bool) -> None:
    clean, evil = (
        report_html(r, m) for r, m in ((zoomed(), media()), (hostile_zoomed(), hostile_media() if with_media else None))
    )
    page = Page(evil)
    assert page.tags["script"] == (3 if with_media else 2)
    assert "alert(1)" in page.text
    assert "<script>alert" not in evil
    assert "<img src=x" not in evil
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert set(page.tags) <= set(Page(clean).tags) | {"br", "noscript"}
    words = table(evil)["words"]
    assert any("alert(1)" in word for word in words)


def test_hostile_index_and_clips(tmp_path: Path) -> None:
    write_index([hostile(), match()], tmp_path / "index.html", {HOSTILE: HOSTILE})
    a, b = Clip(clip(3), 16, HOSTILE, notes=(HOSTILE,)), Clip(clip(3), None, HOSTILE)
    write_video_report(compare_clips(a, b), a, b, tmp_path / "video.html")
    for name in ("index.html", "video.html"):
        text = (tmp_path / name).read_text()
        page = Page(text)
        assert page.tags["script"] == 1
        assert "<script>alert" not in text
        assert not any(value.strip().lower().startswith("javascript:") for _, _, value in page.attributes)


def test_control_and_surrogate_characters_can_be_written(tmp_path: Path) -> None:
    evil = "\x00\x1b\ud800\u202eabc"
    write_report(replace(diverged(), case=evil, notes=(evil,), command=evil), tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "\x00" not in text
    assert "\u202e" not in text


@pytest.mark.parametrize("unique", [False, True])
def test_twenty_thousand_rows_fit(unique: bool) -> None:
    made = many(20_000, unique)
    divergences = tuple(
        Divergence(r.site, r.coords, r.kind, "rel_l2", r.error, r.floor, detail="d" * 300) for r in made
    )
    result = replace(diverged(), rows=made, divergences=divergences)
    page = report_html(result, big_media())
    assert len(page.encode()) < LIMIT
    assert "20,000" in Page(page).text
    assert len(table(page)["columns"]["order"]) == 20_000


def big_media() -> Media:
    frames = np.random.default_rng(0).integers(0, 256, (17, 240, 416, 3), np.uint8)  # noise compresses worst
    base = media()
    noise = np.random.default_rng(1).normal(size=(700, 600))
    rope = replace(base.rope[0], reference=noise, port=noise + 1)
    return replace(base, frames_reference=frames, frames_port=255 - frames, rope=(rope,) * 9, masks=base.masks * 5)


def test_more_rows_than_fit_are_thinned_and_said() -> None:
    made = many(30_000)
    made = tuple(replace(row, diverged=i in (7, 29_999)) for i, row in enumerate(made))
    told = [Divergence(r.site, r.coords, r.kind, "rel_l2", r.error, r.floor) for r in (made[7], made[29_999])]
    small = payload(made, told, told[0], 60_000)
    assert len(small.data) <= 60_000
    assert (small.total, small.shown < 30_000) == (30_000, True)
    columns = json.loads(zlib.decompress(base64.b64decode(small.data)))["columns"]
    assert {7, 29_999} <= set(columns["order"])
    assert columns["order"] == sorted(columns["order"])


def test_what_no_row_measured_is_in_the_table_too() -> None:
    lone = Divergence("blocks.0.gone", {"frame": 1}, "activation", "missing", math.inf, 0.0, 40, detail="never called")
    excused = replace(rows()[3], diverged=True)
    packed = payload([excused if row.order == 3 else row for row in rows()], [lone], lone)
    content = json.loads(zlib.decompress(base64.b64decode(packed.data)))
    words, columns, at = content["words"], content["columns"], content["first"]
    assert packed.total == len(rows()) + 1
    assert (words[columns["site"][at]], columns["error"][at], columns["flags"][at]) == ("blocks.0.gone", None, 1)
    assert words[columns["said"][at]] == "missing; never called"
    assert columns["flags"][3] & 8
    assert not columns["flags"][3] & 1


def test_a_shape_is_said_as_one() -> None:
    text = Page(report_html(shape_fault())).text
    assert "[2] → [3] reference → port" in text
    assert "Unexplained: no hypothesis fits the numbers." in text
    assert " inf " not in text.split("First divergence")[0]


def test_a_page_without_its_runs_says_what_it_lacks() -> None:
    said = "This page was made without the runs themselves"
    assert said in Page(report_html(diverged())).text
    assert said not in Page(report_html(diverged(), media())).text


def test_the_same_result_gives_the_same_bytes() -> None:
    assert report_html(diverged(), media()) == report_html(diverged(), media())


EMPTY = Result("incomparable", None, None, (), Coverage(0, 0, 0))


def test_empty_results(tmp_path: Path) -> None:
    assert "Not comparable" in Page(report_html(EMPTY, Media())).text
    write_index([], tmp_path / "index.html")
    text = Page((tmp_path / "index.html").read_text()).text
    assert "No case was run: there is nothing to show, which is not a pass." in text
    assert "incomparable" in text
    empty = np.zeros((0, 4, 4, 3), np.uint8)
    assert "Not comparable" in Page(report_html(EMPTY, Media(empty, empty))).text


def test_numbers_that_are_none() -> None:
    strange = (math.nan, math.inf, -math.inf, 0.0)
    made = tuple(
        replace(r, error=e, floor=f, max_abs=e, sqnr_db=e, isolated=e, diverged=True)
        for r, (e, f) in zip(rows(), [(e, f) for e in strange for f in strange], strict=False)
    )
    first = Divergence(
        "a", {}, "activation", "rel_l2", math.nan, 0.0, index=(), reference_value=math.nan, port_value=None
    )
    page = report_html(replace(diverged(), rows=made, first=first, divergences=(first,)))
    columns = table(page)["columns"]
    assert columns["error"][:5] == [None] * 5  # the first divergence has no row, and is put before the others
    assert columns["error"][5] == "inf"
    assert columns["error"][9] == "-inf"
    points = " ".join(re.findall(r'(?:points|x|y|cx|cy|width|height|x1|x2|y1|y2)="([^"]*)"', page))
    assert "nan" not in points
    assert "inf" not in points


def test_index_links_to_reports_beside_it(tmp_path: Path) -> None:
    result = replace(diverged(), report=str(tmp_path / "out" / "a b#1.html"))
    write_index([result, match()], tmp_path / "out" / "index.html", {"svi/cuda": "no CUDA device"})
    page = Page((tmp_path / "out" / "index.html").read_text())
    assert ("a", "href", "./a%20b%231.html") in page.attributes
    for words in (
        "1 match, 1 diverged",
        "waypoint/tiny [fault=rope_half_split]",
        "not run no CUDA device",
        "600/602 9.2",
    ):
        assert words in page.text


def test_video_report(tmp_path: Path) -> None:
    a, b = Clip(clip(), 16, "reference.mkv"), Clip(bad_clip(), 16, "port.mkv")
    write_video_report(compare_clips(a, b), a, b, tmp_path / "video.html")
    text = (tmp_path / "video.html").read_text()
    page = Page(text)
    assert "first bad frame 6" in page.text
    assert "reference.mkv → port.mkv" in page.text
    assert page.tags["svg"] == 3
    assert len(text) < LIMIT
    other = Clip(clip(5, 60, 80), 16, "small.mkv")
    write_video_report(compare_clips(a, other), a, other, tmp_path / "video.html")
    assert "the picture sizes differ: 208x120 against 80x60" in Page((tmp_path / "video.html").read_text()).text


def test_frames_of_different_counts_are_shown() -> None:
    page = report_html(match(), Media(clip(9), clip(12)))
    assert "4T frames where the other side decodes 1+4(T-1)" in Page(page).text
