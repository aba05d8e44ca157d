"""Bases in single files: loaded as their diffusers folders would be, or refused with a sentence."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import StableDiffusionPipeline
from original_layout import (
    CLIP,
    MINIATURES,
    PUBLISHED,
    UNET,
    VAE,
    new_parts,
    original_tensors,
    random_original,
)
from safetensors.torch import save_file
from torch import Tensor, nn

from lora_studio.errors import BaseModelError
from lora_studio.families.loading import load_base, load_tokenizers
from lora_studio.families.loading.single_file import SingleFileOptions, open_single_file
from lora_studio.families.original import detect
from lora_studio.families.original.configurations import configurations_of, tokenizers_for
from lora_studio.objectives.base import ObjectiveOptions
from lora_studio.pocket.stages.unet import new_scheduler

KINDS = ("sd15", "sd2", "sdxl")
TITLES = {"sd15": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "sdxl": "Stable Diffusion XL"}
V768, V512 = ({"modelspec.architecture": f"stable-diffusion-v2-{end}"} for end in ("768-v", "512"))
TELLING = f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, nn.Module], Path]]:
    """Kind -> a miniature's networks and its file in half precision."""
    found = {}
    for kind in KINDS:
        parts, tensors = random_original(kind)
        path = tmp_path_factory.mktemp("single") / f"{kind}.safetensors"
        save_file({name: tensor.half() for name, tensor in tensors.items()}, path)
        found[kind] = (parts, path)
    return found


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    """What the file of an SD1 miniature holds."""
    return random_original("sd15")[1]


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file(tensors, path, metadata=metadata)
    return path


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """The same names and the same numbers, `wanted` in float32."""
    assert found.keys() == wanted.keys()
    wrong = [key for key in wanted if not torch.equal(found[key], wanted[key].float())]
    assert not wrong


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(BaseModelError) as caught:
        open_single_file(path, SingleFileOptions(**options)).load()  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message and str(path.parent) not in message
    return message


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_and_size_is_the_diffusers_models(kind, bases):
    parts, path = bases[kind]
    loaded = open_single_file(path).load()
    assert loaded.notes[0].startswith(TITLES[kind])
    assert loaded.parts.keys() == parts.keys()
    for name, module in parts.items():
        own = loaded.parts[name]
        assert type(own) is type(module)
        assert_equal(own.state_dict(), module.half().state_dict())
        assert not any(tensor.is_meta for tensor in (*own.parameters(), *own.buffers()))


@pytest.mark.parametrize("kind", KINDS)
def test_published_sizes_give_the_published_configurations(kind):
    with init_empty_weights(include_buffers=False):
        parts = new_parts(kind, PUBLISHED[kind])
        shapes = {name: tuple(t.shape) for name, t in original_tensors(kind, parts).items()}
    found = detect("x", shapes)
    prediction = "v_prediction" if kind == "sd2" else "epsilon"
    configurations = configurations_of(found, shapes, prediction=prediction, zero_snr=False)
    for part, module in parts.items():
        wanted = module.config if part in ("unet", "vae") else module.config.to_dict()
        for key, value in configurations[part].items():
            if key not in ("_class_name", "architectures"):
                assert wanted[key] == value, f"{part}.{key}"
    assert configurations["scheduler"]["prediction_type"] == prediction


