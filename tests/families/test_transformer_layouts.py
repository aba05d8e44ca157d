"""What files call the layers of the transformer families, against lists that UIs' own code was run on."""

import pytest
from published_transformers import BASES, REFERENCE, linear_shapes, listed, published, reference

from lora_studio.families.layer_names.transformers import DIFFUSERS, FileForm, layouts, row_counts

SPELLINGS = sorted(path.stem for path in REFERENCE.glob("*.txt") if path.stem.startswith(tuple(BASES)))


def layout_of(base: str):
    return layouts()[next(key for key in layouts() if base.replace("sd35", "sd3").startswith(key))]


def stems(spelling: str) -> set[str]:
    return {
        key.removesuffix(".weight").rpartition(".")[0] for key in reference(spelling) if "lora_" in key[9:]
    }


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_layer_of_a_list_is_read_and_written_the_same(spelling):
    base = next(base for base in BASES if spelling.startswith(base))
    layout, of_diffusers = (
        layout_of(base),
        {stem.removeprefix("transformer.") for stem in stems(f"{base}_diffusers")},
    )
    found = {stem: layout.read(stem) for stem in stems(spelling)}
    assert all(found.values())
    places = [place.path for one in found.values() for place in one.rows]
    assert sorted(places) == sorted(of_diffusers)
    form = FileForm(next(iter(found.values())).form.prefix, any(one.form.original for one in found.values()))
    assert form == DIFFUSERS or form == layout.best
    paths = {layout.original(path).path for path in places} if form.original else places
    assert {form.stem(path) for path in paths} == stems(spelling)


@pytest.mark.parametrize("base", BASES)
def test_the_rows_of_a_fused_weight_are_those_of_diffusers_layers(base):
    layout, shapes = layout_of(base), listed(base)
    for path in (stem.removeprefix("transformer.") for stem in stems(f"{base}_diffusers")):
        original = layout.original(path)
        rows = [shapes["diffusers"][one] for one in original.rows]
        whole = shapes["original"][original.path]
        assert {one[1] for one in rows} == {whole[1]}
        assert sum(one[0] for one in rows) == whole[0]
        assert len(rows) == 1 or row_counts(len(rows), whole, grouped=layout.grouped) == tuple(
            one[0] for one in rows
        )


@pytest.mark.slow
@pytest.mark.parametrize("base", BASES)
def test_the_list_of_a_base_has_the_layers_of_diffusers_model(base):
    assert listed(base)["diffusers"] == linear_shapes(published(base))


def test_what_is_no_layer_of_the_family_is_not_read():
    flux, lumina_rows = layouts()["flux1"], (3840, 2304)
    for stem in (
        "lora_unet_double_blocks_x_img_attn_qkv",
        "lora_unet_",
        "",
        "transformer.",
        "nothing",
        "0",
        "#",
    ):
        assert flux.read(stem) is None
    assert row_counts(3, lumina_rows) is None


def test_rows_that_a_file_would_lack_are_named():
    flux, z_image = layouts()["flux1"], layouts()["z_image"]
    late = ["single_transformer_blocks.3.attn.to_q", "single_transformer_blocks.3.attn.to_v"]
    assert flux.companions(late) == []  # fused, with zeros for the others
    assert set(flux.companions(late, DIFFUSERS)) == {
        *("single_transformer_blocks.3.attn.to_k", "single_transformer_blocks.3.proj_mlp"),
        *(f"single_transformer_blocks.0.attn.to_{one}" for one in "qkv"),
        "single_transformer_blocks.0.proj_mlp",
        *(f"transformer_blocks.0.attn.add_{one}_proj" for one in "qkv"),
    }
    assert z_image.companions(["layers.1.attention.to_v"]) == [
        "layers.1.attention.to_q",
        "layers.1.attention.to_k",
    ]
    assert layouts()["flux2"].companions(["transformer_blocks.4.attn.to_q"]) == [
        "transformer_blocks.0.ff.linear_in"
    ]
    assert layouts()["flux2"].companions(["transformer_blocks.4.ff.linear_in"]) == []
