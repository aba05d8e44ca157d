"""The report as one HTML page that needs no other file, no script and no network.

Names, captions and reasons come from files that anybody may have made: every text passes through `_text`.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from io import BytesIO
from pathlib import Path

from PIL import Image

from lora_studio.data.buckets import crop_loss
from lora_studio.data.doctor.finding import SEVERITIES, DoctorReport, Finding
from lora_studio.data.images import UnreadableFile, read_bytes
from lora_studio.data.images.decode import decode
from lora_studio.data.manifest import Manifest, Record
from lora_studio.errors import DatasetError
from lora_studio.files import write_atomically
from lora_studio.text import in_words, plural, shown

_MARK = '<meta name="generator" content="lora-studio doctor">'
_MOST_CARDS, _MOST_IMAGES = 60, 300  # a page with more opens slowly
_WIDTH, _HEIGHT = 180, 150  # the box that thumbnails fit into, in CSS pixels
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_page(path: Path, report: DoctorReport, manifest: Manifest, *, title: str) -> None:
    """Write the page; an older one is replaced. Raises DatasetError if another file is in its place."""
    try:
        if path.exists() and _MARK.encode() not in path.read_bytes()[:1000]:
            raise DatasetError(f"{path} is there already, and no page of the doctor; choose another name.")
        write_atomically(path, page(report, manifest, title=title).encode("utf-8"))
    except OSError as error:
        raise DatasetError(f"{path} cannot be written: {error.strerror}; choose another place.") from None


def page(report: DoctorReport, manifest: Manifest, *, title: str) -> str:
    body = [
        _head(report, title),
        *(_section(findings, manifest) for _, findings in report.groups()),
        _buckets(report),
        _images(report, manifest),
    ]
    style = files(__package__).joinpath("page.css").read_text("utf-8")
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            _MARK,
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_text(title)}: doctor</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>",
            *filter(None, body),
            "</main>\n</body>\n</html>\n",
        ]
    )


def _head(report: DoctorReport, title: str) -> str:
    plan = report.plan
    counts = [(severity, report.count(severity)) for severity in SEVERITIES]
    pills = "".join(
        f'<span class="pill {severity}{"" if count else " none"}">{plural(count, severity)}</span>'
        for severity, count in counts
    )
    links = "".join(
        f'<a class="{first.severity}" href="#{first.severity}-{first.kind}">{in_words(first.kind)} '
        f"<b>{len(findings)}</b></a>"
        for first, findings in report.groups()
    )
    files_found = plural(plan["files"], "file") + (" was" if plan["files"] == 1 else " were")
    summary = f"{plural(plan['used'])} to train on; {files_found} looked at."
    good = "" if report.findings else '<p class="good">Nothing to mend. Have fun training.</p>'
    return (
        f"<header>\n<h1><bdi>{_text(title)}</bdi></h1>\n<p>{summary}</p>\n<p>{pills}</p>{good}\n"
        f'<nav>{links}<a href="#buckets">buckets</a><a href="#images">images</a></nav>\n</header>'
    )


def _section(findings: Sequence[Finding], manifest: Manifest) -> str:
    first = findings[0]
    shared = first.advice if all(finding.advice == first.advice for finding in findings) else ""
    records = {record.name: record for record in manifest.records}
    cards = "\n".join(
        _card(finding, records, advice="" if shared else finding.advice) for finding in findings[:_MOST_CARDS]
    )
    rest = ""
    if more := findings[_MOST_CARDS:]:
        names = ", ".join(f"<bdi>{_text(finding.path)}</bdi>" for finding in more)
        rest = f'<p class="rest">And {len(more)} more: {names}</p>'
    advice = f'<p class="advice">{_text(shared)}</p>' if shared else ""
    return (
        f'<section id="{first.severity}-{first.kind}" class="{first.severity}">\n'
        f"<h2>{in_words(first.kind).capitalize()} "
        f'<span class="pill {first.severity}">{first.severity}</span> '
        f"<small>{len(findings)}</small></h2>\n{advice}\n"
        f'<div class="cards">\n{cards}\n</div>{rest}\n</section>'
    )


def _card(finding: Finding, records: dict[str, Record], *, advice: str) -> str:
    """One finding; an image that is like another stands beside it."""
    names = [name for name in (finding.path, finding.other) if name in records]
    thumbnails = [(name, _thumbnail(records[name])) for name in names]
    figures = [
        f"<figure>{thumbnail}<figcaption><bdi>{_text(name)}</bdi></figcaption></figure>"
        for name, thumbnail in thumbnails
        if thumbnail
    ]
    if len(figures) < 2:
        figures = [thumbnail for _, thumbnail in thumbnails if thumbnail]
    images = f'<div class="thumbnails">{"".join(figures)}</div>' if figures else ""
    named = not finding.path or len(figures) == 2
    name = "" if named else f"<h3><bdi>{_text(finding.path)}</bdi></h3>"
    what_to_do = f'<p class="advice">{_text(advice)}</p>' if advice else ""
    wide = " pair" if len(figures) == 2 else ""
    return f'<article class="card{wide}">{images}{name}<p>{_text(finding.detail)}</p>{what_to_do}</article>'


def _thumbnail(record: Record, *, with_crop: bool = False) -> str:
    """The image, with what the crop cuts away in shade if asked for; nothing if there is none to show."""
    if not record.width or not (uri := data_uri(record)):
        return ""
    scale = min(_WIDTH / record.width, _HEIGHT / record.height)
    width, height = max(8, round(record.width * scale)), max(8, round(record.height * scale))
    kept = _kept(record) if with_crop else ""
    return (
        f'<span class="thumbnail" style="width:{width}px;height:{height}px">'
        f'<img src="{uri}" width="{width}" height="{height}" alt="{_text(record.name)}">{kept}</span>'
    )


def _kept(record: Record) -> str:
    """The frame around what is left of the image, in shares of its sides."""
    if record.crop is None or record.resize is None:
        return ""
    (left, top, right, bottom), (width, height) = record.crop, record.resize
    place = f"left:{left / width:.2%};top:{top / height:.2%}"
    size = f"width:{(right - left) / width:.2%};height:{(bottom - top) / height:.2%}"
    return f'<span class="kept" style="{place};{size}"></span>'


def _buckets(report: DoctorReport) -> str:
    plan = report.plan
    most = max(plan["buckets"].values(), default=1)
    rows = "\n".join(_bucket(name, count, count / most) for name, count in plan["buckets"].items())
    area = f"{plan['resolution']}&thinsp;x&thinsp;{plan['resolution']}"
    return (
        '<section id="buckets">\n<h2>Bucket plan</h2>\n'
        f"<p>Images are sorted into sizes of about the area of {area}, in steps of {plan['stride']} "
        f"pixels, and cut to them. On average {plan['cropped_away']:.1%} of an image is cropped away.</p>\n"
        f'<div class="buckets">\n{rows}\n</div>\n</section>'
    )


def _bucket(name: str, count: int, share: float) -> str:
    """A bucket's shape, its size, and a bar as long as it is frequent."""
    width, height = (int(side) for side in name.split("x"))
    scale = 40 / max(width, height)
    shape = f'<span class="shape" style="width:{width * scale:.0f}px;height:{height * scale:.0f}px"></span>'
    bar = f'<span class="bar"><span style="width:{share:.0%}"></span></span>'
    rest = f"<b>{name}</b>{bar}<span>{plural(count)}</span>"
    return f'<div class="bucket"><span class="box">{shape}</span>{rest}</div>'


