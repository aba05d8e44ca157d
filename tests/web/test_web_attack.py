"""What others try with the page: refused or harmless, and the server goes on."""

from __future__ import annotations

import http.client
import time
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import pytest

pytest.importorskip("nicegui")
import httpx
from sites import EVIL_NAME, TOKEN, Site, write_run

from lora_studio.web.live import PLACES_SECONDS

SOCKET = "/_nicegui_ws/socket.io/?EIO=4&transport=websocket"
PAGES = ("/", "/run/plain", "/results", "/results/plain", "/files")
OUTSIDE = (
    "../../../outside/secret.txt",
    "..%2f..%2f..%2foutside%2fsecret.txt",
    "%2e%2e/%2e%2e/%2e%2e/outside/secret.txt",
    "..%252f..%252f..%252foutside%252fsecret.txt",
    "..%5c..%5c..%5coutside%5csecret.txt",
    "link.txt",
    "way/secret.txt",
    "way/../way/secret.txt",
    "%2fetc%2fpasswd",
    "/etc/passwd",
    "~root/.bashrc",
    "recipe.toml%00.png",
)


@pytest.fixture(autouse=True)
def alive_afterwards(site: Site) -> Iterator[None]:
    yield
    assert site.process.poll() is None


def handshake(site: Site, **headers: str) -> int:
    """The status that a WebSocket's request is answered with; 101 is a yes."""
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    key = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
    with closing(http.client.HTTPConnection(site.host, timeout=60)) as connection:
        connection.request("GET", SOCKET, headers=upgrade | key | headers)
        return connection.getresponse().status


def test_without_a_token_there_is_nothing(site: Site):
    with site.client() as client:
        for path in (*PAGES, "/_nicegui/3.18.0/static/nicegui.js", "/nothing", "//etc/passwd"):
            answer = client.get(path)
            assert (answer.status_code, "Paste the token" in answer.text) == (401, True), path
        for path in ("/api", "/api/runs", "/api/openapi.json", "/api/jobs/1", "/apix"):
            answer = client.get(path)
            assert (answer.status_code, list(answer.json())) == (401, ["error"]), path
    assert handshake(site, Origin=site.address) == 403


@pytest.mark.parametrize("given", ["wrong", TOKEN[:-1], f"{TOKEN}x", "ü" * 20])
def test_a_wrong_token_opens_nothing(site: Site, given: str):
    raw = given.encode()
    with site.client() as client:
        assert client.get("/api/runs", headers={b"Authorization": b"Bearer " + raw}).status_code == 401
        cookie = {b"Cookie": f"lora_studio_{site.host.rpartition(':')[2]}=".encode() + raw}
        assert client.get("/", headers=cookie).status_code == 401
        assert client.get("/", params={"token": given}).status_code == 401
        form = client.post("/sign-in", data={"token": given}, headers={"Origin": site.address})
        assert form.status_code == 401 and "set-cookie" not in form.headers
    assert handshake(site, Origin=site.address, Cookie="lora_studio=x") == 403


def test_the_address_works_once_and_is_cleaned(site: Site):
    query = site.launch.partition("?")[2]
    with site.client() as client:
        first = client.get(f"/run/plain?{query}&x=1")
        assert (first.status_code, first.headers["location"]) == (303, "/run/plain?x=1")
        assert {"HttpOnly", "SameSite=Strict"} <= set(first.headers["set-cookie"].split("; "))
        assert client.get("/run/plain").status_code == 200  # by the cookie
        away = httpx.URL(site.address, raw_path=f"//elsewhere.example/?{query}".encode())
        assert client.get(away).headers["location"] == "/elsewhere.example/"
    with site.client() as client:
        second = client.get(f"/?{query}")
        assert second.status_code == 401 and "set-cookie" not in second.headers


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:PORT", "127.0.0.1.evil.example:PORT", "127.0.0.1", "localhost:1", ""],
)
def test_another_host_is_refused(site: Site, host: str):
    named = host.replace("PORT", site.host.rpartition(":")[2])
    with site.browser() as browser, site.api() as api:
        assert browser.get("/", headers={"Host": named}).status_code in (400, 403)
        assert api.get("/api/runs", headers={"Host": named}).status_code in (400, 403)
        cookie = "; ".join(f"{key}={value}" for key, value in browser.cookies.items())
        assert handshake(site, Host=named, Origin=f"http://{named}", Cookie=cookie) in (400, 403)
        assert handshake(site, Origin=site.address, Cookie=cookie) == 101


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://x:y:z", "[", "file://"]
)
def test_another_origin_is_refused(site: Site, origin: str):
    with site.browser() as browser, site.api() as api:
        cookie = "; ".join(f"{key}={value}" for key, value in browser.cookies.items())
        assert browser.get("/", headers={"Origin": origin}).status_code == 403
        assert api.get("/api/runs", headers={"Origin": origin}).status_code == 403
        assert browser.post("/api/jobs/1/stop", headers={"Origin": origin}).status_code == 403
        assert handshake(site, Origin=origin, Cookie=cookie) == 403
    with site.client() as client:
        stolen = client.post("/sign-in", data={"token": TOKEN}, headers={"Origin": origin})
        assert stolen.status_code == 403