def test_a_file_answers_as_the_folder_of_the_same_base(bases, tmp_path):
    parts, path = bases["sd15"]
    parts = {name: module.float() for name, module in parts.items()}
    tokenizer = load_tokenizers(str(path))["tokenizer"]
    StableDiffusionPipeline(
        **parts,
        tokenizer=tokenizer,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(tmp_path / "folder")
    file, folder = load_base(str(path)), load_base(str(tmp_path / "folder"))
    for part in folder.parts.values():  # mapped weights lie on odd addresses, where other kernels work
        part.load_state_dict({key: t.clone() for key, t in part.state_dict().items()}, assign=True)
    assert type(file) is type(folder) and file.stride == folder.stride
    for part in folder.parts:
        assert file.fingerprint(part) == folder.fingerprint(part)
    captions = ["a red ball, zwx style", ""]
    texts = [family.encode_text(captions)["text"] for family in (file, folder)]
    assert torch.equal(*texts)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        answers = [
            family.denoise(latents, torch.tensor([1, 900]), {"text": texts[0]}, torch.zeros(2, 6))
            for family in (file, folder)
        ]
        pixels = torch.rand(1, 3, 64, 64) * 2 - 1
        views = [family.encode_image(pixels)[0] for family in (file, folder)]
    assert torch.equal(*answers) and torch.equal(*views)
    assert file.objective(ObjectiveOptions(timesteps="uniform")).prediction == "epsilon"


def test_shapes_alone_need_no_weights(bases):
    family = load_base(str(bases["sd15"][1]), weights=False)
    assert all(parameter.is_meta for part in family.parts.values() for parameter in part.parameters())
    assert family.stride == 64


def test_weights_are_copies_in_the_dtype_asked_for(tensors, tmp_path):
    path = write(tmp_path / "base.safetensors", tensors)
    loaded = open_single_file(path).load(dtype=torch.float32)
    before = loaded.parts["unet"].conv_in.weight.clone()
    with path.open("r+b") as file:  # another download over it
        file.write(b"\xff" * path.stat().st_size)
    assert torch.equal(loaded.parts["unet"].conv_in.weight, before)
    path = write(tmp_path / "other.safetensors", tensors)
    halved = open_single_file(path).load(dtype=torch.bfloat16).parts
    kept = {name: {weight.dtype for weight in part.parameters()} for name, part in halved.items()}
    assert kept == {name: {torch.bfloat16} for name in halved} | {"vae": {torch.float32}}


# What the file is, told in a sentence


def test_parts_alone_are_named(tensors, bases, tmp_path):
    def only(*prefixes: str) -> dict[str, Tensor]:
        return {name: t for name, t in tensors.items() if name.startswith(prefixes)}

    def bare(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in only(prefix).items()}

    unet, vae = bases["sd15"][0]["unet"].state_dict(), bases["sd15"][0]["vae"].state_dict()
    files = {
        "a UNet alone": [only(UNET), bare(UNET), unet],
        "a VAE alone": [only(VAE), bare(VAE), vae],
        "a text encoder alone": [only(CLIP), bare(CLIP)],
        "not whole: it has no VAE;": [only(UNET, CLIP)],
        "not whole: it has no text encoder;": [only(UNET, VAE)],
        "not whole: it has no UNet;": [only(CLIP, VAE)],
        "unknown: its first tensor is something;": [{"something": torch.zeros(1)}],
        "without a single tensor": [{}],
    }
    for words, contents in files.items():
        for content in contents:
            message = refusal(write(tmp_path / "part.safetensors", content))
            assert message.startswith(f"part.safetensors is {words}"), message
            assert "give a whole Stable Diffusion 1.x, 2.x or XL checkpoint" in message


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "a LoRA file, not a base"),
        ("unet.down_blocks.0.attentions.0.proj_in.lora_A.weight", "a LoRA file, not a base"),
        ("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a", "a LoRA file, not a base"),
        ("model.diffusion_model.joint_blocks.0.context_block.mlp.fc1.weight", "a Stable Diffusion 3 model"),
        ("model.diffusion_model.double_blocks.0.img_attn.proj.weight", "a Flux model"),
        ("double_blocks.0.img_attn.proj.weight", "a Flux model"),
        ("control_model.input_blocks.0.0.weight", "a ControlNet"),
        ("emb_params", "an embedding"),
        ("clip_g", "an embedding"),
    ],
)
def test_files_of_other_kinds_are_named(key, words, tmp_path):
    assert f"is {words}" in refusal(write(tmp_path / "other.safetensors", {key: torch.zeros(4, 4)}))


