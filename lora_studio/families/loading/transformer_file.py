"""A base whose transformer is one file in the original layout, alone or with all the rest, offline."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_studio.errors import BaseModelError, preview_names
from lora_studio.families.configuration import CONDITIONER, WORDS
from lora_studio.families.loading.single_file import (
    Loaded,
    SingleFileOptions,
    empty_part,
    named_distilled,
)
from lora_studio.families.loading.text_encoders import (
    TextSource,
    assign,
    check_widths,
    is_text_name,
    sources_in,
    text_sources,
    tokenizer_for,
    words_tokenizer,
)
from lora_studio.families.original import Shapes
from lora_studio.families.original.checkpoint import Checkpoint, open_checkpoint
from lora_studio.families.original.names import VAE_FIRSTS, VAE_PREFIXES, TensorOrigin, vae_origins
from lora_studio.families.original.quantized import in_plain_numbers
from lora_studio.families.original.transformers import (
    ADAPTER,
    Found,
    find_transformer,
)
from lora_studio.families.original.transformers.configurations import (
    conditioner_configuration,
    scheduler_configuration,
    transformer_configuration,
    vae_configuration,
)
from lora_studio.families.original.transformers.names import transformer_origins
from lora_studio.families.original.transformers.text import title_of
from lora_studio.families.stored import StoredPart, shapes_of, sides, squeezed, stored_in
from lora_studio.text import plural

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedTokenizerBase

TRANSFORMER, VAE = "transformer", "vae"
_LEFTOVERS = re.compile(  # what a file may hold beside its parts
    r"^(model_ema\..*|.*norm_final\.weight|vae\.bn\.num_batches_tracked"
    r"|([\w.]+\.)?(pos_embedder\.(seq|dim_(spatial|temporal)_range)|accum_\w+|_extra_state)"
    r"|(vae|first_stage_model)\.(loss\..*|model_ema\..*)"
    r"|text_encoders\.\w+\.(logit_scale|spiece_model|tekken_model|tokenizer_json"
    r"|transformer\.(logit_scale|lm_head\.weight"
    r"|text_projection\.weight|text_model\.embeddings\.position_ids|decoder\..*|encoder\.embed_tokens\.weight"
    r"|shared\.weight)))$"
)


@dataclass(frozen=True)
class TransformerFile:
    """A file whose header was found to hold a transformer; no weights are read yet."""

    checkpoint: Checkpoint
    found: Found
    configurations: dict[str, dict[str, Any]]
    texts: Mapping[str, TextSource]
    vae_prefix: str | None  # None: the VAE is not in the file
    notes: tuple[str, ...]
    options: SingleFileOptions

    def tokenizers(self) -> dict[str, PreTrainedTokenizerBase]:
        """Raises BaseModelError that says which one is missing."""
        found = {
            one.part.replace("text_encoder", "tokenizer"): tokenizer_for(
                one, self.texts[one.part], self.options.tokenizer
            )
            for one in self.found.kind.text
        }
        if self.found.kind.conditioner:
            words = self.configurations[CONDITIONER]["target_vocab_size"]
            beside = self.texts[self.found.kind.text[0].part].tokenizer
            found[WORDS] = words_tokenizer(words, beside, self.options.tokenizer)
        return found

    def load(self, *, weights: bool = True, dtype: torch.dtype | None = None, fill: bool = True) -> Loaded:
        """All parts on the CPU in `dtype`, by default and the VAE always in float32; or shapes only.

        What its file has in `dtype` stays mapped from it; without `fill` it is only looked where it lies.
        A VAE that is not in the file has shapes only. Raises BaseModelError that names what is missing or
        should not be there.
        """
        import torch

        tokenizers = self.tokenizers()
        names = (TRANSFORMER, VAE, *self.texts, *[CONDITIONER] * bool(self.found.kind.conditioner))
        parts = {name: empty_part(name, self.configurations[name]) for name in names}
        origins = self.origins(parts)
        notes = self._check(parts, origins)
        stored: dict[str, StoredPart] = {}
        if weights:
            stored = {name: stored_in(self.checkpoint, parts[name], own) for name, own in origins.items()}
            stored |= {name: one.stored(parts[name]) for name, one in self.texts.items()}
        for name, one in stored.items() if fill else ():
            wanted = torch.float32 if name == VAE or dtype is None else dtype
            one.fill(parts[name], wanted, copies=False)
        stamps = {name: one.stamps for name, one in self.texts.items()}
        return Loaded(parts, stored, tokenizers, self.configurations, (*self.notes, *notes), stamps)

    def origins(self, parts: Mapping[str, nn.Module]) -> dict[str, dict[str, TensorOrigin]]:
        """Of the transformer, of its text conditioner, and of the VAE if it is in the file."""
        kind, prefix, shapes = self.found
        found = {TRANSFORMER: transformer_origins(kind.names, shapes, shapes_of(parts[TRANSFORMER]), prefix)}
        if kind.conditioner:
            own = shapes_of(parts[CONDITIONER])
            found[CONDITIONER] = {key: TensorOrigin(prefix + ADAPTER + key) for key in own}
        if self.vae_prefix is not None:
            found[VAE] = vae_origins(self.checkpoint.shapes, self.configurations[VAE])
        return found

    def _check(
        self, parts: Mapping[str, nn.Module], origins: Mapping[str, Mapping[str, TensorOrigin]]
    ) -> list[str]:
        """Every tensor is there in its shape, and nothing else; the notes on what is left out."""
        shapes, used, title = self.checkpoint.shapes, set(), self.found.kind.title
        name = self.checkpoint.path.name
        for part, own in origins.items():
            wanted = shapes_of(parts[part])
            missing = [f"{part}.{key}" for key in wanted if key not in own or own[key].name not in shapes]
            if missing:
                raise BaseModelError(
                    f"{name} lacks {_counted(missing)} of a {title} base; download it again."
                )
            _check_shapes(name, part, wanted, own, shapes)
            used |= {one.name for one in own.values()}
        rest = [key for key in shapes if key not in used and not is_text_name(key)]
        strange = [key for key in rest if not _LEFTOVERS.match(key)]
        if strange:
            raise BaseModelError(
                f"{name} holds {_counted(strange)} that no {title} base has; it is of another kind, or "
                "damaged."
            )
        return [f"left out: {_counted(rest)} not needed"] if rest else []


def _check_shapes(
    name: str,
    part: str,
    wanted: Mapping[str, tuple[int, ...]],
    found: Mapping[str, TensorOrigin],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Also that layers which are one below the other are all of the tensor that they lie in."""
    wrong = [
        f"{found[key].name} is {sides(found[key].shape(shapes))}, not {sides(shape)}"
        for key, shape in wanted.items()
        if squeezed(found[key].shape(shapes)) != squeezed(shape)
    ]
    ends: dict[str, int] = {}
    for origin in (found[key] for key in wanted if found[key].rows is not None):
        assert origin.rows is not None
        ends[origin.name] = max(ends.get(origin.name, 0), origin.rows[1])
    wrong += [
        f"{key} has {shapes[key][0]} rows, not {end}" for key, end in ends.items() if shapes[key][0] != end
    ]
    if wrong:
        raise BaseModelError(f"{name} has {_counted(wrong)} of another size in its {part}.")