def test_a_cookie_alone_changes_nothing(site: Site):
    """A request without an origin, as of an old browser, is not taken for the page's."""
    with site.browser() as browser:
        del browser.headers["Origin"]
        assert browser.post("/api/jobs/1/stop").status_code == 403
        assert browser.get("/api/runs").status_code == 200
        cookie = "; ".join(f"{key}={value}" for key, value in browser.cookies.items())
    assert handshake(site, Cookie=cookie) == 403


@pytest.mark.parametrize("path", OUTSIDE)
def test_no_path_leads_out_of_the_folders(site: Site, path: str):
    with site.api() as api:
        for address in (f"/api/runs/plain/files/{path}", f"/api/runs/plain/previews/{path}/0/0.png"):
            answer = api.get(httpx.URL(site.address, raw_path=address.encode()))
            assert answer.status_code in (400, 403, 404), answer.text
            assert "secret of another" not in answer.text and "root:" not in answer.text
        for run in (path, f"plain/{path}", "..", "%2e%2e"):
            answer = api.get(httpx.URL(site.address, raw_path=f"/api/runs/{run}/recipe".encode()))
            assert answer.status_code in (400, 401, 403, 404, 405)


def test_a_run_that_is_a_link_out_is_none(site: Site):
    with site.api() as api:
        assert "linked" not in {one["name"] for one in api.get("/api/runs").json()}
        assert api.get("/api/runs/linked").status_code == 400


def test_jobs_take_no_paths_outside_and_no_other_options(site: Site):
    outside = str(site.outside / "recipe.toml")
    bad = [
        {"recipe": outside},
        {"recipe": "../outside/recipe.toml"},
        {"recipe": "runs/plain/recipe.toml", "out": str(site.outside / "run")},
        {"verb": "verify", "target": outside},
        {"verb": "export", "target": "runs/plain", "options": {"out": str(site.outside)}},
        {"verb": "export", "target": "runs/plain", "options": {"to --out": "x"}},
        {"verb": "queue", "target": "runs/plain"},
        {"verb": "sample", "target": "runs/plain", "options": {"prompt": "x" * 5000}},
        {"recipe": "recipe.toml\u0000"},
        {"recipe": "x.toml", "verb": "verify"},
        {"recipe": ["x"]},
        {},
    ]
    with site.api() as api:
        for body in bad:
            answer = api.post("/api/jobs", json=body)
            assert answer.status_code in (400, 403, 422) and answer.json()["error"], body
        assert api.get("/api/jobs").json() == []
    assert not (site.outside / "run").exists()


def test_scripts_in_names_and_prompts_stay_texts(site: Site):
    run = quote(EVIL_NAME, safe="")
    with site.browser() as browser:
        for path in (
            *PAGES,
            f"/run/{run}",
            f"/results/{run}",
            "/run/%3Cscript%3Ealert(1)%3C%2Fscript%3E",
            "/api",
        ):
            answer = browser.get(path)
            assert answer.status_code == (404 if "%2F" in path else 200), path
            assert "<img src=x" not in answer.text and "<script>alert" not in answer.text, path
            policy = answer.headers["content-security-policy"]
            assert "'unsafe-inline'" not in policy.partition("script-src")[2].partition(";")[0], path
        nonce = browser.get("/").text.partition('<script nonce="')[2].partition('"')[0]
        assert nonce and nonce != browser.get("/").text.partition('<script nonce="')[2].partition('"')[0]
        assert EVIL_NAME in {one["name"] for one in browser.get("/api/runs").json()}


def test_files_of_runs_run_nothing(site: Site):
    with site.browser() as browser:
        page = browser.get("/api/runs/plain/files/page.html")
        assert page.text == "<script>alert(3)</script>"
        policy = page.headers["content-security-policy"]
        assert "sandbox" in policy and "default-src 'none'" in policy
        for path in (
            "/api/runs/plain/files/page.html",
            "/",
            "/api/runs",
            "/api/runs/plain/previews/step_000002.png/0/0.png",
        ):
            headers = browser.get(path).headers
            assert (headers["x-content-type-options"], headers["x-frame-options"]) == (
                "nosniff",
                "SAMEORIGIN",
            )