@pytest.mark.parametrize(
    ("channels", "words"),
    [
        (9, "an inpainting model: its UNet takes 9 channels, not 4"),
        (5, "a depth model: its UNet takes 5 channels, not 4"),
        (8, "an InstructPix2Pix model"),
        (16, "of an unknown kind: its UNet takes 16 channels"),
    ],
)
def test_unets_with_other_inputs_are_named(channels, words, tensors, tmp_path):
    first = {f"{UNET}input_blocks.0.0.weight": torch.zeros(32, channels, 3, 3)}
    assert words in refusal(write(tmp_path / "base.safetensors", tensors | first))


def test_the_refiner_is_named(tmp_path):
    tensors = random_original("sdxl", words=50)[1]
    refiner = {
        name.replace("embedders.1", "embedders.0"): tensor
        for name, tensor in tensors.items()
        if "embedders.0" not in name
    }
    assert "is the refiner of Stable Diffusion XL" in refusal(write(tmp_path / "r.safetensors", refiner))


def test_relatives_with_other_noise_or_inputs_are_named(tensors, tmp_path):
    playground = random_original("sdxl", words=50)[1] | {"edm_mean": torch.zeros(4)}
    assert "is an EDM model" in refusal(write(tmp_path / "p.safetensors", playground))
    unclip = random_original("sd2", words=50)[1] | {f"{UNET}label_emb.0.0.weight": torch.zeros(4, 4)}
    assert "is an unCLIP model" in refusal(write(tmp_path / "u.safetensors", unclip))


def test_a_unet_and_a_text_encoder_of_two_kinds_are_named(tensors, tmp_path):
    other = {n: t for n, t in random_original("sd2", words=50)[1].items() if n.startswith(UNET)}
    mixed = {n: t for n, t in tensors.items() if not n.startswith(UNET)} | other
    message = refusal(write(tmp_path / "mixed.safetensors", mixed))
    assert "its UNet reads text 128 wide, its text is 64 wide" in message


# Damage


def test_a_file_cut_anywhere_is_refused_with_both_sizes(tensors, tmp_path):
    whole = write(tmp_path / "whole.safetensors", tensors).read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    path = tmp_path / "cut.safetensors"
    for length in (100, header - 1, header, header + 1000, len(whole) - 1):
        path.write_bytes(whole[:length])
        message = refusal(path)
        assert f"cut.safetensors is cut short: it has {length:,} bytes and should have" in message
    path.write_bytes(whole + b"more")
    assert f"should have {len(whole):,}" in refusal(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not a safetensors file but empty"),
        (b"<!DOCTYPE html><html>", "is not a safetensors file but a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "the pointer of one in Git LFS"),
        (b"\x89PNG\r\n\x1a\n and more of it", "is not a safetensors file but an image"),
        (b"\x0f\0\0\0\0\0\0\0{not json at all", "its header is not JSON"),
        (b'\x0f\0\0\0\0\0\0\0{"a":{"shape":1}', "its header is not JSON"),
        (b"\x88\x13\0\0\0\0\0\0" + b'{"a":' * 1000, "its header is not JSON"),
    ],
)
def test_what_is_no_safetensors_file_is_refused(content, words, tmp_path):
    path = tmp_path / "base.safetensors"
    path.write_bytes(content)
    assert words in refusal(path)


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(BaseModelError, match=r"there is no file at .*none\.safetensors"):
        load_base(str(tmp_path / "none.safetensors"))


@pytest.mark.parametrize("prefix", [UNET, VAE, CLIP])
def test_missing_tensors_are_named_and_counted(prefix, tensors, tmp_path):
    gone = [name for name in tensors if name.startswith(prefix) and "block" + "s.1." in name][:5]
    gone = gone or [n for n in tensors if n.startswith(prefix) and re.search(r"\.1\.", n)][:5]
    left = {name: tensor for name, tensor in tensors.items() if name not in gone}
    message = refusal(write(tmp_path / "base.safetensors", left))
    assert re.search(r"base\.safetensors lacks 5 tensors \(\S+, \S+, \S+ and 2 more\)", message), message


