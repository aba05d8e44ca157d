"""The recipe's captions: what the run will show, and its conditioning."""

from __future__ import annotations

from collections.abc import Sequence

from lora_studio.data.captions.shown import CaptionOptions, ShownCaptions
from lora_studio.data.captions.variants import Variation
from lora_studio.data.manifest import Record
from lora_studio.errors import CaptionError, RecipeError
from lora_studio.recipe import Recipe


def options_of(recipe: Recipe) -> CaptionOptions:
    """How the recipe wants captions to be worded."""
    data = recipe.data
    return CaptionOptions(
        dropout=data.caption_dropout,
        preservation=recipe.objective.preservation,
        seed=recipe.training.seed,
        variation=Variation(data.wildcards, data.shuffle_tags, data.keep_tags, data.tag_dropout),
        choose_lines=data.caption_lines == "choose",
        prefix=data.caption_prefix,
        suffix=data.caption_suffix,
    )


def captions_of(
    recipe: Recipe, records: Sequence[Record], options: CaptionOptions | None = None
) -> ShownCaptions:
    """The captions as the recipe words them, unless `options` are given.

    Raises RecipeError for a placeholder that cannot be filled.
    """
    try:
        return ShownCaptions(records, options or options_of(recipe))
    except CaptionError as error:
        raise RecipeError(f"data.caption_prefix or data.caption_suffix: {error}") from None


def shown_captions(recipe: Recipe, records: Sequence[Record]) -> ShownCaptions:
    """Those that can be trained on. Raises RecipeError if the recipe asks for words that are not there."""
    captions, preservation = captions_of(recipe, records), recipe.objective.preservation
    if preservation and not any(captions.plain(index) for index in range(len(records))):
        trigger = ", ".join(dict.fromkeys(record.trigger for record in records))
        raise RecipeError(
            f"objective.preservation is {preservation}, but no caption holds data.trigger "
            f"({trigger!r}), so there is nothing to leave out; set the trigger that the captions hold, or "
            "preservation to 0."
        )
    if preservation and (nameless := captions.nameless()):
        held = sum(captions.plain(index) is not None for index in range(len(records)))
        if len({index for index, _ in nameless}) == held:
            index, text = nameless[0]
            raise RecipeError(
                f"objective.preservation is {preservation}, but without the trigger "
                f'{records[index].trigger!r} the caption "{text}" names nothing; set data.class_words to '
                'what the trigger is one of, such as "robot" or "woman".'
            )
    return captions


def refuse_unused_tokens(recipe: Recipe, captions: ShownCaptions) -> None:
    """Raise RecipeError for new tokens that no caption holds, as nothing would teach them."""
    if not recipe.tokens:
        return
    texts = [text.lower() for index in range(len(captions.records)) for text in captions.written(index)]
    unused = [one.token for one in recipe.tokens if not any(one.token in text for text in texts)]
    if unused and texts:
        raise RecipeError(
            f"tokens: no caption holds {', '.join(map(repr, unused))}, so nothing would teach it; write it "
            'into the captions, or set data.caption_prefix = "{trigger}, " and a data.trigger that holds it.'
        )
