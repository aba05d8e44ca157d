"""A base by folder, hub id and separate VAE: recognised, refused in one sentence, and read whole."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from original_layout import vae_name
from safetensors.torch import load_file, save_file
from tiny import BASES, recipe_text

from lora_studio.errors import BaseModelError, RecipeError
from lora_studio.families.loading import load_base, load_tokenizers
from lora_studio.families.loading.hub import hub_folder, is_hub_id, wanted_files
from lora_studio.families.loading.single_file import SingleFileOptions
from lora_studio.recipe.load import load_recipe
from lora_studio.training.prepare.base_model import base_of as base_of_recipe

BaseOf = Callable[[str], Path]


@pytest.fixture
def copy_of(base_of: BaseOf, tmp_path: Path) -> Callable[[str], Path]:
    """A miniature's folder that may be spoiled."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(base_of(name), tmp_path / "copy"))

    return copy


def edit(path: Path, **changes: Any) -> None:
    """Change entries of a JSON file; None takes one out."""
    values = json.loads(path.read_text("utf-8")) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}), "utf-8")


def without_weights(folder: Path) -> Path:
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    return folder


def scaled_vae(source: Path, folder: Path) -> Path:
    """A VAE's folder with other weights."""
    shutil.copytree(source, folder)
    path = folder / "diffusion_pytorch_model.safetensors"
    save_file({k: t * 1.5 for k, t in load_file(path).items()}, path, metadata={"format": "pt"})
    return folder


def refusal_of(folder: Path, **options: str) -> str:
    """What is said, which is one sentence or two joined by a semicolon, on one line."""
    with pytest.raises(BaseModelError) as raised:
        load_base(str(folder), **options)  # type: ignore[arg-type]
    text = str(raised.value)
    assert text.endswith(".") and "\n" not in text
    return text


def test_an_inpainting_unet_is_refused(copy_of: Callable[[str], Path]) -> None:
    folder = without_weights(copy_of("sd2"))
    edit(folder / "unet/config.json", in_channels=9)
    assert "inpainting" in refusal_of(folder)


def test_an_editor_with_the_parts_of_a_plain_base_is_refused(copy_of: Callable[[str], Path]) -> None:
    folder = without_weights(copy_of("flux1"))
    edit(folder / "model_index.json", _class_name="FluxKontextPipeline")
    assert "FLUX.1 Kontext, which edits an image (FluxKontextPipeline)" in refusal_of(folder)


def test_a_unet_of_other_channels_is_refused(copy_of: Callable[[str], Path]) -> None:
    folder = without_weights(copy_of("sd15"))
    edit(folder / "unet/config.json", in_channels=8)
    assert "takes 8 channels" in refusal_of(folder)


def test_the_refiner_is_refused(copy_of: Callable[[str], Path]) -> None:
    folder = without_weights(copy_of("sdxl"))
    shutil.rmtree(folder / "text_encoder")
    edit(folder / "model_index.json", text_encoder=[None, None], tokenizer=[None, None])
    edit(
        folder / "unet/config.json", cross_attention_dim=24, projection_class_embeddings_input_dim=20 + 5 * 8
    )
    assert "refiner" in refusal_of(folder)


def test_a_transformer_that_no_family_knows_is_refused(tmp_path: Path) -> None:
    parts = {"transformer": "HunyuanDiT2DModel", "vae": "AutoencoderKL"}
    index = {name: ["diffusers", class_name] for name, class_name in parts.items()}
    for name, class_name in parts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"_class_name": class_name}), "utf-8")
    (tmp_path / "model_index.json").write_text(json.dumps(index), "utf-8")
    assert (
        "is of a kind that is not supported yet (HunyuanDiT2DModel); supported: sd15, sd2, sdxl, z_image"
        in (refusal_of(tmp_path))
    )


def test_text_encoders_of_another_model_are_refused(copy_of: Callable[[str], Path]) -> None:
    folder = without_weights(copy_of("sdxl"))
    edit(folder / "text_encoder_2/config.json", hidden_size=32)
    assert "give 48 numbers a token, but its UNet takes 40" in refusal_of(folder)


