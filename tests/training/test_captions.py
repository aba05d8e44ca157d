"""Captions on their way into batches: what varies, what is encoded when, what is said before training."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import image_folder, recipe_text
from transformers import CLIPTextModel

from lora_studio.data import conditioning
from lora_studio.data.batches import Batch
from lora_studio.errors import RecipeError
from lora_studio.recipe.load import load_recipe
from lora_studio.rng import generator
from lora_studio.runs import Run
from lora_studio.training.events import ignore_events
from lora_studio.training.finish import Finished
from lora_studio.training.prepare import Session, prepare
from lora_studio.training.report import Timing, describe
from lora_studio.training.session import train

CAPTIONS = {
    "00": "a red ball, zwx style, on grass, at night",
    "01": "a moon, zwx style\na yellow moon in the sky, zwx style\n",
    "02": "a {big|small} star, zwx style, in a meadow",
    "03": ", ".join(["zwx style", *["a red star"] * 12]),  # 51 tokens of the 30 that fit
    "04": "a fish, zwx style",
}
VARIED = (
    *("data.shuffle_tags=true", "data.keep_tags=1", "data.tag_dropout=0.2", "data.wildcards=true"),
    *("data.max_token_chunks=3", "data.caption_prefix=art:"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images whose captions have tags, lines, wildcards and more tokens than fit."""
    folder = tmp_path_factory.mktemp("captions")
    for name, caption in CAPTIONS.items():
        Image.new("RGB", (64, 64), (int(name) * 50, 99, 0)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(caption, "utf-8")
    return folder


@pytest.fixture
def session_of(folder: Path, tiny_base: Path, tmp_path: Path) -> Callable[..., Session]:
    """`session_of("data.shuffle_tags=true")`: ready to train the images of `folder`, or of another."""

    def make(*changes: str, images: Path = folder) -> Session:
        path = tmp_path / "recipe.toml"
        path.write_text(recipe_text(images, str(tiny_base), steps=12), "utf-8")
        recipe = load_recipe(path, changes=("data.caption_dropout=0", *changes))
        return prepare(recipe, Run(tmp_path / "run"), ignore_events)

    return make


@pytest.fixture
def encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.Tensor]]:
    """The token ids of every call of a text encoder; the cache is empty at first."""
    monkeypatch.setenv("LORA_STUDIO_CACHE", str(tmp_path / "cache"))
    calls: list[torch.Tensor] = []
    forward = CLIPTextModel.forward

    def counting(self: CLIPTextModel, input_ids: torch.Tensor, **options: object) -> object:
        calls.append(input_ids)
        return forward(self, input_ids, **options)

    monkeypatch.setattr(CLIPTextModel, "forward", counting)
    yield calls


def batches(session: Session, steps: int = 12) -> list[Batch]:
    return [batch for step in range(1, steps + 1) for batch in session.loop.feed.of_step(step)]


def shown(session: Session, steps: int = 12) -> list[str]:
    return [caption for batch in batches(session, steps) for caption in batch.captions]


def plan_of(session: Session) -> list[str]:
    plan = describe(session, first_step=1, timing=Timing(0.1, 1))
    return [f"{title}: {text}".removeprefix(": ") for title, text in plan.rows]


@pytest.mark.parametrize(
    ("before", "option"),
    [
        ((), "data.caption_lines=join"),
        ((), "data.wildcards=true"),
        ((), "data.shuffle_tags=true"),
        (("data.shuffle_tags=true",), "data.keep_tags=1"),
        ((), "data.tag_dropout=0.3"),
        ((), "data.caption_prefix=art of"),
        ((), "data.caption_suffix=, {trigger}"),
        ((), "data.caption_dropout=0.5"),
    ],
)
def test_every_option_changes_the_captions_of_batches(
    before: tuple[str, ...], option: str, session_of: Callable[..., Session]
) -> None:
    assert shown(session_of(*before)) != shown(session_of(*before, option))


def test_more_windows_change_the_conditioning_of_long_captions_alone(
    session_of: Callable[..., Session],
) -> None:
    one, three = batches(session_of()), batches(session_of("data.max_token_chunks=3"))
    lengths = set()
    for short, long in zip(one, three, strict=True):
        assert short.conditioning and long.conditioning and short.captions == long.captions
        lengths.add(length := long.conditioning["text"].shape[1])
        assert length == (64 if any("a red star" in caption for caption in long.captions) else 32)
        for row, caption in enumerate(long.captions):
            same = torch.equal(short.conditioning["text"][row], long.conditioning["text"][row, :32])
            assert same == ("a red star" not in caption)  # it breaks at a comma, and the cut one does not
    assert lengths == {32, 64}


