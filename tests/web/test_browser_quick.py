"""The page in a real browser, in seconds; skipped where there is none, or no playwright."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("nicegui")
from browser import Visit, visit_to
from PIL import Image
from sites import Site, write_run

PAGES = ("/", "/new", "/dataset", "/run/plain", "/results", "/results/plain", "/files")
_CHART = "Object.values(mounted_app.$refs).find((one) => one?.chart).chart"


@pytest.fixture(scope="module")
def visit(site: Site) -> Iterator[Visit]:
    with visit_to(site) as made:
        yield made


def test_every_page_opens_without_complaints_and_fits_a_narrow_screen(visit: Visit):
    for path in PAGES:
        visit.page.set_viewport_size({"width": 1400, "height": 900})
        visit.open(path)
        assert visit.page.evaluate("document.querySelectorAll('img[onerror]').length") == 0, path
        visit.page.set_viewport_size({"width": 420, "height": 900})
        visit.page.wait_for_timeout(100)
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= 420, path
        assert visit.complaints == [], path


def test_keys_alone_reach_another_page(visit: Visit):
    visit.page.set_viewport_size({"width": 1400, "height": 900})
    visit.open("/")
    for _ in range(12):
        visit.page.keyboard.press("Tab")
        if visit.page.evaluate("document.activeElement.textContent").strip().endswith("LoRA files"):
            break
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_url("**/files")


def test_the_last_of_many_images_is_shown_once_it_is_scrolled_to(visit: Visit):
    folder = visit.site.project / "many"
    folder.mkdir()
    for number in range(300):
        Image.new("RGB", (8, 8), (number % 256, 0, 0)).save(folder / f"{number:03}.png")
        (folder / f"{number:03}.txt").write_text(f"a square, number {number}")
    visit.open("/dataset?target=many")
    visit.page.get_by_text("300 images").wait_for()
    visit.page.get_by_label("Caption of 000.png").wait_for()
    assert visit.page.get_by_label("Caption of 299.png").count() == 0
    visit.page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    last = visit.page.get_by_label("Caption of 299.png")
    last.wait_for()
    last.fill("the last of them")
    last.blur()
    visit.page.get_by_role("textbox", name="Find in names and captions").fill("the last")
    visit.page.get_by_text("1 of 300 images").wait_for()
    assert (folder / "299.txt").read_text("utf-8") == "the last of them\n" and visit.complaints == []


def test_a_step_changes_its_numbers_and_its_chart_and_draws_nothing_else_anew(visit: Visit):
    run = write_run(visit.site.project / "runs" / "live")
    recipe = (run / "recipe.toml").read_text("utf-8")
    (run / "recipe.toml").write_text(recipe.replace("steps = 4", "steps = 4000"), "utf-8")
    told: list[str] = []
    visit.page.on("websocket", lambda socket: socket.on("framereceived", lambda one: told.append(str(one))))
    visit.open("/run/live")
    visit.page.get_by_text("step 3 of 4000").wait_for()
    begun = len(told)
    with (run / "metrics.jsonl").open("a") as rows:
        rows.write('{"step": 4, "loss": 0.25, "learning_rate": 0.001, "seconds": 0.5}\n')
    visit.page.get_by_text("step 4 of 4000").wait_for()
    visit.page.get_by_text("loss 0.25, learning rate 0.001, 0.50 s a step").wait_for()
    visit.page.wait_for_function(f"({_CHART}).getOption().series[0].data.length === 4")
    kinds = {one.partition(",")[0] for one in told[begun:]}
    assert '42["run_javascript"' in kinds and '42["update"' not in kinds
    assert visit.page.evaluate("document.getAnimations().length") == 0 and visit.complaints == []


def test_a_chart_that_is_pointed_at_goes_on_without_complaints(visit: Visit):
    run = write_run(visit.site.project / "runs" / "pointed")
    visit.open("/run/pointed")
    box = visit.page.locator(".chart canvas").bounding_box()
    assert box is not None
    for step in range(4, 12):
        with (run / "metrics.jsonl").open("a") as rows:
            rows.write(f'{{"step": {step}, "loss": 0.25, "learning_rate": 0.001, "seconds": 0.5}}\n')
        for part in range(20):
            visit.page.mouse.move(box["x"] + box["width"] * (0.3 + part / 50), box["y"] + box["height"] / 2)
            visit.page.wait_for_timeout(10)
    visit.page.wait_for_function(f"({_CHART}).getOption().series[0].data.length === 11")
    assert visit.complaints == []
