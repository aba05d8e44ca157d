"""Chromium on the page: found on the machine, driven by playwright."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from sites import TOKEN, Site

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
if CHROMIUM is None:
    pytest.skip("there is no Chromium; set CHROMIUM to its program", allow_module_level=True)
AXE = Path(os.environ.get("AXE", "node_modules/axe-core/axe.min.js"))  # `npm install axe-core`
MINUTE = 60_000  # in milliseconds
_FINDINGS = """async () => (await axe.run(document, {resultTypes: ["violations"]})).violations
  .filter((one) => ["serious", "critical"].includes(one.impact))
  .map((one) => one.id + ": " + one.nodes.map((node) => node.html.slice(0, 200)).join(" "))"""
_DROP = """(files) => {
  const transfer = new DataTransfer();
  for (const {name, bytes} of files)
    transfer.items.add(new File([Uint8Array.from(atob(bytes), (one) => one.charCodeAt(0))], name));
  return transfer;
}"""


class Visit:
    """A browser's page, with what it complained of and what it asked others for."""

    def __init__(self, site: Site, page: sync_api.Page) -> None:
        self.site, self.page = site, page
        self.complaints: list[str] = []
        page.set_default_timeout(MINUTE)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._hear)
        page.on("request", self._note)

    def _hear(self, told: sync_api.ConsoleMessage) -> None:
        if told.type == "error" and "status of 400" not in told.text:  # a damaged image, say, is refused
            self.complaints.append(told.text)

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
        self.page.wait_for_timeout(500)

    def click(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).first.click()

    def choose(self, field: str, option: str) -> None:
        """Of a list that opens."""
        self.page.get_by_role("combobox", name=field, exact=True).click()
        self.page.get_by_role("option", name=option).click()

    def drop(self, place: str, files: Sequence[Path]) -> None:
        """As a file manager does."""
        named = [{"name": one.name, "bytes": base64.b64encode(one.read_bytes()).decode()} for one in files]
        transfer = self.page.evaluate_handle(_DROP, named)
        self.page.dispatch_event(place, "drop", {"dataTransfer": transfer})

    def serious_findings(self) -> list[str]:
        """What axe-core finds of the page as it is; none where axe-core is not there."""
        if not AXE.is_file():
            return []
        self.page.evaluate(AXE.read_text("utf-8"))
        return list(self.page.evaluate(_FINDINGS))


@contextmanager
def visit_to(site: Site) -> Iterator[Visit]:
    """Signed in, 1400 pixels wide."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        visit = Visit(site, browser.new_page(viewport={"width": 1400, "height": 900}))
        visit.sign_in()
        yield visit
        browser.close()