def open_transformer_file(path: Path, options: SingleFileOptions | None = None) -> TransformerFile | None:
    """Look at a file's header; None for one without a transformer.

    Raises BaseModelError that names what is not trained, or says what `base.text_encoder` and `base.vae` have
    to name because the file lacks it.
    """
    options = options or SingleFileOptions()
    checkpoint = open_checkpoint(path, allow_pickle=options.allow_pickle)
    found = find_transformer(path.name, checkpoint.shapes)
    if found is None:
        return None
    checkpoint = in_plain_numbers(checkpoint)
    found = find_transformer(path.name, checkpoint.shapes)
    assert found is not None
    kind, own = found.kind, {key: one for key, one in checkpoint.shapes.items() if is_text_name(key)}
    inside = sources_in(replace(checkpoint, shapes=own)) if own else []
    texts = assign(kind, [*inside, *text_sources(options.text_encoders, allow_pickle=options.allow_pickle)])
    firsts = {one: {one + first for first in VAE_FIRSTS} for one in VAE_PREFIXES}
    prefix = next((one for one, names in firsts.items() if names & checkpoint.shapes.keys()), None)
    _check_whole(path.name, found, texts, has_vae=prefix is not None or bool(options.vae))
    distilled = named_distilled(path.stem) if options.distilled is None else options.distilled
    vae = None if prefix is None else _behind(prefix, checkpoint.shapes)
    transformer = transformer_configuration(path.name, found)
    of_texts = {one.part: texts[one.part].configuration(one.projects) for one in kind.text}
    conditioner = conditioner_configuration(path.name, found) if kind.conditioner else {}
    check_widths(kind, transformer | conditioner, of_texts)
    configurations = {
        TRANSFORMER: transformer,
        VAE: vae_configuration(kind, vae),
        **of_texts,
        **({CONDITIONER: conditioner} if conditioner else {}),
        **{one.part.replace("text_encoder", "tokenizer"): {} for one in kind.text},
        "scheduler": scheduler_configuration(found, distilled=distilled),
    }
    scaled = f"; {plural(len(checkpoint.scales), 'weight')} multiplied with their scales"
    note = f"{kind.title}{scaled if checkpoint.scales else ''}"
    return TransformerFile(checkpoint, found, configurations, texts, prefix, (note,), options)


def _behind(prefix: str, shapes: Shapes) -> Shapes:
    return {key.removeprefix(prefix): one for key, one in shapes.items() if key.startswith(prefix)}


def _check_whole(name: str, found: Found, texts: Mapping[str, TextSource], *, has_vae: bool) -> None:
    kind = found.kind
    lacking = [title_of(one.kind) for one in kind.text if one.part not in texts]
    settings = ["base.text_encoder"] * bool(lacking) + ["base.vae"] * (not has_vae)
    if not settings:
        return
    what = [*lacking, *["a VAE"] * (not has_vae)]
    raise BaseModelError(
        f"{name} holds {kind.title} without {_listed(what)}: set {' and '.join(settings)} to a folder, a "
        f".safetensors file or a hub id that has it, such as {kind.repository}."
    )


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _counted(names: list[str]) -> str:
    """ "5 tensors (a, b, c and 2 more)"."""
    return f"{plural(len(names), 'tensor')} ({preview_names(names)})"
