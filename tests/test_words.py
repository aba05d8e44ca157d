"""The package and its docs speak the field's words; older ones stay only where they are a file format."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WORDS = {  # as a regular expression -> the field's word
    r"(?i)pictur": "image",
    r"(?i)(?<![a-z])wish": "options, request or inputs",
    r"(?i)onlook": "read-only",
    r"(?i)foresee|foreseen": "caption set, or expected",
    r"(?i)faulty": "invalid, damaged, or what it is",
    r"(?i)\bat[ _]hand\b": "available",
    r"(?i)held[-_ ]out|(?<![a-z])hold[-_]?out": "validation",
    r"(?i)\bnobody\b": "no one, or what is meant",
    r"class[-_ ](?:images?|pictures?)\b": "regularization images",
    r"(?i)own answer|base's answer|denoiser's answer|unet's answer": "prediction",
    r"\badd_up\b": "all_reduce_gradients",
    r"\bunrounded\b|\bbegin_as\b|\btake_over\b": "snapshot_float32, load_initial_weights, ...",
    r"class (?:Exchanged|Switched|Wishes|Onlooker|Foreseen|Together)": "SwappedParameters, ReadOnlyRun, ...",
}
KEPT = {  # room or page -> what stays there, as it is a format
    "docs/migrate.md": ("`[data.class_images]`, its `per_picture`", "`[holdout]`, role `holdout`"),
    "docs/reference/recipe.md": ("`data.class_images`", "per_picture", "`holdout`", "num_class_images"),
    # what options, verbs and files were called in the first version, which are still read
    "lora_studio/recipe": ("data.class_images", "per_picture", "holdout", "num_class_images"),
    "lora_studio/cli": (" class_images,", "(class_images)", "def class_images", "'class-images'"),
    "lora_studio/runs": ("holdout.jsonl", '"pictures"'),
    "lora_studio/data": (
        *('key.replace("picture", "image")', '"class_images"', "class_images/"),  # records and caches
        *('key("holdout"', '"class image"', '"class images"'),  # keys of random draws
        "|picture|",  # as cameras and programs call files
    ),
    "lora_studio/training": ('"class image"', '"class_images"', '"held_out"'),  # the last of `plan --json`
    "lora_studio/evaluate": ('generator("holdout"', "held_out_scenes"),
    # keys in finished files and their hashes
    "lora_studio/metadata": (
        *("class_pictures", "num_pictures", "num_held_out", '"pictures"', "`pictures`", 'root_of("picture"'),
        *("picture and caption", "picture and mask", "trained picture", "class image and caption"),
    ),
    # what the pocket world's captions may say, and scenes that no base was trained on
    "lora_studio/pocket": ("a picture of ", "style picture image photo", "held_out", "held out", "held-out"),
}

SEARCHED = [
    path
    for pattern in ("*.md", "Makefile", "Dockerfile", "docs/**/*.md", "recipes/*.toml", "sample_images/*.md")
    for path in sorted(ROOT.glob(pattern))
] + [path for path in sorted((ROOT / "lora_studio").rglob("*")) if path.suffix in {".py", ".md", ".css"}]


def kept_in(name: str) -> tuple[str, ...]:
    """What stays in a file, by the room or page that it belongs to."""
    return next((kept for place, kept in KEPT.items() if re.match(rf"{place}(?:/|\.|$)", name)), ())


def older_words(path: Path) -> list[str]:
    """Where they stand, and what is said now."""
    name, text = path.relative_to(ROOT).as_posix(), path.read_text("utf-8")
    for kept in kept_in(name):
        text = text.replace(kept, "")
    return [
        f"{name}:{number}: {match[0]!r} ({better}): {line.strip()}"
        for word, better in WORDS.items()
        if re.search(word, text)  # few files have any: line by line only these
        for number, line in enumerate(text.splitlines(), start=1)
        if (match := re.search(word, line))
    ]


def test_older_words_are_gone():
    assert len(SEARCHED) > 400
    found = [one for path in SEARCHED for one in older_words(path)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("place", KEPT)
def test_what_stays_is_still_there(place):
    names = {path: path.relative_to(ROOT).as_posix() for path in SEARCHED}
    texts = "\n".join(path.read_text("utf-8") for path, name in names.items() if kept_in(name) is KEPT[place])
    assert [kept for kept in KEPT[place] if kept not in texts] == []
