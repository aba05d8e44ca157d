"""The page: whole in one file, safe with any name, and shown by a real browser as it should be."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from photographs import Planted, photograph
from PIL import Image

from lora_studio.data.doctor import DoctorOptions, examine_folder
from lora_studio.data.doctor.page import page, write_page
from lora_studio.errors import StudioError

WISHES = DoctorOptions(resolution=256, trigger="zwx style")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTH, HEIGHT = 1200, 3000
# Asks the browser what it made of each image; the page itself forbids scripts, so it runs in a copy.
QUESTION = """<script>addEventListener("load", () => {
  const answer = document.createElement("pre"); answer.id = "answer";
  answer.textContent = JSON.stringify([...document.images].map((image) => {
    const box = image.getBoundingClientRect();
    return {name: image.alt, width: image.naturalWidth, section: image.closest("section").id,
            box: [box.left, box.top, box.right, box.bottom].map(Math.round)}; }));
  document.body.append(answer); });</script>"""


class Tags(HTMLParser):
    """Every tag of a document, with its attributes, and the text between."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    planted = Planted(tmp_path / "images")
    for number in range(5):
        planted.add(f"good_{number}.png")
    shutil.copyfile(planted.folder / "good_0.png", planted.add("twice_0.png"))
    planted.add("wide.png", planted.fresh(1200, 300))
    planted.add("silent.png").with_suffix(".txt").unlink()
    (planted.folder / "broken.jpg").write_text("<html>")
    return planted


def document(folder: Path) -> str:
    report, manifest = examine_folder(folder, WISHES)
    return page(report, manifest, title=folder.name)