@pytest.mark.parametrize("name", BASES)
def test_every_part_that_lacks_is_named(name: str, base_of: BaseOf, copy_of: Callable[[str], Path]) -> None:
    needs = load_base(str(base_of(name)), weights=False).needs
    folder = copy_of(name)
    gone = [part for part in needs if part not in ("unet", "transformer", "text_encoder")]
    for part in gone:
        shutil.rmtree(folder / part)
    assert f"lacks the part(s) {', '.join(gone)}" in refusal_of(folder)


def test_a_tokenizer_without_its_vocabulary_is_refused_not_made_up(copy_of: Callable[[str], Path]) -> None:
    """transformers makes one of two tokens, to which every word is the same."""
    folder = copy_of("sdxl") / "tokenizer_2"
    whole = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    whole["model"] |= {"vocab": dict(list(whole["model"]["vocab"].items())[:99]), "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps(whole), "utf-8")
    assert "tokens, and the text encoder knows" in refusal_of(folder.parent)
    (folder / "tokenizer.json").write_text("", "utf-8")
    assert "tokenizer_2/tokenizer.json is not readable JSON" in refusal_of(folder.parent)
    (folder / "tokenizer.json").unlink()
    lacking = "the part tokenizer_2 of .* it has no vocab.json and no merges.txt, nor a tokenizer.json"
    assert re.search(lacking, refusal_of(folder.parent))
    with pytest.raises(BaseModelError, match=lacking):
        load_tokenizers(str(folder.parent))


def test_weights_that_lack_tensors_are_refused_not_filled_with_random_numbers(
    copy_of: Callable[[str], Path],
) -> None:
    path = copy_of("sdxl") / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["add_embedding.linear_1.bias"]
    save_file(tensors, path, metadata={"format": "pt"})
    text = refusal_of(path.parent.parent)
    assert "the part unet" in text and "lacks 1 tensors, first add_embedding.linear_1.bias" in text


def test_weights_that_were_cut_short_are_refused(copy_of: Callable[[str], Path]) -> None:
    path = copy_of("sd2") / "unet/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "the part unet" in refusal_of(path.parent.parent)


def test_a_configuration_that_lacks_the_deciding_entry_is_completed_by_the_weights(
    copy_of: Callable[[str], Path],
) -> None:
    folder = copy_of("sd2")
    edit(folder / "unet/config.json", use_linear_projection=None)
    with pytest.raises(BaseModelError, match="the part unet"):  # recognised, and then diffusers' own reading
        load_base(str(folder))
    assert load_base(str(folder), weights=False).traits.is_v2


def test_a_configuration_that_contradicts_the_weights_is_refused(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("sd2")
    edit(folder / "unet/config.json", in_channels=9)
    text = refusal_of(folder)
    assert "says in_channels = 9, but the weights beside it have 4" in text


def test_half_precision_weights_are_read_where_there_are_no_others(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("sdxl")
    whole = load_base(str(folder)).parts
    for path in list(folder.rglob("*.safetensors")):
        tensors = {key: tensor.half() for key, tensor in load_file(path).items()}
        save_file(tensors, path.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
        path.unlink()
    for name, part in load_base(str(folder)).parts.items():
        for key, tensor in part.state_dict().items():
            assert torch.equal(tensor, whole[name].state_dict()[key].half().float()), key


@pytest.mark.parametrize(("name", "wrong"), [("sd2 v", "epsilon"), ("sdxl", "v_prediction")])
def test_a_prediction_type_that_contradicts_the_scheduler_is_refused(
    name: str, wrong: str, base_of: BaseOf
) -> None:
    assert f"base.prediction_type is '{wrong}'" in refusal_of(base_of(name), prediction=wrong)


def test_a_prediction_type_counts_where_the_scheduler_says_nothing(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("sd2")
    edit(folder / "scheduler/scheduler_config.json", prediction_type=None)
    traits = [load_base(str(folder), prediction=p).traits for p in ("auto", "epsilon", "v_prediction")]
    assert [one.base_model_version for one in traits] == ["sd_v2", "sd_v2", "sd_v2_v"]


def test_the_recipes_base_is_the_one_it_describes(copy_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy_of("sd2")
    edit(folder / "scheduler/scheduler_config.json", prediction_type=None)
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_text(tmp_path, str(folder)), "utf-8")
    vae = scaled_vae(folder / "vae", tmp_path / "vae")
    changes = ("base.prediction_type=v_prediction", f"base.vae='{vae}'")
    family = base_of_recipe(load_recipe(path, changes=changes))
    assert family.traits.prediction_type == "v"
    assert family.fingerprint("vae") != load_base(str(folder)).fingerprint("vae")
    with pytest.raises(RecipeError, match="prediction_type"):
        load_recipe(path, changes=("base.prediction_type=flow",))


@pytest.fixture
def other_vae(base_of: BaseOf, tmp_path: Path) -> Path:
    """The SDXL miniature's VAE with other weights."""
    return scaled_vae(base_of("sdxl") / "vae", tmp_path / "vae")


def test_another_vae_is_taken_from_a_folder_or_a_file_and_changes_the_latents_key(
    base_of: BaseOf, other_vae: Path
) -> None:
    own = load_base(str(base_of("sdxl")))
    for path in (other_vae, other_vae / "diffusion_pytorch_model.safetensors"):
        family = load_base(str(base_of("sdxl")), vae=str(path))
        expected = load_file(other_vae / "diffusion_pytorch_model.safetensors")
        found = family.parts["vae"].state_dict()
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
        assert family.fingerprint("vae") != own.fingerprint("vae")
        assert not any(parameter.requires_grad for parameter in family.parts["vae"].parameters())
        assert family.parts["vae"].config.scaling_factor == 0.13025  # type: ignore[union-attr]


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
def test_a_vae_in_the_original_layout_is_read_as_diffusers_converts_it(
    prefix: str, ending: str, base_of: BaseOf, other_vae: Path, tmp_path: Path
) -> None:
    vae = AutoencoderKL.from_pretrained(other_vae)
    levels = len(vae.config.block_out_channels)
    tensors = {f"{prefix}{vae_name(key, levels)}": one.half() for key, one in vae.state_dict().items()}
    for name in [one for one in tensors if ".mid.attn_1." in one and tensors[one].ndim == 2]:
        tensors[name] = tensors[name][:, :, None, None].contiguous()
    path = tmp_path / f"vae{ending}"
    if ending == ".ckpt":
        torch.save({"state_dict": tensors}, path)
        assert "base.allow_pickle = true" in refusal_of(base_of("sdxl"), vae=str(path))
    else:
        save_file(tensors, path)
    options = SingleFileOptions(allow_pickle=True)
    family = load_base(str(base_of("sdxl")), vae=str(path), single_file=options)
    config = dict(vae.config)
    expected = convert_ldm_vae_checkpoint(tensors, config)
    found = family.parts["vae"].state_dict()
    assert found.keys() == expected.keys()
    for key, tensor in found.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected[key].float().reshape(tensor.shape)), key


def test_a_vae_of_another_family_is_refused(base_of: BaseOf) -> None:
    text = refusal_of(base_of("sdxl"), vae=str(base_of("sd2") / "vae"))
    assert "their scale is 0.18215, the base's 0.13025" in text


def test_a_file_that_is_no_vae_is_refused(base_of: BaseOf, tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_file({"first_stage_model.encoder.conv_in.weight": torch.ones(1)}, file)
    assert "lacks 152 tensors, first decoder.conv_in.bias" in refusal_of(base_of("sdxl"), vae=str(file))
    save_file({"encoder.conv_in.weight": torch.ones(1), "lora_te_x.alpha": torch.ones(1)}, file)
    assert "not those of a VAE, first lora_te" in refusal_of(base_of("sdxl"), vae=str(file))
    file.write_bytes(b"12345678 no tensors")
    assert "is not a safetensors file but a text" in refusal_of(base_of("sdxl"), vae=str(file))
    assert "there is no VAE" in refusal_of(base_of("sdxl"), vae=str(tmp_path / "nowhere"))


def test_the_text_key_covers_every_encoder_and_how_it_reads(base_of: BaseOf) -> None:
    family = load_base(str(base_of("sdxl")))
    keys = [family.text_fingerprint()]
    family.tokenizers["tokenizer"](["a ball", "a"], padding="max_length", truncation=True)
    assert family.text_fingerprint() == keys[0]  # a call leaves its padding in the tokenizer
    for part in ("text_encoder", "text_encoder_2"):
        next(family.parts[part].parameters()).data[0] += 1
        keys.append(family.text_fingerprint())
    family.tokenizers["tokenizer_2"].pad_token = "?"
    keys.append(family.text_fingerprint())
    family.max_chunks = 2
    keys.append(family.text_fingerprint())
    assert len(set(keys)) == 5


ID = "somebody/a-tiny.base"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub; the network is switched off for all tests."""
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache


def fill(hub: Path, base: Path) -> Path:
    """Put a base into the cache as a download lays it down; its snapshot."""
    repository = hub / f"models--{ID.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40, "utf-8")
    return Path(shutil.copytree(base, repository / "snapshots" / ("0" * 40)))


def test_a_hub_id_is_read_from_the_cache_without_the_network(hub: Path, base_of: BaseOf) -> None:
    fill(hub, base_of("sdxl"))
    family, same = load_base(ID), load_base(str(base_of("sdxl")))
    assert family.fingerprint("unet") == same.fingerprint("unet")
    assert load_tokenizers(ID).keys() == same.tokenizers.keys()


@pytest.mark.parametrize("cached", [False, True])
def test_a_hub_id_that_is_not_whole_in_the_cache_is_one_sentence_offline(
    cached: bool, hub: Path, base_of: BaseOf
) -> None:
    if cached:
        (fill(hub, base_of("sd2")) / "unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(BaseModelError) as raised:
        load_base(ID)
    text = str(raised.value)
    assert ID in text and str(hub) in text and "connect to the network once" in text and "\n" not in text


def test_a_hub_that_is_away_is_one_sentence_whatever_http_library_says_so(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ConnectError(Exception):
        """As that of httpx: neither an OSError nor one of the hub's own."""

    def unreachable(self: object, repo_id: str) -> list[str]:
        raise ConnectError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", unreachable)
    with pytest.raises(BaseModelError, match=r"the hub cannot be reached \(Name or service not known\)"):
        hub_folder(ID)


def test_facts_of_a_hub_id_do_not_need_its_weights(hub: Path, base_of: BaseOf) -> None:
    without_weights(fill(hub, base_of("sdxl")))
    assert load_base(ID, weights=False).stride == 8


def serve(
    monkeypatch: pytest.MonkeyPatch, offered: list[str], index: Path, download: Callable[..., str]
) -> None:
    """A hub that has these files of `ID`."""

    def one(repo_id: str, file: str, *, local_files_only: bool = False) -> str:
        if local_files_only:
            return plain(repo_id, file, local_files_only=True)
        assert file == "model_index.json"
        return str(index)

    plain = huggingface_hub.hf_hub_download
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda self, repo_id: offered)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", one)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)


def test_what_the_cache_lacks_is_downloaded_and_nothing_else(
    hub: Path, base_of: BaseOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_of("sd2")
    offered = [str(path.relative_to(base)) for path in base.rglob("*") if path.is_file()]
    offered += ["sd2.safetensors", "unet/diffusion_pytorch_model.bin", "unet/model.onnx", "README.md"]
    asked: list[str] = []

    def download(repo_id: str, *, allow_patterns: list[str]) -> str:
        asked.extend(allow_patterns)
        return str(fill(hub, base))

    serve(monkeypatch, offered, base / "model_index.json", download)
    assert hub_folder(ID).is_relative_to(hub)
    small = {name for name in offered[:-4] if name.count("/") == 1 or name == "model_index.json"}
    assert set(asked) == small
    assert hub_folder(ID).is_relative_to(hub) and len(asked) == len(small)  # the second time from the cache


def test_a_parts_weights_are_wanted_once_and_nothing_superfluous() -> None:
    parts = ("unet", "text_encoder", "tokenizer", "scheduler", "vae")

    def offered() -> Iterator[str]:
        yield from ("model_index.json", "sd_xl_base_1.0.safetensors", "scheduler/scheduler_config.json")
        for part, name in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
            yield from (f"{part}/config.json", f"{part}/{name}.bin", f"{part}/{name}.fp16.safetensors")
        yield from (
            "unet/diffusion_pytorch_model.safetensors",
            "unet/diffusion_pytorch_model.non_ema.safetensors",
        )
        yield from ("text_encoder/openvino_model.xml", "vae_1_0/config.json", "tokenizer/merges.txt")
        yield from ("tokenizer/tokenizer_config.json", "vae_1_0/diffusion_pytorch_model.safetensors")
        for part, name in (("vae", "diffusion_pytorch_model"), ("safety_checker", "model")):
            yield from (f"{part}/config.json", f"{part}/{name}.safetensors")
            yield from (f"{part}/{name}.fp16.safetensors", f"{part}/flax_model.msgpack")
        yield from ("vae_encoder/config.json", "vae_encoder/model.onnx", "unet/model.onnx_data")
        yield "unet/diffusion_pytorch_model-00001-of-00002.safetensors"  # the same in pieces

    small = {
        *("model_index.json", "scheduler/scheduler_config.json", "unet/config.json"),
        *("text_encoder/config.json", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json"),
        "vae/config.json",
    }
    assert set(wanted_files(offered(), parts, weights=False)) == small
    network = "diffusion_pytorch_model"
    plain = {f"unet/{network}.safetensors", "text_encoder/model.fp16.safetensors"}
    vae = {f"vae/{network}.safetensors"}  # which computes in float32 always
    assert set(wanted_files(offered(), parts)) == small | plain | vae
    half = {f"unet/{network}.fp16.safetensors", "text_encoder/model.fp16.safetensors"}
    assert set(wanted_files(offered(), parts, half=True)) == small | half | vae
    pieces = [f"model.fp16-0000{number}-of-00002.safetensors" for number in (1, 2)]
    offered_pieces = [f"text_encoder/{name}" for name in (*pieces, "config.json")]
    offered_pieces += [
        "text_encoder/model.fp16.safetensors.index.json",
        "text_encoder/model.safetensors.index.json",
    ]
    found = wanted_files(offered_pieces, parts, half=True)
    assert set(found) == {"model_index.json", *offered_pieces[:-1]}


@pytest.mark.parametrize("place", ["", "vae"])
def test_a_vae_of_the_hub_is_taken_from_its_top_or_its_part(
    place: str, hub: Path, base_of: BaseOf, other_vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(other_vae, repository / place)
    offered = [str(path.relative_to(repository)) for path in repository.rglob("*") if path.is_file()]
    asked: list[str] = []

    def download(repo_id: str, *, allow_patterns: list[str]) -> str:
        asked.extend(allow_patterns)
        return str(fill(hub, repository))

    more = [f"{one}.bin" for one in offered] + ["sdxl_vae.safetensors"]
    serve(monkeypatch, offered + more, repository / "none", download)
    expected = load_file(other_vae / "diffusion_pytorch_model.safetensors")
    for _ in range(2):  # the second time from the cache
        found = load_base(str(base_of("sdxl")), vae=ID).parts["vae"].state_dict()
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
        assert sorted(asked) == sorted(offered)


def test_paths_are_no_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert is_hub_id("stabilityai/stable-diffusion-xl-base-1.0")
    for path in ("models/mine", "./models/mine", "../a/b", "~/a", "/a/b", "a", "a/b/c", "pocket", "a\\b"):
        assert not is_hub_id(path), path
    assert "there is no base model at 'nowhere'" in refusal_of(Path("nowhere"))
