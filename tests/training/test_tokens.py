"""[[tokens]] through a whole run: alone and beside a LoRA, refused, stopped, resumed, verified."""

from __future__ import annotations

import io
import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from ready import prepared
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import image_folder, recipe_text

from lora_studio.console import Screen, print_finished
from lora_studio.errors import ExportMismatch, RecipeError
from lora_studio.export.embedding import check_embeddings
from lora_studio.recipe import Recipe
from lora_studio.recipe.adapter import TokenConfig
from lora_studio.recipe.load import load_recipe, recipe_from
from lora_studio.rng import generator
from lora_studio.runs import Run
from lora_studio.training.evaluating.artist import strength_fault
from lora_studio.training.events import ignore_events
from lora_studio.training.finish import Finished
from lora_studio.training.finish.verified import job_of, probe, refuse_mismatch, verify_written, write_own
from lora_studio.training.loop.state import load_state
from lora_studio.training.loop.step_result import GradientWatch
from lora_studio.training.prepare import prepare
from lora_studio.training.report.adapters import adapter_notes
from lora_studio.training.session import to_toml, train
from lora_studio.verify import VerifyReport, verify

TOKEN = '[[tokens]]\ntoken = "zwx"\nstart = "red ball"\n'
ALONE = ("adapter.kind=none", "adapter.rank=16", "adapter.alpha=16", "training.learning_rate=1e-4")
KEYS = {"sd15": {"emb_params"}, "sd2": {"emb_params"}, "sdxl": {"clip_l", "clip_g"}}


@pytest.fixture(scope="module")
def recipe_of(
    tmp_path_factory: pytest.TempPathFactory, base_of: Callable[[str], Path], images: Path
) -> Callable[..., Recipe]:
    """Base and changes -> a recipe of four steps with one token."""

    def made(name: str, *changes: str, tokens: str = TOKEN) -> Recipe:
        path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
        path.write_text(recipe_text(images, str(base_of(name)), extra=tokens), "utf-8")
        return load_recipe(path, changes=changes)

    return made