def test_captions_depend_on_seed_step_and_row_alone(session_of: Callable[..., Session]) -> None:
    session = session_of(*VARIED)
    straight = [session.loop.feed.captions.at(0, step, 0, row) for step in range(9) for row in range(2)]
    backwards = [
        session.loop.feed.captions.at(0, step, 0, row) for step in range(8, -1, -1) for row in (1, 0)
    ]
    assert straight == backwards[::-1] and len(set(straight)) > 6
    assert shown(session) == shown(session_of(*VARIED)) != shown(session_of(*VARIED, "training.seed=2"))


def test_encoding_before_and_during_training_give_the_same_bits(
    session_of: Callable[..., Session], encoded: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*VARIED, "data.caption_dropout=0.1", "objective.preservation=0.3")
    before = session_of(*options)
    assert before.caption_set.complete
    encoded.clear()
    expected_batches = batches(before)
    assert not encoded, "all captions of the run are there when it starts"
    monkeypatch.setattr(conditioning, "MOST_TEXTS", 3)
    during = session_of(*options)
    assert not during.caption_set.complete and len(during.caption_set.texts) == 3
    for expected, found in zip(expected_batches, batches(during), strict=True):
        assert expected.captions == found.captions and expected.conditioning and found.conditioning
        assert torch.equal(expected.conditioning["text"], found.conditioning["text"])
    assert len(encoded) > 5
    assert any("more than 3 different captions are shown, each encoded" in line for line in plan_of(during))


def test_editing_one_caption_encodes_one_and_a_second_run_none(
    tmp_path: Path, session_of: Callable[..., Session], encoded: list[torch.Tensor]
) -> None:
    images = image_folder(tmp_path / "images")

    def calls(*changes: str) -> int:
        encoded.clear()
        batches(session_of(*changes, images=images))
        return len(encoded)

    assert calls() == 6  # five captions and the empty one
    assert calls() == 0
    (images / "03.txt").write_text("something else, zwx style", "utf-8")
    assert calls() == 1
    assert calls("data.shuffle_tags=true") > 0
    assert calls("data.shuffle_tags=true") == 0


