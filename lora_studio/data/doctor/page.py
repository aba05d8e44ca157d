"""The report as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from lora_studio import pages
from lora_studio.data.buckets import crop_loss
from lora_studio.data.doctor.finding import SEVERITIES, DoctorReport, Finding, refusals_of_the_disk
from lora_studio.data.images import UnreadableFile, read_bytes
from lora_studio.data.images.decode import data_url, decode
from lora_studio.data.manifest import Manifest, Record
from lora_studio.pages import document, parts_of, text_of
from lora_studio.text import in_words, plural

_KIND = "doctor"
_MOST_CARDS, _MOST_NAMES, _MOST_IMAGES = 60, 1000, 300  # a page with more opens slowly
_WIDTH, _HEIGHT = 180, 150  # the box that thumbnails fit into, in CSS pixels
_LARGEST_SIDE = 256  # pixels of an image's file: more than the page shows, for fine screens


def write_page(path: Path, report: DoctorReport, manifest: Manifest, *, title: str) -> None:
    """Write the page; an older one is replaced. Raises StudioError if another file is in its place."""
    with refusals_of_the_disk(path):
        pages.write_page(path, page(report, manifest, title=title), kind=_KIND)


def page(report: DoctorReport, manifest: Manifest, *, title: str) -> str:
    sections = [_section(findings, manifest) for _, findings in report.groups()]
    body = "\n".join([_head(report, title), *sections, _buckets(report.plan), _images(report, manifest)])
    return document(title, body, parts_of(__package__), kind=_KIND)


def _fill(part: str, **values: object) -> str:
    return parts_of(__package__).fill(part, **values)


def _of_kind(part: str, finding: Finding, **values: object) -> str:
    """A part of the page about a kind of finding, whose section it is or leads to."""
    words = in_words(finding.kind)
    return _fill(part, severity=finding.severity, kind=finding.kind, words=words, **values)


def _head(report: DoctorReport, title: str) -> str:
    plan = report.plan
    pills = "".join(
        f'<span class="pill {severity}{"" if count else " none"}">{plural(count, severity)}</span>'
        for severity, count in ((severity, report.count(severity)) for severity in SEVERITIES)
    )
    links = "".join(_of_kind("link", first, count=len(findings)) for first, findings in report.groups())
    found = plural(plan["files"], "file") + (" was" if plan["files"] == 1 else " were")
    good = "" if report.findings else '<p class="good">Nothing to mend. Have fun training.</p>'
    used = plural(plan["used"])
    return _fill("head", title=text_of(title), used=used, found=found, pills=pills, good=good, links=links)


def _section(findings: Sequence[Finding], manifest: Manifest) -> str:
    first, count = findings[0], len(findings)
    shared = first.advice if all(finding.advice == first.advice for finding in findings) else ""
    records = {record.name: record for record in manifest.records}
    cards = "\n".join(
        _card(finding, records, advice="" if shared else finding.advice) for finding in findings[:_MOST_CARDS]
    )
    rest = ""
    if more := findings[_MOST_CARDS:]:
        names = ", ".join(f"<bdi>{text_of(finding.path)}</bdi>" for finding in more[:_MOST_NAMES])
        unnamed = "" if len(more) <= _MOST_NAMES else " and others, which --json names"
        rest = f'<p class="rest">And {len(more)} more: {names}{unnamed}</p>'
    heading, advice = in_words(first.kind).capitalize(), _advice(shared)
    return _of_kind("section", first, heading=heading, count=count, advice=advice, cards=cards, rest=rest)


def _card(finding: Finding, records: dict[str, Record], *, advice: str) -> str:
    """One finding; an image that is like another stands beside it."""
    names = [name for name in (finding.path, finding.other) if name in records]
    thumbnails = {name: one for name in names if (one := _thumbnail(records[name]))}
    figures = list(thumbnails.values())
    pair = len(figures) == 2
    if pair:
        figures = [_fill("figure", thumbnail=one, name=text_of(name)) for name, one in thumbnails.items()]
    images = f'<div class="thumbnails">{"".join(figures)}</div>' if figures else ""
    name = "" if pair or not finding.path else f"<h3><bdi>{text_of(finding.path)}</bdi></h3>"
    texts = {"name": name, "detail": text_of(finding.detail), "advice": _advice(advice)}
    wide = " pair" if pair else "" if finding.path else " whole"  # one about all images needs no grid
    return _fill("finding", wide=wide, images=images, **texts)


def _advice(text: str) -> str:
    return f'<p class="advice">{text_of(text)}</p>' if text else ""


def _thumbnail(record: Record, *, with_crop: bool = False) -> str:
    """The image, with what the crop cuts away in shade if asked for; nothing if there is none to show."""
    if not record.width:
        return ""
    try:
        image = decode(read_bytes(Path(record.path)), background=record.background or "white").image
    except UnreadableFile:
        return ""
    image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.LANCZOS)
    uri = data_url(image, quality=72)
    scale = min(_WIDTH / record.width, _HEIGHT / record.height)
    width, height = max(8, round(record.width * scale)), max(8, round(record.height * scale))
    kept = ""
    if with_crop and record.crop and record.resize:  # a frame around what is left, in shares of the sides
        (left, top, right, bottom), (across, down) = record.crop, record.resize
        shares = {"left": left / across, "top": top / down}
        shares |= {"width": (right - left) / across, "height": (bottom - top) / down}
        kept = _fill("kept", **{name: f"{share:.2%}" for name, share in shares.items()})
    return _fill("thumbnail", width=width, height=height, uri=uri, name=text_of(record.name), kept=kept)


def _buckets(plan: dict[str, Any]) -> str:
    """Of each bucket the shape, the size, and a bar as long as it is frequent."""
    rows = []
    for name, count in plan["buckets"].items():
        sides = [int(side) for side in name.split("x")]
        width, height = (f"{side * (40 / max(sides)):.0f}" for side in sides)
        texts = {"name": name, "share": f"{count / max(plan['buckets'].values()):.0%}"}
        rows.append(_fill("bucket", width=width, height=height, count=plural(count), **texts))
    side, cropped = plan["resolution"], f"{plan['cropped_away']:.1%}"
    return _fill("buckets", side=side, stride=plan["stride"], cropped_away=cropped, rows="\n".join(rows))


def _images(report: DoctorReport, manifest: Manifest) -> str:
    kinds: dict[str, list[Finding]] = {}
    for finding in report.findings:
        kinds.setdefault(finding.path, []).append(finding)
    usable = manifest.usable
    cards = "\n".join(_image(record, kinds.get(record.name, [])) for record in usable[:_MOST_IMAGES])
    rest = ""
    if (more := len(usable) - _MOST_IMAGES) > 0:
        rest = f'<p class="rest">And {more} more, which are all in the plan of --json.</p>'
    return _fill("images", cards=cards, rest=rest)


def _image(record: Record, findings: Sequence[Finding]) -> str:
    role = "" if record.role == "instance" else f'<span class="pill role">{record.role}</span>'
    size = f"{record.width}x{record.height}" + (f" &rarr; {record.bucket.name}" if record.bucket else "")
    size += f", {crop_loss(record):.0%} cropped" if crop_loss(record) >= 0.005 else ""
    caption = f'<p class="caption">{text_of(record.caption)}</p>' if record.caption else ""
    pills = "".join(_of_kind("pill", finding) for finding in findings)
    parts = {"thumbnail": _thumbnail(record, with_crop=True), "name": text_of(record.name), "size": size}
    return _fill("image", **parts, caption=caption, role=role, pills=pills)
