"""The page in a real browser: Chromium, with playwright; skipped where one of them is not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("nicegui")
from sites import TOKEN, Site, start_site, write_project

import lora_studio

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; set CHROMIUM to its program"),
]
SAMPLES = Path(lora_studio.__file__).parent.parent / "sample_images" / "style_woodcut"
PAGES = ("/", "/new", "/dataset", "/run/plain", "/results", "/results/plain", "/files")
MINUTES = 60_000  # in milliseconds


class Visit:
    """A browser's page, with what it complained of and what it asked others for."""

    def __init__(self, site: Site, page: sync_api.Page) -> None:
        self.site, self.page = site, page
        self.complaints: list[str] = []
        page.set_default_timeout(MINUTES)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda told: self.complaints.append(told.text) if told.type == "error" else None)
        page.on("request", self._note)

    def _note(self, request: sync_api.Request) -> None:
        if not request.url.startswith((self.site.address, "data:", "blob:")):
            self.complaints.append(f"asked {request.url}")

    def sign_in(self) -> None:
        self.page.goto(self.site.address)
        self.page.fill("#token", TOKEN)
        self.page.get_by_role("button", name="Open the studio").click()
        self.page.wait_for_selector("header.top")
        self.complaints.clear()  # of the 401 that asked for the token

    def open(self, path: str) -> None:
        self.page.goto(self.site.address + path)
        self.page.wait_for_selector("#content h1")
        self.page.wait_for_timeout(800)


@pytest.fixture
def visits(tmp_path: Path) -> Iterator[Visit]:
    project, outside = tmp_path / "project", tmp_path / "outside"
    write_project(project, outside)
    site = start_site(project, outside, tmp_path / "home")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        visit = Visit(site, browser.new_page(viewport={"width": 1400, "height": 900}))
        visit.sign_in()
        yield visit
        browser.close()
    site.end()


def test_every_page_opens_without_complaints_and_scripts_of_others(visits: Visit):
    for path in PAGES:
        visits.open(path)
        assert visits.page.evaluate("document.querySelectorAll('img[onerror]').length") == 0, path
        assert visits.complaints == [], path


def test_every_page_fits_a_narrow_screen(visits: Visit):
    visits.page.set_viewport_size({"width": 420, "height": 900})
    for path in PAGES:
        visits.open(path)
        assert visits.page.evaluate("document.documentElement.scrollWidth") <= 421, path


def test_keys_alone_reach_another_page(visits: Visit):
    visits.open("/")
    for _ in range(12):
        visits.page.keyboard.press("Tab")
        if visits.page.evaluate("document.activeElement.textContent").strip().endswith("LoRA files"):
            break
    visits.page.keyboard.press("Enter")
    visits.page.wait_for_url("**/files")


def test_from_images_to_an_exported_file(visits: Visit):
    page = visits.page
    visits.open("/new")
    images = sorted(one for one in SAMPLES.iterdir() if one.suffix in (".jpg", ".png"))[:12]
    dropped = [*images, *(one.with_suffix(".txt") for one in images)]
    page.set_input_files("input[type=file]", [one for one in dropped if one.is_file()])
    page.get_by_text("12 images").first.wait_for()
    page.get_by_role("textbox", name="Base model").fill("pocket")
    page.get_by_role("textbox", name="Name, also").fill("way")
    page.get_by_role("button", name="Make the recipe").click()
    page.get_by_role("button", name="Start").wait_for()
    recipe = page.locator("textarea").last
    text = recipe.input_value()
    lines = ["steps = 6" if one.startswith("steps =") else one for one in text.splitlines()]
    recipe.fill("\n".join(lines))
    recipe.blur()
    page.get_by_role("button", name="Plan", exact=True).click()
    page.get_by_text("memory").first.wait_for()
    page.get_by_role("button", name="Start").click()
    visits.open("/run/way")
    page.get_by_text("finished").first.wait_for(timeout=5 * MINUTES)
    visits.open("/results/way")
    page.get_by_role("button", name="Export for diffusers").click()
    exported = visits.site.project / "runs" / "way" / "exports"
    for _ in range(300):
        page.wait_for_timeout(500)
        if list(exported.rglob("*.safetensors")):
            break
    assert list(exported.rglob("*.safetensors"))