@pytest.mark.parametrize(
    ("name", "kind"), [("sd15", "none"), ("sd2", "lora"), ("sdxl", "none"), ("sdxl", "lora")]
)
def test_a_run_ends_with_a_verified_embedding(
    name: str, kind: str, recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = recipe_of(name, *(ALONE if kind == "none" else ()))
    result = train(recipe, tmp_path / "run")
    assert isinstance(result, Finished) and result.report.ok
    assert result.report.checks["probe_difference_share"] < 0.01
    (path,) = result.embeddings.values()
    assert path == tmp_path / "run" / "zwx.safetensors"
    assert (result.lora_file is None) == (kind == "none")
    assert [one.name for one in (tmp_path / "run").glob("*.safetensors")].count("tiny.safetensors") == (
        kind == "lora"
    )
    tensors = load_file(path)
    assert tensors.keys() == KEYS[name]
    assert all(one.dtype == torch.float16 and one.shape[0] == 2 for one in tensors.values())
    with safe_open(path, "pt") as file:
        said = file.metadata()
    assert said["modelspec.architecture"].endswith("/textual-inversion")
    assert said["modelspec.trigger_phrase"] == "zwx" and str(tmp_path) not in json.dumps(said)
    assert result.summary["embeddings"]["zwx"]["file"] == "zwx.safetensors"
    said_aloud = io.StringIO()
    print_finished(result, Screen(file=said_aloud, width=400))
    assert f"embedding    {path}, the word 'zwx'" in said_aloud.getvalue()
    assert ("LoRA file" in said_aloud.getvalue()) == (kind == "lora")
    assert verify(path).ok and verify(path, base=recipe.base.model).ok
    assert not verify(path, base="pocket").ok  # whose vectors are longer


@pytest.mark.parametrize(
    ("changes", "tokens", "words"),
    [
        ((), TOKEN.replace("zwx", "robot"), "tokens.token 'robot' is one token of this base"),
        ((), TOKEN.replace("zwx", "qbl"), "tokens: no caption holds 'qbl', so nothing would teach it"),
        ((), TOKEN.replace("zwx", "ZWX"), "must be a word of at most 64 small letters"),
        ((), TOKEN.replace("red ball", " "), "tokens.start is empty"),
        ((), TOKEN + TOKEN, "tokens: 'zwx' is given twice"),
        ((), TOKEN + TOKEN.replace("zwx", "zwxq"), "'zwx' is a part of 'zwxq'"),
        ((), TOKEN + "vectors = 1", "'red ball' has 2 tokens for this base, but tokens.vectors is 1"),
        ((), TOKEN + "strat = 1", "unknown key tokens[0].strat; did you mean 'start'"),
        (("name=zwx",), TOKEN, "would be one file; give the recipe another name"),
        (ALONE, "", "there are no [[tokens]], so nothing learns"),
        (("adapter.kind=full",), TOKEN, "ends as a whole base, which [[tokens]] are no part of"),
        (ALONE, TOKEN + "stop_at = 0.5", "every token stops before the last step"),
        (
            (*ALONE, "adapter.text_encoder=true", "objective.preservation=0.5"),
            TOKEN,
            "so adapter.text_encoder, objective.preservation would change nothing",
        ),
        (
            (*ALONE, "data.regularization_images.images=class"),
            TOKEN,
            "so data.regularization_images.images would change nothing",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(
    changes: tuple[str, ...], tokens: str, words: str, recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    with pytest.raises(RecipeError) as caught:
        prepared(recipe_of("sd15", *changes, tokens=tokens), tmp_path)
    assert words in str(caught.value)


@pytest.mark.parametrize("role", ["prior", "validation"])
def test_a_source_of_regularization_images_is_refused_where_tokens_learn_alone(
    role: str, recipe_of: Callable[..., Recipe], tmp_path: Path, images: Path
) -> None:
    values = tomllib.loads(to_toml(recipe_of("sd15", *ALONE)))  # every default, as a run stores them
    del values["data"]["images"]
    values["data"]["sources"] = [{"images": str(images)}, {"images": "others", "role": role}]
    if role == "validation":
        assert len(recipe_from(values, folder=tmp_path).data.sources) == 2
        return
    with pytest.raises(RecipeError, match=r'so role = "prior" in data\.sources would change nothing; leave'):
        recipe_from(values, folder=tmp_path)


@pytest.mark.parametrize("optimizer", ["adamw", "prodigy"])
def test_a_token_stops_while_the_lora_goes_on_and_a_resume_ends_with_the_same_bits(
    optimizer: str, recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    changes = (f"training.optimizer={optimizer}", "training.ema=0.9")
    rate = ""
    if optimizer == "prodigy":
        pytest.importorskip("prodigyopt")
        changes, rate = (*changes, "training.learning_rate=1"), "learning_rate = 1\n"
    recipe = recipe_of("sd15", *changes, tokens=TOKEN + rate + "stop_at = 0.75")
    run = Run(tmp_path)
    straight = prepare(recipe, run, ignore_events)
    states, save = {0: straight.adapters.state()}, straight.loop.save
    straight.loop.save = lambda step: (states.update({step: straight.adapters.state()}), save(step))  # type: ignore[func-returns-value]
    watch = GradientWatch(straight.adapters)
    straight.loop.base_rates = [group["lr"] for group in straight.loop.state.optimizer.param_groups]
    for step in (1, 2, 3, 4):
        straight.loop.train_step(step, watch)
        straight.loop.save(step)
    word = "text_encoder.tokens.zwx"
    assert [bool((states[a][word] != states[a - 1][word]).any()) for a in (1, 2, 3, 4)] == [True] * 3 + [
        False
    ]
    up = next(key for key in states[0] if key.endswith("up"))
    assert (states[4][up] != states[3][up]).any()
    for first in (2, 3):
        resumed = prepare(recipe, run, ignore_events)
        assert load_state(tmp_path / "checkpoints" / f"step_{first:06}", resumed.loop.state) == first
        resumed.loop.save = lambda step: None
        resumed.loop.run(first + 1)
        for one, other in (
            (states[4], resumed.adapters.state()),
            (straight.loop.state.ema.state(), resumed.loop.state.ema.state()),  # type: ignore[union-attr]
        ):
            assert all(torch.equal(one[key], other[key]) for key in one)
    run.close()
    assert adapter_notes(recipe, straight.adapters)[-1].startswith(
        "new token 'zwx': 2 vectors in text_encoder, learning rate "
    )


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_one_step_equals_a_plain_reference_step(
    name: str, recipe_of: Callable[..., Recipe], base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """The usual way: diffusers' pipeline with larger tables, of which only the new rows are stepped."""
    recipe = recipe_of(name, *ALONE, "data.caption_dropout=0", "objective.snr_gamma=0")
    session = prepared(recipe, tmp_path)
    assert "learned words alone" in strength_fault(session, [0.5]) and not strength_fault(session, [1.0])
    (batch,) = session.loop.feed.of_step(1)
    seed = recipe.training.seed
    noise = torch.randn(batch.latents.shape, generator=generator(seed, 1, 0, "noise"))
    rng, turn = session.loop.draw_of(1, 0)
    timestep = session.loop.objective.noise(batch.latents, rng, turn).timestep
    pipeline = DiffusionPipeline.from_pretrained(base_of(name), dtype=torch.float32, local_files_only=True)
    tables, usual = [], []
    encoders = [(pipeline.tokenizer, pipeline.text_encoder)]
    if name == "sdxl":
        encoders.append((pipeline.tokenizer_2, pipeline.text_encoder_2))
    for tokenizer, encoder in encoders:
        usual.append(encoder.get_input_embeddings().weight.detach().norm(dim=1).mean())
        ids = tokenizer("red ball", add_special_tokens=False)["input_ids"]
        tokenizer.add_tokens(["zwx", "zwx_1"])
        encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        table = encoder.get_input_embeddings().weight.requires_grad_(True)
        table.data[-2:] = table.data[ids]
        tables.append(table)
    prompts = [caption.replace("zwx", "zwx zwx_1") for caption in batch.captions]
    text, added = plain_encoding(encoders, prompts)
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    noisy = scheduler.add_noise(batch.latents, noise, timestep)
    conditions = None if added is None else {"text_embeds": added, "time_ids": batch.geometry}
    pipeline.unet.requires_grad_(False)
    answer = pipeline.unet(noisy, timestep, text, added_cond_kwargs=conditions).sample
    (answer - noise).square().mean().backward()
    gradients = [table.grad[-2:].clone() for table in tables]  # type: ignore[index]
    norm = torch.cat([one.flatten() for one in gradients]).norm()
    rows = [table.detach()[-2:].clone().requires_grad_(True) for table in tables]
    for row, gradient in zip(rows, gradients, strict=True):
        row.grad = gradient * min(1.0, 1.0 / norm.item())
    torch.optim.AdamW(rows, lr=5e-4, weight_decay=0.01).step()
    session.loop.base_rates = [5e-4] * len(tables)
    session.loop.train_step(1, GradientWatch(session.adapters))
    session.run.close()
    for token, row, gradient, mean in zip(session.adapters.tokens, rows, gradients, usual, strict=True):
        with torch.no_grad():
            expected = row * (mean / row.norm(dim=1, keepdim=True)) ** 0.1
        clear = gradient.abs() > 1e-7  # Adam's first update is lr * sign(gradient)
        assert clear.float().mean() > 0.8
        torch.testing.assert_close(token.rows.detach()[clear], expected[clear], atol=2e-6, rtol=1e-4)


def plain_encoding(
    encoders: list[tuple[object, object]], prompts: list[str]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What the denoiser is told, with gradients."""
    states, pooled = [], None
    for tokenizer, encoder in encoders:
        ids = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids  # type: ignore[operator]
        answer = encoder(ids, output_hidden_states=True)  # type: ignore[operator]
        if len(encoders) == 1:
            return answer.last_hidden_state, None
        states.append(answer.hidden_states[-2])
        pooled = getattr(answer, "text_embeds", None)
    return torch.cat(states, dim=-1), pooled


def test_a_faulty_file_is_set_aside_with_the_others(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    session = prepared(recipe_of("sd15", "training.steps=2"), tmp_path)
    session.loop.run(1)
    job = job_of(session, tmp_path)
    written = write_own(session, job)
    expected, (path,) = probe(session), written["embedding"].paths
    assert verify_written(session, job, written, expected).ok
    bare = job.bare_base()  # made once; the probe has used a copy of it
    assert bare is job.bare_base() and "zwx" not in bare.tokenizers["tokenizer"].get_vocab()
    assert all(one.is_meta for one in bare.parts["unet"].parameters())
    good = load_file(path)["emb_params"]
    for faulty, words in [
        ({"emb_params": good.flip(0).contiguous()}, "differs from the trained one"),
        ({"emb_params": good[:, :-1].contiguous()}, "has the shape (2, "),
        ({"emb_params": good * float("nan")}, "is not finite"),
        ({"clip_l": good}, "holds clip_l, but UIs look for emb_params"),
    ]:
        save_file(faulty, path)
        report = VerifyReport(path.name)
        check_embeddings({"zwx": path}, session.family, session.adapters, report)
        assert any(words in fault for fault in report.faults), report.faults
    assert not verify(path, base=session.recipe.base.model).ok
    report = verify_written(session, job, written, expected)
    with pytest.raises(ExportMismatch, match=r"zwx\.safetensors\.unverified are not what was trained"):
        refuse_mismatch(written, report)
    session.run.close()
    left = {one.name for one in tmp_path.glob("*safetensors*")}
    assert left == {"tiny.safetensors.unverified", "zwx.safetensors.unverified"}


def test_a_token_that_no_step_has_shown_is_a_fault(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    session = prepared(recipe_of("sd15", *ALONE), tmp_path)
    job = job_of(session, tmp_path)
    report = verify_written(session, job, write_own(session, job), probe(session))
    assert "zwx is still what it began as: no step has shown it" in report.faults


def test_a_token_of_one_caption_may_wait_for_its_turn(tiny_base: Path, tmp_path: Path) -> None:
    images = image_folder(tmp_path / "images", count=6)
    (images / "05.txt").write_text("a qbl in the snow, zwx style", "utf-8")
    tokens = TOKEN + TOKEN.replace("zwx", "qbl")
    (tmp_path / "tiny.toml").write_text(recipe_text(images, str(tiny_base), steps=1, extra=tokens), "utf-8")
    session = prepared(load_recipe(tmp_path / "tiny.toml"), tmp_path)
    watch = GradientWatch(session.adapters)
    for step in range(1, 7):  # as long as all others have a gradient
        sizes = [float("tokens.qbl" not in name) for name in watch._silent]
        watch.update(sizes, norm=float(step))
    assert list(watch._silent) == ["text_encoder.tokens.qbl"]


SHORT = ("training.steps=2", "training.batch_size=1", "adapter.rank=1")
OPTIONS = {
    "token": '"wx"',
    "start": '"blue cat"',
    "vectors": "4",
    "learning_rate": "1e-3",
    "stop_at": "0.5",
    "keep_norm": "false",
}


def test_every_option_of_tokens_is_tried() -> None:
    assert set(OPTIONS) == set(TokenConfig.model_fields)


@pytest.fixture(scope="module")
def usual(recipe_of: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> list[torch.Tensor]:
    return learned(recipe_of("sd15", *SHORT), tmp_path_factory.mktemp("usual"))


def learned(recipe: Recipe, folder: Path) -> list[torch.Tensor]:
    session = prepared(recipe, folder)
    session.loop.run(1)
    session.run.close()
    return list(session.adapters.state().values())


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_changes_what_is_learned(
    option: str, recipe_of: Callable[..., Recipe], usual: list[torch.Tensor], tmp_path: Path
) -> None:
    lines = {"token": '"zwx"', "start": '"red ball"'} | {option: OPTIONS[option]}
    tokens = "[[tokens]]\n" + "".join(f"{key} = {value}\n" for key, value in lines.items())
    found = learned(recipe_of("sd15", *SHORT, tokens=tokens), tmp_path)
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(usual, found, strict=True))