def bomb() -> bytes:
    """A PNG that says that it is 60,000 pixels wide and high."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")
        )

    size = (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", size)
        + chunk(b"IDAT", zlib.compress(b"\x00" * 10**6))
        + chunk(b"IEND", b"")
    )


def test_files_of_results_that_lie_elsewhere_or_are_broken_are_a_sentence(site: Site):
    run = write_run(site.project / "runs" / "files")
    (run / "exports" / "step_4").mkdir(parents=True)
    (site.outside / "other.safetensors").write_bytes(b"of others")
    (run / "a.safetensors").symlink_to(site.outside / "other.safetensors")
    (run / "exports" / "step_4" / "b.safetensors").write_bytes(b"broken")
    time.sleep(PLACES_SECONDS)  # so old may the list of runs be
    with site.browser() as browser:
        answer = browser.get("/results/files")
    assert answer.status_code == 200 and "is outside of the folders of this page" in answer.text
    assert "exports/step_4/b.safetensors" in answer.text and "of others" not in answer.text


def test_broken_previews_are_told(site: Site):
    (site.project / "runs" / "plain" / "previews" / "step_000004.png").write_bytes(bomb())
    with site.api() as api:
        for sheet, row, column in (
            *(("step_000003.png", 0, 0), ("step_000004.png", 0, 0), ("step_000002.png", 9, 0)),
            *(("step_000002.png", -1, 0), ("step_000002.png", 0, 2), ("none.png", 0, 0)),
        ):
            answer = api.get(f"/api/runs/plain/previews/{sheet}/{row}/{column}.png")
            assert answer.status_code == 400 and answer.json()["error"], (sheet, row, column)
        shown = api.get("/api/runs/plain/previews/step_000002.png/0/1.png")
        assert shown.headers["content-type"] == "image/png" and shown.content[:4] == b"\x89PNG"


def test_too_large_requests_are_refused(site: Site):
    with site.api() as api:
        assert api.post("/api/jobs", content=b"x" * (2**20 + 1)).status_code == 413

        def endless() -> Iterator[bytes]:
            for _ in range(40):
                yield b" " * 2**16

        assert api.post("/api/jobs", content=endless()).status_code == 413  # says no length
    for method, path, length in (
        ("POST", "/api/jobs", "-5"),
        ("PUT", "/api/uploads/x.safetensors", str(2**31)),
    ):
        with closing(http.client.HTTPConnection(site.host, timeout=60)) as connection:
            connection.putrequest(method, path)
            for key, value in {"Authorization": f"Bearer {TOKEN}", "Content-Length": length}.items():
                connection.putheader(key, value)
            connection.endheaders()
            assert connection.getresponse().status in (400, 413)


@pytest.mark.parametrize(
    "name", ["..%2F..%2Fx.safetensors", "%2e%2e", "x.exe", ".safetensors", "%00.safetensors", "%0a"]
)
def test_dropped_files_stay_in_their_folder(site: Site, name: str):
    def outside() -> set[Path]:
        found = {path for ending in ("safetensors", "exe") for path in around.rglob(f"*.{ending}")}
        return {path for path in found if path.parent != site.project / "dropped" or path.suffix == ".exe"}

    around = site.project.parent
    before = outside()
    with site.api() as api:
        answer = api.put(httpx.URL(site.address, raw_path=f"/api/uploads/{name}".encode()), content=b"x")
    assert answer.status_code in (201, 400, 404, 405)
    assert outside() == before


def test_dropped_files_replace_nothing_and_have_a_limit(site: Site):
    folder = site.project / "dropped"
    with site.api() as api:
        for content in (b"first", b"second"):
            assert api.put("/api/uploads/größe.safetensors", content=content).status_code == 201
        assert (folder / "größe.safetensors").read_bytes() == b"first"
        assert (folder / "größe_2.safetensors").read_bytes() == b"second"
        for number in range(5000 - len(list(folder.iterdir()))):
            (folder / f"{number}.txt").touch()
        refused = api.put("/api/uploads/more.safetensors", content=b"x")
        assert refused.status_code == 400 and "5,000 files" in refused.json()["error"]


def test_ten_thousand_files_in_one_request_are_harmless(site: Site):
    part = '--x\r\nContent-Disposition: form-data; name="f"; filename="a.png"\r\n\r\nx\r\n'
    body = (part * 10_000 + "--x--\r\n").encode()
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    with site.browser() as browser:
        answer = browser.post("/_nicegui/client/none/upload/1", content=body, headers=kind)
        assert answer.status_code in (400, 404, 405, 413)


def test_secrets_are_in_no_answer(site: Site):
    with site.browser() as browser:
        secrets = [TOKEN, *browser.cookies.values()]
        for path in (*PAGES, "/api", "/api/about", "/api/jobs", "/api/runs", "/api/openapi.json"):
            text = browser.get(path).text
            assert not [one for one in secrets if one in text], path
