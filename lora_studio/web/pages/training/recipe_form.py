"""A recipe as a form beside its TOML: a change of either shows in the other; faults at their fields."""

from __future__ import annotations

from collections.abc import Callable

from nicegui import ui

from lora_studio.errors import RecipeError
from lora_studio.web.forms import FormField, form_tables, search
from lora_studio.web.forms.draft import RecipeDraft
from lora_studio.web.forms.entries import Entry
from lora_studio.web.pages.frame import heading, say_fault, text
from lora_studio.web.pages.training.recipe_fields import OptionField

_SIMPLE, _CHANGED, _ALL = "simple", "changed", "all"
_WHICH = {_SIMPLE: "Simple", _CHANGED: "Changed", _ALL: "All"}


class RecipeForm:
    """Draws into the places that are open when it is made: the form, and `text_place` for the TOML."""

    def __init__(self, draft: RecipeDraft, on_change: Callable[[], None]) -> None:
        self.draft, self._on_change = draft, on_change
        self._fields: dict[str, OptionField] = {}
        self._extra: frozenset[str] = frozenset()  # shown among the simple ones, as the recipe has them
        with ui.element("div").classes("row"):
            self.which = ui.toggle(_WHICH, value=_SIMPLE, on_change=self.draw).props("no-caps unelevated")
            self.which._props["aria-label"] = "Which options"
            self.words = ui.input("Search all options", on_change=self.draw)
            self.words.props("outlined dense clearable debounce=250").classes("grow")
        self.general = ui.element("div").props("role=status").classes("stack tight")
        self.box = ui.element("div").classes("stack")
        self._extra = draft.changed
        self.draw()

    def text_field(self) -> None:
        """The TOML, in the place that is open now."""
        self.toml = ui.textarea("The recipe (TOML)", value=self.draft.text, on_change=self._typed)
        self.toml.props("outlined debounce=600 spellcheck=false").classes("recipe-text")

    def draw(self) -> None:
        """The fields that are asked for, table by table."""
        wanted = self._wanted()
        self.box.clear()
        self._fields = {}
        with self.box:
            for table in form_tables():
                if fields := [one for one in table.fields if one.option in wanted]:
                    with ui.element("section").classes("panel"):
                        heading(table.title, level=2)
                        if table.name:
                            text(table.help).classes("small soft")
                        with ui.element("div").classes("option-grid"):
                            for one in fields:
                                self._fields[one.option] = OptionField(one, self._filled)
            if not wanted:
                text("No option is called so, nor described so.").classes("soft")
        self.refresh()

    def _wanted(self) -> dict[str, FormField]:
        if words := str(self.words.value or "").strip():
            return {one.option: one for one in search(words)}
        every = {one.option: one for table in form_tables() for one in table.fields}
        if self.which.value == _ALL:
            return every
        changed = self.draft.changed
        if self.which.value == _CHANGED:
            return {option: one for option, one in every.items() if option in changed}
        return {option: one for option, one in every.items() if one.is_simple or option in self._extra}

    def refresh(self) -> None:
        """What every field on the page shows, and all faults: those of hidden fields above."""
        faults, changed = self.draft.faults, self.draft.changed
        for option, field in self._fields.items():
            own = [one for one in faults if one.option == option]
            field.show(self.draft.shown(option), changed=option in changed, faults=own)
        self.general.clear()
        with self.general:
            for one in faults:
                if one.option not in self._fields:
                    text(one.sentence).classes("fault")
        self._on_change()

    def _filled(self, option: str, entry: Entry) -> None:
        try:
            self.draft.set(option, entry)
        except RecipeError as error:
            say_fault(error)
            return
        self.toml.value = self.draft.text
        self.refresh()

    def _typed(self) -> None:
        words = str(self.toml.value or "")
        if words != self.draft.text:
            self.draft.set_text(words)
            self.refresh()