def test_it_needs_no_other_file_and_no_network(planted: Planted) -> None:
    tags = Tags(document(planted.folder)).tags
    links = [
        value or "" for _, attributes in tags for name, value in attributes.items() if name in ("src", "href")
    ]
    assert len(links) > 10 and all(link.startswith(("data:image/jpeg;base64,", "#")) for link in links)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in tags}
    policy = next(attributes for tag, attributes in tags if attributes.get("http-equiv"))
    assert policy["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    identifiers = {attributes["id"] for _, attributes in tags if "id" in attributes}
    assert all(link[1:] in identifiers for link in links if link.startswith("#"))


def test_every_finding_is_on_it_with_its_evidence_and_what_to_do(planted: Planted) -> None:
    report, manifest = examine_folder(planted.folder, WISHES)
    text = " ".join(Tags(page(report, manifest, title="x")).text.split())
    assert {finding.kind for finding in report.findings} == {
        *("caption_missing", "unusable", "exact_duplicate", "extreme_aspect", "too_few")
    }
    for finding in report.findings:
        assert finding.path in text and finding.detail in text and finding.advice in text
    assert "Bucket plan" in text and "256x256" in text and "1 error" in text


def test_names_captions_and_reasons_are_text_whatever_they_hold(planted: Planted) -> None:
    wicked = "<img src=x onerror=alert(1)>\"'&amp;\x1b[31m.png"
    shutil.copyfile(planted.folder / "good_1.png", planted.folder / wicked)
    path = planted.add("caption.png").with_suffix(".txt")
    path.write_text("</p><script>alert(2)</script> zwx style")
    planted.add("without.png").with_suffix(".txt").write_text("<b>no trigger</b>")
    parsed = Tags(document(planted.folder))
    assert {"script", "b"} & {tag for tag, _ in parsed.tags} <= {"b"}
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    assert "<img src=x onerror=alert(1)>\"'&amp;\\x1b[31m.png" in parsed.text
    assert "</p><script>alert(2)</script> zwx style" in parsed.text and "<b>no trigger</b>" in parsed.text
    assert all(
        (attributes["src"] or "").startswith("data:") for tag, attributes in parsed.tags if tag == "img"
    )


def test_a_name_that_is_no_unicode_does_not_stop_it(planted: Planted) -> None:
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    shutil.copyfile(planted.folder / "good_2.png", planted.folder / name)
    assert "caf\\udce9.png" in document(planted.folder)


def test_a_sound_set_is_told_so(tmp_path: Path) -> None:
    planted = Planted(tmp_path / "sound")
    for number in range(10):
        planted.add(f"{number}.png")
    assert "Nothing to mend." in document(planted.folder)


def test_it_replaces_an_older_page_and_nothing_else(planted: Planted, tmp_path: Path) -> None:
    report, manifest = examine_folder(planted.folder, WISHES)
    write_page(tmp_path / "a.html", report, manifest, title="first")
    write_page(tmp_path / "a.html", report, manifest, title="second")
    assert "<title>second: doctor</title>" in (tmp_path / "a.html").read_text("utf-8")
    (tmp_path / "mine.html").write_text("my own")
    with pytest.raises(StudioError, match="is there already, and no page of the doctor"):
        write_page(tmp_path / "mine.html", report, manifest, title="third")
    assert (tmp_path / "mine.html").read_text() == "my own"


def browse(file: Path, profile: Path, *arguments: str) -> str:
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={profile}", f"--window-size={WIDTH},{HEIGHT}", *arguments, file.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH to look at the page with")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_thumbnails_and_findings(planted: Planted, tmp_path: Path, scheme: str) -> None:
    original, asked = tmp_path / "page.html", tmp_path / "asked.html"
    original.write_text(document(planted.folder), "utf-8")
    without_policy = re.sub(r"<meta http-equiv[^>]*>", "", original.read_text("utf-8"))
    asked.write_text(without_policy.replace("</body>", f"{QUESTION}</body>"), "utf-8")
    dumped = browse(asked, tmp_path / "profile", "--dump-dom")
    images = json.loads(re.search(r'<pre id="answer">(.*?)</pre>', dumped, re.DOTALL)[1])  # type: ignore[index]
    in_sections = {(image["section"], image["name"]) for image in images}
    assert {
        *(("error-caption_missing", "silent.png"), ("warning-extreme_aspect", "wide.png")),
        *(("warning-exact_duplicate", "twice_0.png"), ("warning-exact_duplicate", "good_0.png")),
        *(("images", f"good_{number}.png") for number in range(5)),
    } <= in_sections
    assert all(image["width"] > 100 for image in images)

    scheme_number = {"dark": 0, "light": 1}[scheme]
    shot = tmp_path / "shot.png"
    setting = f"--blink-settings=preferredColorScheme={scheme_number}"
    browse(original, tmp_path / "profile", f"--screenshot={shot}", setting)
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("RGB"), np.float32)
    assert (pixels[5, 5].mean() < 60) == (scheme == "dark")
    visible = [image for image in images if image["box"][3] <= HEIGHT and image["name"] != "wide.png"]
    assert len(visible) >= 8
    for image in visible:
        left, top, right, bottom = image["box"]
        with Image.open(planted.folder / image["name"]) as source:
            expected = np.asarray(source.convert("RGB").resize((8, 8), Image.Resampling.BOX), np.float32)
        seen = Image.fromarray(pixels[top:bottom, left:right].astype(np.uint8))
        assert np.abs(np.asarray(seen.resize((8, 8), Image.Resampling.BOX), np.float32) - expected).mean() < 8
    red = np.array([179, 38, 30] if scheme == "light" else [255, 154, 144])  # of the errors' cards
    assert (np.abs(pixels - red).max(axis=-1) < 6).sum() > 100


def test_what_is_about_all_images_takes_the_whole_width(tmp_path: Path) -> None:
    planted = Planted(tmp_path / "few")
    planted.add("a.png")
    report, manifest = examine_folder(planted.folder, WISHES)
    assert [one.path for one in report.findings if one.kind == "too_few"] == [""]
    assert '<article class="card whole"><p>' in page(report, manifest, title="x")


def test_thumbnails_tell_nothing_of_where_an_image_was_taken(tmp_path: Path) -> None:
    planted = Planted(tmp_path / "private")
    exif = Image.Exif()
    exif[0x010F] = "SECRET CAMERA"
    planted.add("a.jpg", photograph(1), exif=exif, comment=b"SECRET NOTE")
    assert b"SECRET" in (planted.folder / "a.jpg").read_bytes()
    report, manifest = examine_folder(planted.folder, WISHES)
    import base64

    uris = re.findall(r"base64,([A-Za-z0-9+/=]+)", page(report, manifest, title="x"))
    assert uris and not any(b"SECRET" in base64.b64decode(uri) for uri in uris)