def _images(report: DoctorReport, manifest: Manifest) -> str:
    usable = [record for record in manifest.records if not record.excluded]
    kinds: dict[str, list[Finding]] = {}
    for finding in report.findings:
        kinds.setdefault(finding.path, []).append(finding)
    cards = "\n".join(_image(record, kinds.get(record.name, [])) for record in usable[:_MOST_IMAGES])
    rest = ""
    if (more := len(usable) - _MOST_IMAGES) > 0:
        rest = f'<p class="rest">And {more} more, which are all in the plan of --json.</p>'
    return (
        '<section id="images">\n<h2>Images</h2>\n'
        "<p>As they are cut: what lies in shade is cropped away.</p>\n"
        f'<div class="cards">\n{cards}\n</div>{rest}\n</section>'
    )


def _image(record: Record, findings: Sequence[Finding]) -> str:
    pills = "".join(
        f'<a class="pill {finding.severity}" href="#{finding.severity}-{finding.kind}">'
        f"{in_words(finding.kind)}</a>"
        for finding in findings
    )
    role = "" if record.role == "instance" else f'<span class="pill role">{record.role}</span>'
    bucket = f" &rarr; {record.bucket.name}" if record.bucket else ""
    bucket += f", {crop_loss(record):.0%} cropped" if crop_loss(record) >= 0.005 else ""
    caption = f'<p class="caption">{_text(record.caption)}</p>' if record.caption else ""
    return (
        f'<article class="card"><div class="thumbnails">{_thumbnail(record, with_crop=True)}</div>'
        f"<h3><bdi>{_text(record.name)}</bdi></h3>"
        f'<p class="size">{record.width}x{record.height}{bucket}</p>{caption}<p>{role}{pills}</p></article>'
    )


def _text(text: str) -> str:
    return escape(shown(text), quote=True)


_LARGEST_SIDE = 256  # pixels: more than the page shows, for fine screens


def data_uri(record: Record) -> str:
    """The image as "data:image/jpeg;base64,...", without its metadata; "" if it cannot be shown."""
    try:
        image = decode(read_bytes(Path(record.path)), background=record.background or "white").image
    except UnreadableFile:
        return ""
    image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.LANCZOS)
    written = BytesIO()
    # Rebuilt from pixels alone, since an image also carries where and by whom it was taken.
    Image.frombytes("RGB", image.size, image.tobytes()).save(written, "JPEG", quality=72)
    return f"data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode('ascii')}"
