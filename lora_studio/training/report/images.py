"""The images of a run in its plan: which are used, what is learned of them, and in which buckets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import PurePosixPath

from lora_studio.data.buckets.report import bucket_plan
from lora_studio.data.manifest import Manifest, Record
from lora_studio.data.regularization_images import DRAWN
from lora_studio.text import Section, plural
from lora_studio.training.prepare import Session


def image_sections(session: Session) -> tuple[Section, ...]:
    """Everything of the images but their captions and buckets."""
    used = session.manifest.used
    return (
        _images(session.manifest),
        _validation(session),
        _regularization_images(session),
        _repeats(used),
        _contents(used, session.recipe.objective.masked_preservation),
        Section(session.report.plan_rows(), {"findings": [*map(asdict, session.report.findings)]}),
    )


def shapes_section(session: Session) -> Section:
    """The buckets, and how often an image is cropped or mirrored."""
    plan = bucket_plan(session.manifest.used, session.recipe.data.all_resolutions)
    return Section(plan.rows(), {"buckets": asdict(plan)})


def _images(manifest: Manifest) -> Section:
    used, excluded = len(manifest.used), [(record.name, record.excluded) for record in manifest.excluded]
    rows = [("images", f"{used} used, {len(excluded)} excluded")]
    rows += [("", f"excluded: {name} ({reason})") for name, reason in excluded]
    return Section(rows, {"images_used": used, "images_excluded": excluded})


def _validation(session: Session) -> Section:
    names = [record.name for record in session.manifest.of_role("validation")]
    every = 0 if session.validation is None else session.recipe.validation.every
    data = {"held_out": names, "validation_every": every}
    if not names:
        return Section((), data)
    measured = "no loss is measured on them"
    if every:
        measured = f"their loss is measured before the first step and every {every}"
    text = f"{plural(len(names))}, not trained on; {measured}: {', '.join(names)}"
    return Section([("validation", text)], data)


def _regularization_images(session: Session) -> Section:
    records, feed = session.manifest.of_role("prior"), session.loop.feed
    if not records:
        return Section((), {"regularization_images": None})
    drawn = sum(record.captioned_by == DRAWN for record in records)
    prompt = feed.records[len(feed.captions.records)].caption
    per_image = session.recipe.data.regularization_images.per_image
    weights = sorted({record.weight for record in records})
    sources = {"drawn by the base": drawn, "from folders": len(records) - drawn}
    counts = " and ".join(f"{count} {source}" for source, count in sources.items() if count)
    weight = " or ".join(f"{weight:g}" for weight in weights)
    rows = [
        ("regularization images", f'{counts}, e.g. "{prompt}"'),
        ("", f"{per_image:g} in a batch besides each of its images, with weight {weight}"),
    ]
    data = {"drawn": drawn, "from_folders": len(records) - drawn, "prompt": prompt}
    data |= {"per_image": per_image, "weights": weights}
    return Section(rows, {"regularization_images": data})


def _repeats(records: Sequence[Record]) -> Section:
    """Nothing if every image is shown once an epoch."""
    if all(record.repeats == 1 for record in records):
        return Section((), {"repeats": []})
    folders = Counter((str(PurePosixPath(record.name).parent), record.repeats) for record in records)
    repeats = [(folder, count, times) for (folder, times), count in folders.items()]
    rows = [
        ("repeats", f"{plural(count)} in {folder}, {times} times an epoch each")
        for folder, count, times in repeats
    ]
    return Section(rows, {"repeats": repeats})


def _contents(records: Sequence[Record], masked_preservation: float) -> Section:
    """How files were read, and what of them is learned."""
    notes = [(record.name, record.note) for record in records if record.note]
    backgrounds = Counter(record.background for record in records if record.background)
    masks = sum(bool(record.mask) for record in records)
    rows = [("", f"note: {name}: {note}") for name, note in notes]
    rows += [
        ("transparency", f"{plural(count)} with clear parts, laid on {colour}")
        for colour, count in backgrounds.items()
    ]
    if masks:
        rows.append(("masks", f"{plural(masks)} learned only where the mask is white"))
    if masked_preservation:
        kept = f"outside of it the base's own prediction is kept, with weight {masked_preservation:g}"
        rows.append(("", kept))
    data = {"notes": notes, "backgrounds": dict(backgrounds), "masks": masks}
    return Section(rows, data | {"masked_preservation": masked_preservation})
