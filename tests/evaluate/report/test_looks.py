"""The page as a browser lays it out: nothing beyond its window, every image there, all texts to be read."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from evaluations import evaluation, report_images

from lora_studio.evaluate.report.page import report_page
from lora_studio.pages import PageParts

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ("--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update")
# Asks the browser what it made of the page, which itself forbids scripts, so this runs in a copy.
QUESTION = """<script>addEventListener("load", () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
  const inside = (one) => one.getBoundingClientRect().right <= innerWidth + 1;
  parent.postMessage(JSON.stringify({
    window: innerWidth, scrolls: document.documentElement.scrollWidth,
    outside: [...document.querySelectorAll("main *")].filter((one) => !inside(one)).map((one) => one.id),
    empty: [...document.images].filter((one) => !one.naturalWidth).length, images: document.images.length,
    bars: [...document.querySelectorAll(".bar")].map((bar) => [bar.clientWidth,
      bar.querySelector(".reach").getBoundingClientRect().width,
      bar.querySelector(".point").getBoundingClientRect().left - bar.getBoundingClientRect().left]),
  }), "*"); });</script>"""
# A window has a least width, which a frame has not.
FRAME = """<pre id="answer"></pre><script>addEventListener("message", (message) => {
  document.getElementById("answer").textContent = message.data; });</script>
<iframe src="page.html" style="border: 0; width: WIDTHpx; height: 2000px"></iframe>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH to look at the page with")
@pytest.mark.parametrize("width", [1400, 420])
def test_a_browser_lays_it_out_within_its_window(tmp_path: Path, width: int) -> None:
    document = report_page(evaluation(name="a" * 200), report_images())
    page = tmp_path / "page.html"
    without_policy = re.sub(r"<meta http-equiv[^>]*>", "", document)
    page.write_text(without_policy.replace("</body>", f"{QUESTION}</body>"), "utf-8")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", *QUIET]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1500,2100", "--dump-dom"]
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.replace("WIDTH", str(width)), "utf-8")
    done = subprocess.run([*command, frame.as_uri()], capture_output=True, text=True, timeout=300, check=True)
    answer = json.loads(re.search(r'<pre id="answer">(.*?)</pre>', done.stdout, re.DOTALL)[1])  # type: ignore[index]
    assert answer["scrolls"] <= answer["window"] == width and answer["outside"] == []
    assert answer["empty"] == 0 and answer["images"] > 200
    assert len(answer["bars"]) == len(evaluation().measures)
    for bar, reach, point in answer["bars"]:
        assert bar > 150 and 2 <= reach < bar and 0 < point < bar


def luminance(colour: str) -> float:
    """Of WCAG 2.2, from "#rrggbb"."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_the_contrast_that_wcag_asks_for(scheme: str) -> None:
    """4.5 for text (AA), 3 for what is drawn."""
    style = PageParts("lora_studio.pages").style + PageParts("lora_studio.evaluate.report").style
    blocks = re.findall(r":root \{([^}]*)\}", style)
    light, dark = blocks[0] + blocks[2], blocks[1] + blocks[3]
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", light if scheme == "light" else dark))
    for text in ("ink", "soft", "error", "warning", "note", "good"):
        for ground in ("page", "card"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for pill in ("error", "warning", "note", "good"):
        assert contrast(colours[pill], colours[f"{pill}-back"]) >= 4.5, pill
    for drawn in ("reach", "error-bar", "amber-bar"):
        assert contrast(colours["ink"], colours[drawn]) >= 3, drawn
