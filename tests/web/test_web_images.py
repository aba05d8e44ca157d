"""Images on the page: thumbnails and masks of open sets alone, none outside of the folders, no scripts."""

from __future__ import annotations

from io import BytesIO

import pytest
from PIL import Image
from sites import EVIL_NAME, Site
from tiny import image_folder


@pytest.fixture(scope="module")
def folder(site: Site):
    """Images of which one is broken, one leads out, and one has a script for its name and caption."""
    made = image_folder(site.project / "pictures")
    (made / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    Image.new("RGB", (64, 64), "red").save(site.outside / "private.png")
    (made / "link.png").symlink_to(site.outside / "private.png")
    Image.new("RGB", (64, 64), "blue").save(made / f"{EVIL_NAME}.png")
    (made / f"{EVIL_NAME}.txt").write_text("<script>alert(1)</script>", "utf-8")
    return made


@pytest.fixture(scope="module")
def images(site: Site, folder) -> tuple[str, dict[str, str]]:
    """The set's address, and the key of each image."""
    with site.api() as client:
        answer = client.post("/api/datasets", json={"target": "pictures"})
    assert answer.status_code == 201, answer.text
    found = answer.json()
    return f"/api/datasets/{found['dataset']}", {one["name"]: one["image"] for one in found["images"]}


def png(size: tuple[int, int], level: int) -> bytes:
    written = BytesIO()
    Image.new("L", size, level).save(written, "PNG")
    return written.getvalue()


def test_a_thumbnail_is_a_small_jpeg_that_runs_nothing(site: Site, images):
    address, keys = images
    with site.browser() as client:
        answer = client.get(f"{address}/{keys['00.png']}/thumbnail.jpg")
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/jpeg"
    assert (
        answer.headers["x-content-type-options"] == "nosniff"
        and "sandbox" in answer.headers["content-security-policy"]
    )
    with Image.open(BytesIO(answer.content)) as image:
        assert max(image.size) <= 256


def test_images_that_lead_out_or_are_none_are_refused(site: Site, images):
    address, keys = images
    with site.browser() as client:
        assert client.get(f"{address}/{keys['link.png']}/thumbnail.jpg").status_code == 403
        broken = client.get(f"{address}/{keys['broken.png']}/thumbnail.jpg")
        assert broken.status_code == 400 and "cannot be shown" in broken.json()["error"]
        for key in ("0" * 20, "..%2f..%2fsecret.txt", EVIL_NAME):
            assert client.get(f"{address}/{key}/thumbnail.jpg").status_code in (400, 404)
        assert client.get(f"/api/datasets/nothing/{keys['00.png']}/thumbnail.jpg").status_code == 400


@pytest.mark.parametrize(
    "target", ["..", "/etc", "../outside", "pictures/link.png", "~", "\0", "nowhere", ""]
)
def test_no_set_outside_of_the_folders_is_opened(site: Site, folder, target: str):
    with site.api() as client:
        answer = client.post("/api/datasets", json={"target": target})
    assert answer.status_code in (400, 403), answer.text
    assert "private" not in answer.text


def test_without_a_sign_in_there_is_no_image(site: Site, images):
    address, keys = images
    with site.client() as client:
        assert client.get(f"{address}/{keys['00.png']}/thumbnail.jpg").status_code == 401


def test_a_mask_is_taken_from_the_page_itself_alone(site: Site, images, folder):
    address, keys = images
    place = f"{address}/{keys['03.png']}/mask.png"
    with site.browser() as client:
        assert client.get(place).status_code == 404
        foreign = client.put(place, content=png((56, 32), 255), headers={"Origin": "http://evil.example"})
        assert foreign.status_code == 403
        for content in (b"<script>", png((56, 32), 0), png((32, 32), 255), b"x" * 1_000_001):
            assert client.put(place, content=content).status_code in (400, 413)
        assert client.put(place, content=b"x" * 2_000_000).status_code == 413
        assert not (folder / "03.mask.png").exists()
        assert client.put(place, content=png((56, 32), 255)).json() == {"mask": "03.mask.png"}
    with Image.open(folder / "03.mask.png") as mask:
        assert mask.size == (112, 64)


@pytest.mark.parametrize("page", ["/new", "/dataset"])
def test_pages_show_what_is_in_their_address_as_text(site: Site, page: str):
    with site.browser() as client:
        answer = client.get(
            page, params={"target": EVIL_NAME, "recipe": f"{EVIL_NAME}</script><script>alert(9)"}
        )
    assert answer.status_code == 200
    assert "<img src=x" not in answer.text and "<script>alert(9)" not in answer.text


def test_images_are_listed_in_blocks_as_a_filter_chooses_them(site: Site, images):
    address, keys = images
    with site.browser() as client:

        def ask(**asked: object) -> tuple[int, list[str]]:
            answer = client.get(f"{address}/images", params=asked).json()
            return answer["count"], [one["key"] for one in answer["images"]]

        count, every = ask()
        assert count == len(keys) and sorted(every) == sorted(keys.values())
        assert [ask(first=first, count=2)[1] for first in (0, 2, count)] == [every[:2], every[2:4], []]
        assert ask(words="ALERT") == (1, [keys[f"{EVIL_NAME}.png"]])
        for asked in ({"count": 1001}, {"count": 0}, {"first": -1}):
            assert client.get(f"{address}/images", params=asked).status_code == 422
        assert client.get("/api/datasets/nothing/images").status_code == 400
