"""The package and its docs speak the field's words; older ones stay only where they are a file format."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HELD_OUT = r"(?i)held[-_ ]out|(?<![a-z])hold[-_]?out"
WORDS = {  # as a regular expression -> the field's word
    r"(?i)pictur": "image",
    r"(?i)(?<![a-z])wish": "options, request or inputs",
    r"(?i)onlook": "read-only",
    r"(?i)foresee|foreseen": "caption set, or expected",
    r"(?i)faulty": "invalid, damaged, or what it is",
    r"(?i)\bat[ _]hand\b": "available",
    HELD_OUT: "validation",
    r"(?i)\bnobody\b": "no one, or what is meant",
    r"class[-_ ](?:images?|pictures?)\b": "regularization images",
    r"(?i)own answer|base's answer|denoiser's answer|unet's answer": "prediction",
    r"\badd_up\b": "all_reduce_gradients",
    r"\bunrounded\b|\bbegin_as\b|\btake_over\b": "snapshot_float32, load_initial_weights, ...",
    r"\bclass (?:Exchanged|Switched|Wishes|Onlooker|Foreseen|Together)\b": "SwappedParameters, Toggleable, ReadOnlyRun, CaptionSet, ...",
}
KEPT: dict[str, tuple[str, ...]] = {
    # what options, verbs and files were called in the first version, which still reads
    "docs/migrate.md": ("`[data.class_images]`, its `per_picture`", "`[holdout]`, role `holdout`"),
    "docs/reference/recipe.md": ("`data.class_images`", "per_picture", "`holdout`", "num_class_images"),
    "lora_studio/recipe/renamed.py": ("data.class_images", "per_picture", "holdout"),
    "lora_studio/recipe/load.py": ("num_class_images",),  # of the diffusers scripts
    "lora_studio/recipe/schema.py": ("role `holdout`",),
    "lora_studio/cli/__init__.py": (" class_images,", "(class_images)"),
    "lora_studio/cli/dataset.py": ("def class_images", "'class-images'"),
    "lora_studio/runs.py": ("holdout.jsonl", '"pictures"'),
    "lora_studio/training/report/images.py": ('"held_out"',),  # of `plan --json`
    "lora_studio/data/captions/ledger.py": ('key.replace("picture", "image")',),
    # keys in finished files and their hashes
    "lora_studio/metadata/provenance.py": (
        *("class_pictures", "num_pictures", "num_held_out", '"pictures"', "`pictures`", 'root_of("picture"'),
        *("picture and caption", "picture and mask", "trained picture", "class image and caption"),
    ),
    "lora_studio/metadata/provenance_check.py": ("class_pictures", "num_pictures", '"pictures"'),
    # keys of random draws, and of what is cached
    "lora_studio/data/sources.py": ('key("holdout"',),
    "lora_studio/evaluate/validation.py": ('generator("holdout"',),
    "lora_studio/data/regularization_images.py": ('"class image"', '"class images"', "class_images/"),
    "lora_studio/training/prepare/regularization_images.py": ('"class image"', '"class_images"'),
    "lora_studio/data/cache/__init__.py": ('"class_images"',),
    # words that images are called by, on cameras and in the captions of the pocket world
    "lora_studio/data/captioners/words.py": ("|picture|",),
    "lora_studio/pocket/stages/world.py": ("a picture of ",),
    "lora_studio/pocket/stages/clip.py": ("style picture image photo",),
}
"""What stays, by file."""

SEARCHED = [
    path
    for pattern in ("*.md", "Makefile", "Dockerfile", "docs/**/*.md", "recipes/*.toml", "sample_images/*.md")
    for path in sorted(ROOT.glob(pattern))
] + [path for path in sorted((ROOT / "lora_studio").rglob("*")) if path.suffix in {".py", ".md", ".css"}]


@pytest.mark.parametrize("path", SEARCHED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_older_words_are_gone(path):
    name, text = path.relative_to(ROOT).as_posix(), path.read_text("utf-8")
    for kept in KEPT.get(name, ()):
        assert kept in text, f"{kept!r} is not in {name} any more: take it out of KEPT"
        text = text.replace(kept, "")
    found = [
        f"{name}:{number}: {match[0]!r} ({better}): {line.strip()}"
        for number, line in enumerate(text.splitlines(), start=1)
        for word, better in WORDS.items()
        if not (word == HELD_OUT and "/pocket/" in name)  # of scenes that no base was trained on
        if (match := re.search(word, line))
    ]
    assert not found, "\n".join(found)


def test_kept_words_are_of_files_that_are_searched():
    assert set(KEPT) <= {path.relative_to(ROOT).as_posix() for path in SEARCHED}
