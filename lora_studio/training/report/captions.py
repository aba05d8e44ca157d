"""Captions and images of a run in its plan: examples, what varies, what is used and in which buckets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import PurePosixPath

from lora_studio.data.buckets.report import bucket_plan
from lora_studio.data.captions.shown import ShownCaptions
from lora_studio.data.captions.trigger import CutCaption, find_cut
from lora_studio.data.captions.wording import has_wildcards, tags_vary
from lora_studio.data.conditioning import CaptionSet
from lora_studio.data.manifest import Manifest, Record
from lora_studio.data.regularization_images import DRAWN
from lora_studio.families.base import ModelFamily
from lora_studio.metadata.provenance import MANIFEST
from lora_studio.recipe.data import DataConfig, one_more_chunk
from lora_studio.text import PlanSection, plural
from lora_studio.training.prepare import Session

_EXAMPLES = 3
_MOST_CUT = 5  # captions that are too long, in the terminal
_MOST_NAMED = 20  # files left out, or read in a way worth a note


def captions_section(session: Session) -> PlanSection:
    """Who wrote the captions, the first of them as the model sees them, what varies, and warnings."""
    captions, family = session.loop.feed.captions, session.family
    images, share = _one_of_each(captions), session.recipe.objective.preservation
    authors = Counter(record.captioned_by for record in session.manifest.used)
    examples = [captions.variant(index, 0, 0, index) for index in images[:_EXAMPLES]]
    triggers = session.report.plan["triggers"]
    variation = _variation(captions, session.caption_set, cached=session.loop.feed.texts is not None)
    written = ((captions.records[index].trigger, captions.written(index)) for index in images)
    missing = sum(any(trigger not in text for text in texts) for trigger, texts in written)
    plain = _without_trigger(captions)
    warnings, cuts = caption_warnings(captions), _find_cuts(captions, session.caption_set, family)

    rows = [("captions", ", ".join(f"{count} from {author}" for author, count in authors.items()))]
    rows += [("", f'"{caption}"') for caption in dict.fromkeys(examples)]  # one may be that of all images
    rows += [("", text) for text in (*triggers, *variation)]
    if family.max_chunks > 1:
        windows = f"{family.max_chunks} windows of the text encoder"
        rows.append(("", f"long captions fill up to {windows}; others beside them get empty ones"))
    if missing:
        do = "does" if missing == 1 else "do"
        rows.append(("warning", f"{plural(missing, 'caption')} {do} not hold the trigger words"))
    if share:
        shown = f"{share:.0%} of the images are shown without the trigger, e.g. "
        rows.append(("", f'{shown}"{plain}", and keep the base\'s own prediction'))
    rows += [("warning", text) for text in (*warnings, *_cuts_in_words(cuts, family))]
    data = {"captions": examples, "captioned_by": dict(authors), "captions_without_trigger": missing}
    data |= {"preservation": share, "preserved_caption": plain, "captions_cut": [*map(asdict, cuts)]}
    data |= {"token_chunks": family.max_chunks, "variation": variation}
    return PlanSection(rows, data | {"caption_warnings": warnings, "triggers": triggers})


def _one_of_each(captions: ShownCaptions) -> list[int]:
    """The index of each image, the first of several if it is shown at several areas."""
    last_first = reversed(list(enumerate(captions.records)))
    return sorted({record.name: index for index, record in last_first}.values())


def _without_trigger(captions: ShownCaptions) -> str:
    """A caption without its trigger; empty if none holds it."""
    indices = range(len(captions.records))
    found = (captions.without_trigger(index, captions.variant(index, 0, 0, index)) for index in indices)
    return next(filter(None, found), "")


def _find_cuts(captions: ShownCaptions, known: CaptionSet, family: ModelFamily) -> list[CutCaption]:
    """For each image with captions that are too long one of them, in the order of the images."""
    images = _one_of_each(captions)
    texts = {text: set(indices) for text, indices in known.texts.items()}
    for index in images:
        texts.setdefault(captions.variant(index, 0, 0, index), set()).add(index)
    cuts: dict[str, CutCaption] = {}
    for text, indices in texts.items():
        if cut := find_cut(family.caption_tokenizers.values(), "", text, max_chunks=family.max_chunks):
            for index in indices:
                name = captions.records[index].name
                cuts.setdefault(name, replace(cut, name=name))
    names = [captions.records[index].name for index in images]
    return [cuts[name] for name in names if name in cuts]


def _cuts_in_words(cuts: list[CutCaption], family: ModelFamily) -> list[str]:
    lines = [str(cut) for cut in cuts[:_MOST_CUT]]
    if (more := len(cuts) - _MOST_CUT) > 0:
        lines.append(f"{more} more {'caption is' if more == 1 else 'captions are'} cut")
    if lines and (setting := one_more_chunk(family.max_chunks, family.most_chunks)):
        lines[-1] += f"; {setting} reads more of long captions"
    return lines


def _variation(captions: ShownCaptions, known: CaptionSet, *, cached: bool) -> list[str]:
    """What changes in captions from one showing to the next. `cached`: the text encoder is not trained."""
    config, lines = captions.config, []
    if config.caption_dropout:
        lines.append(f"{config.caption_dropout:.0%} of the images are shown with an empty caption")
    if several := sum(bool(captions.records[index].lines) for index in _one_of_each(captions)):
        files = f"{plural(several, 'caption file')} {'has' if several == 1 else 'have'} several lines"
        if config.caption_lines == "choose":
            drawn = "each is a caption, and one is drawn each time"
            lines.append(f'{files}; {drawn} (data.caption_lines = "join" makes them one)')
        else:
            other = '(data.caption_lines = "choose" draws one of them each time)'
            lines.append(f"{files}, which are joined to one caption {other}")
    if not captions.vary:
        return lines
    tags = f"the tags{_behind(config)}"
    if config.shuffle_tags:
        lines.append(f"{tags} are shuffled each time")
    if config.tag_dropout:
        lines.append(f"{config.tag_dropout:.0%} of {tags} are left out each time, never one with the trigger")
    if config.wildcards:
        lines.append("one of the words in each {a|b} is drawn each time")
    number = f"{len(known.texts):,}" if known.complete else f"more than {len(known.texts):,}"
    when = "encoded before the first step" if known.complete else "each encoded when it is shown"
    return [*lines, f"{number} different captions are shown" + (f", {when}" if cached else "")]


def _behind(config: DataConfig) -> str:
    return f" behind the first {config.keep_tags}" if config.keep_tags else ""


def caption_warnings(captions: ShownCaptions) -> list[str]:
    """Options that change nothing, and captions that are nothing without one."""
    config, images = captions.config, _one_of_each(captions)
    wild = any(has_wildcards(text) for index in images for text in captions.written(index))
    warnings = []
    if config.wildcards and not wild:
        warnings.append("data.wildcards changes nothing: no caption holds {a|b}")
    if captions.preservation and (nameless := captions.nameless()):
        number = plural(len(nameless), "caption")
        fault = f'without the trigger "{nameless[0][1]}" names nothing, as {number} in all'
        warnings.append(f"{fault}; data.class_words says what stands there instead")
    records = enumerate(captions.records)
    written = ((text, record.trigger) for index, record in records for text in captions.written(index))
    moved = any(tags_vary(text, config, trigger) for text, trigger in written)
    if (config.shuffle_tags or config.tag_dropout) and not moved:
        why = f"no caption has several tags between commas{_behind(config)}"
        warnings.append(f"tags are neither shuffled nor left out: {why}")
    return warnings


def image_sections(session: Session) -> tuple[PlanSection, ...]:
    """Everything of the images but their captions and buckets."""
    used = session.manifest.used
    return (
        _images(session.manifest),
        _validation(session),
        _regularization_images(session),
        _repeats(used),
        _contents(used, session.recipe.objective.masked_preservation),
        PlanSection(session.report.plan_rows(), {"findings": [*map(asdict, session.report.findings)]}),
    )


def shapes_section(session: Session) -> PlanSection:
    """The buckets, and how often an image is cropped or mirrored."""
    plan = bucket_plan(session.manifest.used, session.recipe.data.all_resolutions)
    return PlanSection(plan.rows(), {"buckets": asdict(plan)})


def _images(manifest: Manifest) -> PlanSection:
    used, excluded = len(manifest.used), [(record.name, record.excluded) for record in manifest.excluded]
    rows = [("images", f"{used} used, {len(excluded)} excluded")]
    rows += [("", f"excluded: {name} ({reason})") for name, reason in excluded[:_MOST_NAMED]]
    if (more := len(excluded) - _MOST_NAMED) > 0:
        rows.append(("", f"and {more} more, which {MANIFEST} in the run folder names"))
    return PlanSection(rows, {"images_used": used, "images_excluded": excluded})


def _validation(session: Session) -> PlanSection:
    names = [record.name for record in session.manifest.of_role("validation")]
    every = 0 if session.validation is None else session.recipe.validation.every
    data = {"held_out": names, "validation_every": every}
    if not names:
        return PlanSection((), data)
    measured = "no loss is measured on them"
    if every:
        measured = f"their loss is measured before the first step and every {every}"
    text = f"{plural(len(names))}, not trained on; {measured}: {', '.join(names)}"
    return PlanSection([("validation", text)], data)


def _regularization_images(session: Session) -> PlanSection:
    records, feed = session.manifest.of_role("prior"), session.loop.feed
    if not records:
        return PlanSection((), {"regularization_images": None})
    drawn = sum(record.captioned_by == DRAWN for record in records)
    prompt = feed.records[len(feed.captions.records)].caption
    per_image = session.recipe.data.regularization_images.per_image
    weights = sorted({record.weight for record in records})
    sources = {"drawn by the base": drawn, "from folders": len(records) - drawn}
    counts = " and ".join(f"{count} {source}" for source, count in sources.items() if count)
    weight = " or ".join(f"{weight:g}" for weight in weights)
    shares = f"{per_image:g} in a batch besides each of its images, with weight {weight}"
    rows = [("regularization images", f'{counts}, e.g. "{prompt}"'), ("", shares)]
    data = {"drawn": drawn, "from_folders": len(records) - drawn, "prompt": prompt}
    data |= {"per_image": per_image, "weights": weights}
    return PlanSection(rows, {"regularization_images": data})


def _repeats(records: Sequence[Record]) -> PlanSection:
    """Nothing if every image is shown once an epoch."""
    if all(record.repeats == 1 for record in records):
        return PlanSection((), {"repeats": []})
    folders = Counter((str(PurePosixPath(record.name).parent), record.repeats) for record in records)
    repeats = [(folder, count, times) for (folder, times), count in folders.items()]
    shown = (
        f"{plural(count)}{'' if folder == '.' else f' in {folder}'}, {plural(times, 'time')} an epoch each"
        for folder, count, times in repeats
    )
    return PlanSection([("repeats", text) for text in shown], {"repeats": repeats})


def _contents(records: Sequence[Record], masked_preservation: float) -> PlanSection:
    notes = [(record.name, record.note) for record in records if record.note]
    backgrounds = Counter(record.background for record in records if record.background)
    masks = sum(bool(record.mask) for record in records)
    rows = [("", f"note: {name}: {note}") for name, note in notes[:_MOST_NAMED]]
    if (more := len(notes) - _MOST_NAMED) > 0:
        rows.append(("", f"and notes on {more} more, which {MANIFEST} in the run folder has"))
    for colour, count in backgrounds.items():
        rows.append(("transparency", f"{plural(count)} with clear parts, laid on {colour}"))
    if masks:
        rows.append(("masks", f"{plural(masks)} learned only where the mask is white"))
    if masked_preservation:
        kept = f"outside of it the base's own prediction is kept, with weight {masked_preservation:g}"
        rows.append(("", kept))
    data = {"notes": notes, "backgrounds": dict(backgrounds), "masks": masks}
    return PlanSection(rows, data | {"masked_preservation": masked_preservation})