def test_a_missing_tensor_that_says_a_size_is_named(tensors, tmp_path):
    name = f"{UNET}input_blocks.0.0.weight"
    left = {key: tensor for key, tensor in tensors.items() if key != name}
    assert f"lacks the tensor {name}" in refusal(write(tmp_path / "base.safetensors", left))


@pytest.mark.parametrize("kind", KINDS)
def test_a_published_base_without_its_last_layer_is_not_taken_for_a_smaller_one(kind, tmp_path):
    with init_empty_weights(include_buffers=False):
        parts = new_parts(kind, PUBLISHED[kind])
        shapes = {name: tuple(t.shape) for name, t in original_tensors(kind, parts).items()}
    last = re.compile(r"encoder\.layers\.11\.|resblocks\.(22|23|31)\.")
    left = {name: shape for name, shape in shapes.items() if not last.search(name)}
    assert len(left) < len(shapes)
    configurations = configurations_of(detect("x", left), left, prediction="epsilon", zero_snr=False)
    for part, sizes in PUBLISHED[kind].items():
        if part.startswith("text_encoder"):
            assert configurations[part]["num_hidden_layers"] == sizes["num_hidden_layers"]


def test_tensors_that_no_base_has_are_named_and_counted(tensors, tmp_path):
    more = {f"{UNET}input_blocks.1.0.odd.{number}": torch.zeros(1) for number in range(5)}
    message = refusal(write(tmp_path / "base.safetensors", tensors | more))
    assert "holds 5 tensors" in message and "input_blocks.1.0.odd.0" in message and "and 2 more" in message


def test_a_tensor_of_another_size_is_named(tensors, tmp_path):
    name = f"{UNET}middle_block.0.in_layers.2.weight"
    message = refusal(write(tmp_path / "base.safetensors", tensors | {name: torch.zeros(64, 63, 3, 3)}))
    assert f"1 tensor ({name} is 64 x 63 x 3 x 3, not 64 x 64 x 3 x 3)" in message


def test_averaged_weights_and_leftovers_are_left_out_and_said(tensors, tmp_path):
    names = ("decay", "num_updates", "diffusion_modelout2bias")
    extra = {f"model_ema.{name}": torch.zeros(1) for name in names}
    extra |= {"cond_stage_model.logit_scale": torch.zeros(1), "first_stage_model.loss.logvar": torch.zeros(1)}
    notes = open_single_file(write(tmp_path / "base.safetensors", tensors | extra)).load().notes
    assert notes[1].startswith("left out: 3 averaged (EMA) weights (model_ema.decay, ")
    assert notes[2].startswith("left out: 6 tensors (") and notes[2].endswith("not needed")


# Variants that UIs and converters write


def test_names_of_before_text_model_are_read(tensors, tmp_path):
    old = {name.replace(f"{CLIP}text_model.", CLIP): tensor for name, tensor in tensors.items()}
    loaded = open_single_file(write(tmp_path / "old.safetensors", old)).load()
    wanted = open_single_file(write(tmp_path / "new.safetensors", tensors)).load()
    assert_equal(loaded.parts["text_encoder"].state_dict(), wanted.parts["text_encoder"].state_dict())


def test_projections_are_read_as_layers_or_convolutions(tensors, tmp_path):
    names = [name for name in tensors if re.search(r"\.proj_(in|out)\.weight$", name)]
    flat = tensors | {name: tensors[name].flatten(1) for name in names}
    wanted = open_single_file(write(tmp_path / "a.safetensors", tensors)).load().parts["unet"].state_dict()
    loaded = open_single_file(write(tmp_path / "b.safetensors", flat)).load().parts["unet"].state_dict()
    assert_equal(loaded, wanted)


