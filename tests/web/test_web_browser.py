"""The page in a real browser for minutes: from images to a file, and every tool, by clicks alone."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("nicegui")
from browser import MINUTE, Visit, visit_to
from lora_files import write_random_lora
from playwright.sync_api import expect
from sites import start_site, write_project
from tiny import image_folder, recipe_text

import lora_studio

pytestmark = pytest.mark.slow
SAMPLES = Path(lora_studio.__file__).parent.parent / "sample_images" / "style_woodcut"
PAGES = ("/", "/new", "/dataset?target=images", "/run/plain", "/results", "/results/plain", "/files")
TRIGGER = "woodcut print in ink on paper"


@pytest.fixture
def visit(tmp_path: Path) -> Iterator[Visit]:
    project, outside = tmp_path / "project", tmp_path / "outside"
    write_project(project, outside)
    image_folder(project / "images")
    site = start_site(project, outside, tmp_path / "home")
    try:
        with visit_to(site) as made:
            yield made
    finally:
        with site.api() as api:  # what a test that failed has left at work would go on
            for job in api.get("/api/jobs").json():
                api.post(f"/api/jobs/{job['id']}/stop")
        site.end()


def until(true: Callable[[], object], visit: Visit, minutes: float = 10) -> None:
    end = time.monotonic() + 60 * minutes
    while not true():
        assert time.monotonic() < end
        visit.page.wait_for_timeout(500)


def test_no_page_has_a_serious_finding_of_axe_light_or_dark(visit: Visit):
    for scheme in ("light", "dark"):
        visit.page.emulate_media(color_scheme=scheme)
        for path in PAGES:
            visit.open(path)
            assert visit.serious_findings() == [], (scheme, path)


def test_from_dropped_images_to_an_exported_file(visit: Visit):
    page, run = visit.page, visit.site.project / "runs" / "way"
    visit.open("/new")
    visit.drop(".image-drop", sorted([*SAMPLES.glob("*.jpg"), *SAMPLES.glob("*.png")])[:12])
    page.get_by_text("12 of 12 files sent, 12 kept").wait_for()
    page.get_by_text("12 images").first.wait_for()
    write_captions(visit)
    page.get_by_role("textbox", name="Name, also of the file").fill("way")
    page.get_by_role("textbox", name="Trigger words").fill(TRIGGER)
    visit.choose("What is learned", "style")
    visit.click("Make the recipe")
    page.get_by_role("button", name="Start", exact=True).wait_for()
    for place, steps in enumerate(("6", "2")):  # of the training, and of each preview
        page.get_by_role("textbox", name="Steps", exact=True).nth(place).fill(steps)
    page.get_by_role("textbox", name="Every", exact=True).fill("3")
    page.get_by_role("textbox", name="Checkpoint every", exact=True).fill("3")
    until(lambda: "every = 3" in page.get_by_label("The recipe (TOML)").input_value(), visit, 1)
    visit.click("Plan")
    page.get_by_text("By a trial step on this machine:").wait_for(timeout=5 * MINUTE)
    visit.click("Start")
    page.get_by_role("link", name="way", exact=True).first.click(timeout=5 * MINUTE)
    page.get_by_text("step 6 of 6", exact=True).wait_for(timeout=10 * MINUTE)  # watched, not loaded again
    page.get_by_text("finished").first.wait_for(timeout=10 * MINUTE)
    assert page.locator(".compare img").first.evaluate("(one) => one.naturalWidth") > 0
    page.get_by_role("link", name="Results").last.click()
    page.get_by_label("Prompts of each of the four groups").fill("1")
    visit.click("Evaluate")
    visit.click("Export for diffusers")
    until(lambda: (run / "evaluation" / "evaluation.json").is_file(), visit, 15)
    until(lambda: [*(run / "exports").rglob("*.safetensors")], visit)
    visit.open("/results/way")
    page.frame_locator("iframe").get_by_role("heading").first.wait_for()
    assert [one for one in visit.complaints if "frame" not in one] == []


def write_captions(visit: Visit) -> None:
    """On the page of the images, which opens in a tab of its own."""
    with visit.page.expect_popup() as opened:
        visit.click("Look at the images")
    tab = opened.value
    tab.set_default_timeout(2 * MINUTE)
    tab.get_by_role("button", name="Write captions").click()
    tab.get_by_label("Trigger, put first where it lacks").fill(TRIGGER)
    tab.get_by_role("button", name="Begin", exact=True).click()
    tab.get_by_text("12 captions").first.wait_for()
    tab.get_by_role("button", name="Stop and close").click()
    expect(tab.get_by_label("Caption of 01_orange_ball.png")).to_have_value(re.compile(re.escape(TRIGGER)))
    tab.close()


def test_a_run_is_watched_stopped_and_resumed_by_clicks(visit: Visit, tiny_base: Path):
    page, project = visit.page, visit.site.project
    text = recipe_text(project / "images", str(tiny_base), steps=3000).replace('"tiny"', '"watched"')
    text += '[samples]\nprompts = ["a fox"]\nevery = 2\nsteps = 1\n'
    (project / "watched.toml").write_text(text)
    rows = project / "runs" / "watched" / "metrics.jsonl"
    visit.open("/new?recipe=watched.toml")
    visit.click("Start")
    page.get_by_role("link", name="watched", exact=True).first.click(timeout=5 * MINUTE)
    page.get_by_label("One a line").fill("a dog\na green tree", timeout=5 * MINUTE)
    visit.click("Change the prompts")
    page.locator("figcaption").filter(has_text="a green tree").wait_for(timeout=5 * MINUTE)
    page.get_by_label("Keep the checkpoint of step").first.click()
    until(lambda: [*project.glob("runs/watched/checkpoints/*/keep")], visit)
    visit.click("Stop")
    page.get_by_role("button", name="Resume", exact=True).wait_for(timeout=5 * MINUTE)
    before = json.loads(rows.read_text().splitlines()[-1])["step"]
    visit.click("Resume")
    until(lambda: json.loads(rows.read_text().splitlines()[-1])["step"] > before, visit)
    page.get_by_role("button", name="Stop and export").click(timeout=5 * MINUTE)
    until(lambda: [*project.glob("runs/watched/exports/**/*.safetensors")], visit)
    assert visit.complaints == []


def test_every_tool_for_files_is_a_click(visit: Visit):
    page, project = visit.page, visit.site.project
    for name, seed in (("first", 1), ("second", 2)):
        write_random_lora(project / f"{name}.safetensors", seed=seed)
    page.set_default_timeout(5 * MINUTE)

    def choose(*names: str) -> None:
        visit.open("/files")
        page.get_by_role("combobox", name="Files of this folder").click()
        for name in names:
            page.get_by_role("option", name=name, exact=True).click()
        page.keyboard.press("Escape")

    choose("first.safetensors", "second.safetensors")
    for button, said in (("Compare two", "Verdict: "), ("Combine those chosen", "Written: combined")):
        visit.click(button)
        page.get_by_role("heading", name=said).wait_for()
    choose("first.safetensors")
    for button, said in (
        ("Inspect", "What first.safetensors says of itself"),
        ("Resize the one chosen", "Written: first_smaller"),
        ("Convert the one chosen", "Written: first_kohya"),
    ):
        visit.click(button)
        page.get_by_role("heading", name=said).wait_for()
    assert len([*project.glob("*.safetensors")]) == 5 and visit.complaints == []
    visit.open("/results/plain")
    visit.click("Push")
    page.get_by_text("the repository is empty; write NAME/REPOSITORY.").wait_for()
