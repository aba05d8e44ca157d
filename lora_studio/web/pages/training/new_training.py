"""The page on which a training begins: images and base, recipe as form and text, plan, start."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import quote

from nicegui import ui

from lora_studio.errors import StudioError
from lora_studio.jobs import Job
from lora_studio.jobs.adding import training
from lora_studio.pocket import EMBEDDED
from lora_studio.recipe.toml import read_toml
from lora_studio.tensor_file import FILE_ENDINGS
from lora_studio.text import shown
from lora_studio.web.dataset.backups import SafeWriter, current
from lora_studio.web.forms.beginning import (
    PURPOSES,
    FirstInputs,
    Suggestions,
    asks_the_gpu,
    begin,
    from_settings,
    suggest,
)
from lora_studio.web.forms.draft import RecipeDraft
from lora_studio.web.forms.words import read_trigger
from lora_studio.web.pages.frame import Words, frame, heading, text, told, told_later
from lora_studio.web.pages.parts import table
from lora_studio.web.pages.picker import PathField
from lora_studio.web.pages.styles import add_style
from lora_studio.web.pages.training.drop_zone import DropZone
from lora_studio.web.pages.training.plan_panel import PlanPanel
from lora_studio.web.pages.training.recipe_form import RecipeForm
from lora_studio.web.studio import studio

_SETTINGS = (".json", ".toml", ".yaml", ".yml", ".sh", ".txt", ".bat", ".ps1")


@ui.page("/new")
def new_training(recipe: str = "") -> None:
    """`recipe`: one that is there, to go on with."""
    with frame("New training", here="/new", wide=True):
        add_style("training.css")
        heading("New training")
        page = TrainingPage()
        if recipe:
            page.recipe_field.value = shown(recipe, limit=4000)
            ui.timer(0.01, told_later(page.open_recipe), once=True)


class TrainingPage:
    """What is asked first, and below it the recipe, once there is one."""

    def __init__(self) -> None:
        self.draft: RecipeDraft | None = None
        self.path: Path | None = None  # that the recipe lies at
        self._saved: bytes | None = None
        self._asked = 0
        with ui.element("section").classes("panel"):
            self._first()
        self.taken = ui.element("div").classes("stack")
        self.box = ui.element("div").classes("stack")

    def _first(self) -> None:
        heading("Images and base", level=2)
        with ui.element("div").classes("columns"):
            with ui.element("div").classes("stack"):
                self.images = PathField("Folder of images", on_choose=told_later(self.look))
                self.seen = Words("p", "")
                self.seen.classes("small soft").props("aria-live=polite")
                DropZone(self._dropped)
            with ui.element("div").classes("stack"):
                self.base = PathField(
                    "Base model: a file, a folder, a hub id or pocket",
                    endings=FILE_ENDINGS,
                    on_choose=told_later(self.look),
                )
                self.base.input.set_autocomplete(list(EMBEDDED))
                self.base_seen = Words("p", "")
                self.base_seen.classes("small soft").props("aria-live=polite")
                with ui.element("div").classes("begin-grid"):
                    self.purpose = ui.select(
                        list(PURPOSES), label="What is learned", on_change=told_later(self.look)
                    )
                    self.name = ui.input("Name, also of the file")
                    self.trigger = ui.input("Trigger words", on_change=self._read_trigger)
                    self.class_word = ui.input(
                        "Class word, of a subject: dog, woman", on_change=self._read_trigger
                    )
                    self.preset = ui.select([], label="Preset")
                    for one in (self.purpose, self.name, self.trigger, self.class_word, self.preset):
                        one.props("outlined dense debounce=350")
                self.verdict = Words("p", "")
                self.verdict.classes("verdict soft").props("aria-live=polite")
        with ui.element("div").classes("row"):
            ui.button("Make the recipe", on_click=told_later(self.make)).props("flat no-caps").classes(
                "primary"
            )
            look = ui.button("Look at the images", on_click=told(self._show_images))
            look.props("flat no-caps").classes("quiet")
        with (
            ui.expansion("From a recipe, or another trainer's settings").classes("soft").props("dense"),
            ui.element("div").classes("stack"),
        ):
            self.recipe_field = PathField(
                "A recipe of yours",
                endings=(".toml",),
                folders=False,
                on_choose=told_later(self.open_recipe),
            )
            ui.button("Open", on_click=told_later(self.open_recipe)).props("flat no-caps").classes("quiet")
            self.settings = PathField(
                "Settings of kohya's scripts, OneTrainer, ai-toolkit, SimpleTuner or diffusers",
                endings=_SETTINGS,
                folders=False,
                on_choose=told_later(self.take),
            )
            ui.button("Take over", on_click=told_later(self.take)).props("flat no-caps").classes("quiet")

    def _show_images(self) -> None:
        path = studio().folders.shortened(self.images.resolved())
        ui.navigate.to(f"/dataset?target={quote(path)}", new_tab=True)

    async def look(self) -> None:
        """Fill in what `lora-studio start` would answer. Raises StudioError."""
        if not self.images.value:
            return
        await self._suggest()

    async def _suggest(self) -> Suggestions:
        images, base = self.images.resolved(), self.base.value
        if (base and base not in EMBEDDED and (studio().folders.project / base).exists()) or base.startswith(
            ("/", "~", ".", "\\")
        ):
            base = str(studio().folders.resolve(base))
        asked = FirstInputs(images, base, str(self.purpose.value or ""), *self._words(), self._preset())
        project = studio().folders.project
        if await asyncio.to_thread(asks_the_gpu, asked, project):
            said = await asyncio.wrap_future(studio().kept.call(suggest, asked, project))
        else:
            said = await asyncio.to_thread(suggest, asked, project)
        self._fill(said)
        return said

    def _words(self) -> tuple[str, str, str]:
        return tuple(str(one.value or "").strip() for one in (self.name, self.trigger, self.class_word))  # type: ignore[return-value]

    def _preset(self) -> str:
        chosen = str(self.preset.value or "")
        return chosen if chosen and chosen != self._usual_preset else ""

    _usual_preset = ""

    def _fill(self, said: Suggestions) -> None:
        given = said.inputs
        self.seen.say(said.found.text)
        self.base_seen.say(". ".join(filter(None, [said.base.title, said.base.note])))
        if given.base != str(studio().folders.project / self.base.value):
            self.base.value = given.base
        self.purpose.value, self.name.value = given.purpose, given.name
        self.trigger.value, self.class_word.value = given.trigger, given.class_words
        self._usual_preset = said.choice.name if not self._preset() else self._usual_preset
        self.preset.set_options(list(said.fitting), value=said.choice.name)

    async def _read_trigger(self) -> None:
        """As one types; of answers that come late only the last is shown."""
        self._asked += 1
        mine, base = self._asked, self.base.value or "pocket"
        _, trigger, word = self._words()
        try:
            found = await asyncio.wrap_future(read_trigger(studio().kept, base, trigger, word))
        except StudioError as error:
            found = None
            self.verdict.say(str(error))
        if mine == self._asked and found is not None:
            advice = f"\n{found.finding}. {found.advice}" if found.finding else ""
            self.verdict.say(f"{found.reading}{advice}")
            self.verdict.classes(replace=f"verdict {found.severity or 'soft'}")

    async def _dropped(self, folder: Path) -> None:
        self.images.value = studio().folders.shortened(folder)
        await told_later(self.look)()

    async def make(self) -> None:
        """The preset, filled in. Raises StudioError."""
        draft = begin(await self._suggest(), studio().folders.project)
        self._edit(draft, None)

    async def open_recipe(self) -> None:
        """One that is there. Raises StudioError for what is none."""
        path = self.recipe_field.resolved()
        read_toml(path)
        self._edit(RecipeDraft(path.read_text("utf-8-sig"), path.parent), path)

    async def take(self) -> None:
        """Another trainer's settings; the table says what became of each key. Raises StudioError."""
        files = [
            studio().folders.resolve(one.strip()) for one in self.settings.value.split(",") if one.strip()
        ]
        if not files:
            raise StudioError("name the file with the other trainer's settings.")
        images = self.images.resolved() if self.images.value else None
        given = None if images is None else FirstInputs(images, self.base.value, "", *self._words())
        made = await asyncio.to_thread(from_settings, files, given, studio().folders.project)
        self._edit(made.draft, None)
        self.taken.clear()
        with self.taken, ui.element("section").classes("panel"):
            heading("What was taken over", level=2)
            table(["", "there", "here"], made.rows)
            for one in made.notes:
                text(one).classes("small soft")

    def _edit(self, draft: RecipeDraft, path: Path | None) -> None:
        self.draft, self.path = draft, path
        self._saved = current(path) if path else None
        self.taken.clear()
        self.box.clear()
        with self.box, ui.element("div").classes("recipe"):
            form_place = ui.element("div").classes("stack")
            with ui.element("aside").classes("recipe-aside"):
                self.plan = PlanPanel(self)
                text_place = ui.element("div").classes("panel")
            with form_place:
                form = RecipeForm(draft, self.plan.refresh)
            with text_place:
                form.text_field()

    def save(self) -> Path:
        """Write the recipe into the project's folder, or where it lay. Raises StudioError for its faults.

        What is there of another's stays: a new recipe gets a number, an opened one is kept in the backup.
        """
        assert self.draft is not None
        recipe = self.draft.recipe()
        if self.path is None:
            names = (f"{recipe.name}{f'_{n}' if n else ''}.toml" for n in range(10_000))
            places = (self.draft.folder / one for one in names)
            self.path = next(one for one in places if not one.exists())
        path = studio().folders.resolve(self.path)
        data = self.draft.text.encode()
        if data != self._saved:
            SafeWriter(path.parent).write(path, data, expected=self._saved)
            self._saved = data
        return path

    def queue(self) -> Job:
        """Save, and add the training to the queue. Raises StudioError."""
        path = self.save()
        assert self.draft is not None
        name = self.draft.recipe().name
        runs = studio().folders.project / "runs"
        there = (f"{name}{f'_{n}' if n else ''}" for n in range(10_000))
        out = next(runs / one for one in there if not (runs / one).exists())
        return studio().add(training(path, (), out))