def test_more_captions_than_are_held_are_encoded_once_and_read_back(
    tmp_path: Path,
    session_of: Callable[..., Session],
    encoded: list[torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = image_folder(tmp_path / "images")
    held = batches(session_of(images=images))
    monkeypatch.setenv("LORA_STUDIO_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(conditioning, "TEXT_BYTES", 1)
    encoded.clear()
    session = session_of(images=images)
    assert len(encoded) == 6, "five captions and the empty one, before the first step"
    for expected, found in zip(held, batches(session), strict=True):
        assert expected.conditioning and found.conditioning
        assert torch.equal(expected.conditioning["text"], found.conditioning["text"])
    assert len(encoded) == 6


def test_conditioning_in_half_precision_is_an_entry_of_its_own(
    session_of: Callable[..., Session], encoded: list[torch.Tensor]
) -> None:
    session_of("base.dtype=float32")
    encoded.clear()
    session_of("base.dtype=bfloat16")
    assert encoded
    encoded.clear()
    session_of("base.dtype=float32")
    assert not encoded


def test_preservation_leaves_the_trigger_out_of_the_varied_caption(
    session_of: Callable[..., Session],
) -> None:
    session = session_of(*VARIED, "objective.preservation=0.5", "training.steps=40")
    plain, others = set(), set()
    for batch in batches(session, 40):
        rows = batch.preserved
        plain |= {batch.captions[row] for row in rows}
        others |= {caption for row, caption in enumerate(batch.captions) if row not in rows}
    assert not any("zwx" in caption or "{" in caption for caption in plain)
    assert all("zwx style" in caption and caption.startswith("art:") for caption in others)
    captions = session.loop.feed.captions
    ball = {one.text for step in range(200) if (one := captions.at(0, step, 0, 0)).preserved}
    assert ball == {
        f"art: a red ball{rest}"
        for rest in ("", ", on grass", ", at night", ", on grass, at night", ", at night, on grass")
    }


def test_a_trained_text_encoder_preserves_at_the_length_of_the_batch(
    session_of: Callable[..., Session],
) -> None:
    session = session_of(*VARIED, "objective.preservation=0.5", "adapter.text_encoder=true")
    family, loop = session.family, session.loop
    batch = next(
        batch
        for batch in batches(session, 200)
        if len(batch.captions) == 2
        and len(batch.preserved) == 1
        and family.encode_text(batch.captions)["text"].shape[1] == 64
        and "a red star" not in batch.captions[batch.preserved[0]]
    )
    noised = loop.objective.noise(batch.latents, generator("noise"))
    text = {"text": family.encode_text(batch.captions)["text"]}
    answer = family.denoise(noised.latents, noised.timestep, text, batch.geometry)
    (row,) = batch.preserved
    target = session.loop.base_predictions.targets(batch, noised).learned[row]
    torch.testing.assert_close(target, answer[row], atol=1e-5, rtol=1e-4)  # the adapters do nothing yet


@pytest.mark.slow
def test_resuming_with_varied_captions_gives_the_same_file(
    tmp_path: Path, folder: Path, tiny_base: Path
) -> None:
    (tmp_path / "recipe.toml").write_text(recipe_text(folder, str(tiny_base)), "utf-8")
    recipe = load_recipe(tmp_path / "recipe.toml", changes=VARIED)
    straight = train(recipe, tmp_path / "straight")
    assert isinstance(straight, Finished)
    shutil.copytree(tmp_path / "straight", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step_000004")
    (tmp_path / "resumed" / straight.lora_file.name).unlink()
    resumed = train(recipe, tmp_path / "resumed", resume=True)
    assert isinstance(resumed, Finished)
    assert resumed.lora_file.read_bytes() == straight.lora_file.read_bytes()


def test_the_plan_shows_varied_captions_and_says_what_varies(session_of: Callable[..., Session]) -> None:
    session = session_of(*VARIED, "data.caption_dropout=0.1")
    lines = plan_of(session)
    examples = lines[lines.index("captions: 5 from sidecar") + 1 :][:3]
    for (name, written), example in zip(list(CAPTIONS.items())[:3], examples, strict=True):
        first = "a moon|a yellow moon in the sky" if name == "01" else written.split(",")[0]
        assert any(
            example.startswith(f'"art: {start}') for start in first.replace("{big|small} star", "").split("|")
        )
    assert "{" not in "".join(examples)
    count = len(set(shown(session)) | {""})
    for line in (
        "10% of the images are shown with an empty caption",
        "1 caption file has several lines; each is a caption, and one is drawn each time "
        '(data.caption_lines = "join" makes them one)',
        "the tags behind the first 1 are shuffled each time",
        "20% of the tags behind the first 1 are left out each time, never one with the trigger",
        "one of the words in each {a|b} is drawn each time",
        f"{count} different captions are shown, encoded before the first step",
        "long captions fill up to 3 windows of the text encoder; others beside them get empty ones",
    ):
        assert line in lines, line
    assert not any("is cut" in line for line in lines)


def test_lines_are_joined_or_drawn_and_either_is_said(session_of: Callable[..., Session]) -> None:
    """What OneTrainer does, and users ask of others (sd-scripts#1155): one caption a line."""
    drawn, joined = session_of(), session_of("data.caption_lines=join")
    moons = {caption for caption in shown(drawn, 40) if "moon" in caption}
    assert moons == {"a moon, zwx style", "a yellow moon in the sky, zwx style"}
    together = {caption for caption in shown(joined) if "moon" in caption}
    assert together == {"a moon, zwx style a yellow moon in the sky, zwx style"}
    assert any("1 caption file has several lines, which are joined" in line for line in plan_of(joined))
    assert not any("different captions are shown" in line for line in plan_of(joined))


def test_what_is_cut_is_said_before_training(session_of: Callable[..., Session]) -> None:
    """Users' pain 34: long captions lost their end without notice (OneTrainer#62, diffusers#9763)."""
    session = session_of()
    (line,) = [line for line in plan_of(session) if "is cut" in line]
    tokenizer = session.family.tokenizers["tokenizer"]
    ids = tokenizer(CAPTIONS["03"]).input_ids
    lost = tokenizer.decode(ids[31:-1]).strip()
    assert len(ids) > 32 and lost.endswith("a red star")
    assert line == (
        f'warning: 03.png is cut: {len(ids)} tokens, so "{lost}" is not seen; '
        "data.max_token_chunks = 2 reads more of long captions"
    )


def test_what_would_do_nothing_is_warned_of(session_of: Callable[..., Session], tmp_path: Path) -> None:
    warnings = [line for line in plan_of(session_of()) if line.startswith("warning")]
    (line,) = [line for line in warnings if "{a|b} in " in line]
    assert "read as they stand" in line and "Set data.wildcards = true" in line
    images = image_folder(tmp_path / "images", count=2)
    for path in images.glob("*.txt"):
        path.write_text("a ball in zwx style", "utf-8")
    lines = plan_of(session_of("data.wildcards=true", "data.shuffle_tags=true", images=images))
    assert "warning: data.wildcards changes nothing: no caption holds {a|b}" in lines
    assert any("no caption has several tags between commas" in line for line in lines)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("data.keep_tags=2", "data.keep_tags is 2, but no tags are shuffled or left out"),
        ("data.caption_prefix={triger}", "did you mean 'trigger'"),
        ("data.caption_suffix={class}", r"in a recipe: data\.class_words"),
        ("data.tag_dropout=1", r"data\.tag_dropout is 1"),
        ("data.max_token_chunks=0", r"data\.max_token_chunks is 0"),
        ("data.caption_lines=first", r"data\.caption_lines is 'first'"),
    ],
)
def test_a_wish_that_cannot_be_met_is_one_sentence(
    change: str, words: str, session_of: Callable[..., Session]
) -> None:
    with pytest.raises(RecipeError, match=words):
        session_of(change)


def test_all_kinds_of_caption_files_are_read_and_counted(
    tmp_path: Path, session_of: Callable[..., Session]
) -> None:
    """Users' pain 9: a trainer that reads only .caption ignored every .txt (kohya_ss#927)."""
    folder = tmp_path / "images"
    folder.mkdir()
    files = {
        "a.txt": b"by txt, zwx style",
        "b.caption": b"by caption, zwx style",
        "c.txt": "by b\u00f6m, zwx style".encode("utf-8-sig"),
        "d.txt": "by utf-16, zwx style".encode("utf-16"),
        "e.txt": b"by crlf, zwx style\r\n",
        "f.txt": b"\r\n",  # empty, so the next one in line is read
        "f.caption": b"by caption instead, zwx style",
    }
    for number, name in enumerate(sorted({name[0] for name in files})):
        Image.new("RGB", (64, 64), (number * 40, 0, 0)).save(folder / f"{name}.png")
    for name, data in files.items():
        (folder / name).write_bytes(data)
    Image.new("RGB", (64, 64), "white").save(folder / "g.png")
    (folder / "metadata.jsonl").write_text('{"file_name": "g.png", "text": "by list, zwx style"}\n')
    session = session_of(images=folder)
    lines = plan_of(session)
    assert "captions: 6 from sidecar, 1 from metadata.jsonl" in lines
    assert lines[lines.index("captions: 6 from sidecar, 1 from metadata.jsonl") + 1 :][:3] == [
        *('"by txt, zwx style"', '"by caption, zwx style"', '"by böm, zwx style"')
    ]
    ways = ("txt", "caption", "böm", "utf-16", "crlf", "caption instead", "list")
    assert set(shown(session)) == {f"by {way}, zwx style" for way in ways}


@pytest.mark.slow
def test_a_console_of_another_script_does_not_stop_training(
    tmp_path: Path, folder: Path, tiny_base: Path
) -> None:
    """Users' pain 30: a Japanese line in the log crashed training on cp1252 (kohya_ss#3587)."""
    images = tmp_path / "Größe 猫 🎨"
    images.mkdir()
    Image.new("RGB", (64, 64), "red").save(images / "猫.png")
    (images / "猫.txt").write_text("赤い猫, zwx style\nune fenêtre, zwx style", "utf-8")
    recipe = images / "recipe ü.toml"
    recipe.write_text(recipe_text(images, str(tiny_base), steps=1), "utf-8")
    command = [sys.executable, "-m", "lora_studio", "train", str(recipe), "--out", str(tmp_path / "Läufe 猫")]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    result = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "zwx style" in result.stdout.decode("cp1252")
    assert (tmp_path / "Läufe 猫" / "tiny.safetensors").is_file()