def test_an_sd2_file_without_the_layer_that_is_not_asked_keeps_all_it_has(tmp_path):
    parts, tensors = random_original("sd2")
    extra = re.compile(r"resblocks\.2\.|text_projection|logit_scale")
    left = {name: tensor for name, tensor in tensors.items() if not extra.search(name)}
    loaded = open_single_file(write(tmp_path / "base.safetensors", left)).load().parts["text_encoder"]
    assert_equal(loaded.state_dict(), parts["text_encoder"].state_dict())


# Prediction


@pytest.mark.parametrize(
    ("kind", "marks", "metadata", "said", "expected", "why"),
    [
        ("sd15", (), {}, "auto", "epsilon", "Stable Diffusion 1.x usually does"),
        ("sdxl", (), {}, "auto", "epsilon", "Stable Diffusion XL usually does"),
        ("sdxl", ("v_pred",), {}, "auto", "v_prediction", "the file's mark v_pred says so"),
        ("sdxl", ("v_pred", "ztsnr"), {}, "auto", "v_prediction", "the file's mark v_pred says so"),
        ("sdxl", ("v_pred",), {}, "epsilon", "epsilon", "the recipe says so"),
        ("sdxl", (), {"modelspec.predict_key": "v"}, "auto", "v_prediction", "modelspec.predict_key"),
        ("sd2", (), {"modelspec.prediction_type": "epsilon"}, "auto", "epsilon", "modelspec.prediction_type"),
        (
            "sd2",
            (),
            V768,
            "auto",
            "v_prediction",
            "archit",
        ),
        ("sd2", (), V512, "auto", "epsilon", "architecture"),
        ("sd2", (), {}, "v_prediction", "v_prediction", "the recipe says so"),
        ("sd2", ("narrow",), {}, "auto", "epsilon", "guessed from a weight that spreads by 0.050"),
        ("sd2", ("wide",), {}, "auto", "v_prediction", "guessed from a weight that spreads by 0.150"),
    ],
)
def test_the_prediction_is_said_by_user_file_or_hint(kind, marks, metadata, said, expected, why, tmp_path):
    tensors = random_original(kind, words=50)[1]
    spread = {"narrow": 0.05, "wide": 0.15}
    for mark in marks:
        if mark in spread:
            signs = torch.tensor([1.0, -1.0]).repeat(len(tensors[TELLING]) // 2)
            tensors[TELLING] = spread[mark] * signs
        else:
            tensors[mark] = torch.zeros(0)
    path = write(tmp_path / "base.safetensors", tensors, metadata)
    file = open_single_file(path, SingleFileOptions(prediction_type=said))
    assert file.configurations["scheduler"]["prediction_type"] == expected
    assert file.configurations["scheduler"]["rescale_betas_zero_snr"] == ("ztsnr" in marks)
    assert why in file.notes[0]
    if kind == "sd2":  # made for 512 or 768 pixels
        assert file.configurations["unet"]["sample_size"] == {"epsilon": 64, "v_prediction": 96}[expected]


def test_an_unknown_prediction_is_refused(bases):
    with pytest.raises(BaseModelError, match=r"base\.prediction_type is 'x0'"):
        open_single_file(bases["sd2"][1], SingleFileOptions(prediction_type="x0"))


# Pickle files


def test_a_ckpt_is_read_only_where_the_user_allows_it(tensors, tmp_path):
    path = tmp_path / "base.ckpt"
    torch.save({"state_dict": tensors, "global_step": 875000}, path)
    message = refusal(path)
    assert "base.ckpt is a pickle file" in message and "base.allow_pickle = true" in message
    loaded = open_single_file(path, SingleFileOptions(allow_pickle=True)).load()
    wanted = open_single_file(write(tmp_path / "base.safetensors", tensors)).load()
    for name, part in wanted.parts.items():
        assert_equal(loaded.parts[name].state_dict(), part.state_dict())


def test_the_step_count_of_a_ckpt_tells_the_512_base_of_sd2(tmp_path):
    tensors = random_original("sd2", words=50)[1]
    path = tmp_path / "base.ckpt"
    torch.save({"state_dict": tensors, "global_step": 875000}, path)
    assert "global_step" in open_single_file(path, SingleFileOptions(allow_pickle=True)).notes[0]


class _Code:
    def __reduce__(self):
        return (print, ("run",))


def test_code_in_a_ckpt_is_never_run(tensors, tmp_path, capsys):
    path = tmp_path / "base.ckpt"
    torch.save({"state_dict": tensors, "callback": _Code()}, path)
    assert "holds more than tensors" in refusal(path, allow_pickle=True)
    assert capsys.readouterr().out == ""


def test_a_cut_or_disguised_ckpt_is_told(tensors, tmp_path):
    path = tmp_path / "base.ckpt"
    torch.save(tensors, path)
    (tmp_path / "cut.ckpt").write_bytes(path.read_bytes()[:-4000])
    assert "cut.ckpt is cut short or damaged" in refusal(tmp_path / "cut.ckpt", allow_pickle=True)
    path.rename(tmp_path / "base.safetensors")
    assert "is a pickle file" in refusal(tmp_path / "base.safetensors")


# Tokenizers


@pytest.mark.parametrize("kind", KINDS)
def test_clips_vocabulary_comes_with_the_package(kind, bases):
    found = open_single_file(bases[kind][1]).tokenizers()
    pads = {"sd15": ["<|endoftext|>"], "sd2": ["!"], "sdxl": ["<|endoftext|>", "!"]}[kind]
    assert [tokenizer.pad_token for tokenizer in found.values()] == pads
    for tokenizer in found.values():
        # the numbers in the examples of openai/clip-vit-base-patch32
        assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
        assert tokenizer.model_max_length == 77 and len(tokenizer) == 49408


def test_a_folder_of_the_users_gives_the_tokenizer(bases, tmp_path):
    file = open_single_file(bases["sdxl"][1])
    own = file.tokenizers()["tokenizer"]
    own.save_pretrained(tmp_path / "one")
    vocabulary, merges = own.backend_tokenizer.model.save(str(tmp_path))
    assert {Path(vocabulary).name, Path(merges).name} == {"vocab.json", "merges.txt"}
    text = "Ünïcödé 猫, it's (best quality:1.2)"
    for folder in (tmp_path / "one", tmp_path):  # tokenizer.json, then the two files alone
        read = tokenizers_for(file.kind, file.configurations, folder)
        assert [t.pad_token for t in read.values()] == ["<|endoftext|>", "!"]
        assert all(t(text).input_ids == own(text).input_ids for t in read.values())


def test_missing_tokenizer_files_are_named_with_their_place(bases, tmp_path):
    for content, words in (
        ([], "has no vocab.json and no merges.txt"),
        (["vocab.json"], "has no merges.txt"),
    ):
        for name in content:
            (tmp_path / name).write_text(json.dumps({}))
        with pytest.raises(BaseModelError) as caught:
            load_base(str(bases["sd15"][1]), single_file=SingleFileOptions(tokenizer=tmp_path))
        assert f"{tmp_path} {words}" in str(caught.value)
        assert "put vocab.json and merges.txt (or tokenizer.json)" in str(caught.value)


def test_a_vocabulary_of_another_size_is_refused(tmp_path):
    path = write(tmp_path / "base.safetensors", random_original("sd15", words=50)[1])
    message = refusal(path)
    assert "has 49,408 tokens, the base's text_encoder 50" in message and "set base.tokenizer" in message


def test_a_tokenizer_beside_a_folder_is_refused_instead_of_ignored(tiny_base, tmp_path):
    with pytest.raises(BaseModelError, match=r"base\.tokenizer is for a base in a single file"):
        load_base(str(tiny_base), single_file=SingleFileOptions(tokenizer=tmp_path))


def test_the_miniatures_are_of_every_kind():
    assert MINIATURES.keys() == PUBLISHED.keys() == set(KINDS)
