"""A field of the form for each kind of option, and for tables in a list."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nicegui import ui

from lora_studio.text import shown
from lora_studio.web.forms import FormField
from lora_studio.web.forms.draft import Fault
from lora_studio.web.forms.entries import Entry, entry_of
from lora_studio.web.pages.frame import Words, text

OnEntry = Callable[[str, Entry], None]  # an option, and what was filled in; None: as is usual


class OptionField:
    """A label, a widget that suits the option, its help, its range, and what is wrong with it."""

    def __init__(self, field: FormField, on_entry: OnEntry) -> None:
        self.field, self._on_entry = field, on_entry
        self._shown: Entry = None
        self._filling = False
        with ui.element("div").classes("option") as self.box:
            if field.kind in ("list", "values", "tables") or len(field.help) > 150:
                self.box.classes("whole")
            with ui.element("div").classes("option-row"):
                self._widget()
                self.reset = ui.button(icon="restart_alt", on_click=lambda: on_entry(field.option, None))
                self.reset.props("flat dense round color=grey")
                self.reset._props["aria-label"] = f"{field.option}: back to the default"
            self.fault = ui.element("div").props("role=status")
            note = " · ".join(filter(None, [field.allowed, self._usual()]))
            Words("div", f"{field.help[:1].upper()}{field.help[1:]}.").classes("option-help")
            Words("div", f"{field.option}{f' · {note}' if note else ''}").classes("option-name")

    def _usual(self) -> str:
        usual = entry_of(self.field, self.field.default)
        said = ", ".join(map(str, usual)) if isinstance(usual, list) else usual
        return f"default {shown(said, limit=60)}" if said else ""

    def _widget(self) -> None:
        field = self.field
        if field.kind == "tables":
            self.rows = ui.element("div").classes("stack grow")
            return
        if field.kind == "yes_no":
            self.widget: ui.element = ui.switch(field.label, on_change=self._changed)
        elif field.kind == "choice":
            self.widget = ui.select(list(field.choices), label=field.label, on_change=self._changed)
        elif field.kind in ("list", "values"):
            title = f"{field.label}, one a line"
            self.widget = ui.textarea(title, on_change=self._changed).props("autogrow debounce=500")
        else:
            suggested = list(field.choices) or None
            self.widget = ui.input(field.label, autocomplete=suggested, on_change=self._changed)
            self.widget.props("debounce=450")
            if field.kind in ("integer", "number"):
                self.widget.props("inputmode=decimal")
        if field.kind != "yes_no":
            self.widget.props("outlined dense")

    def show(self, entry: Entry, *, changed: bool, faults: Sequence[Fault]) -> None:
        """What the recipe has for it, and what it says of that."""
        self.box.classes(add="changed") if changed else self.box.classes(remove="changed")
        self.reset.set_visibility(changed and not self.field.is_required)
        if self.field.kind == "tables":
            self._show_tables(entry if isinstance(entry, list) else [])
        elif entry != self._shown or self.widget.value != self._of(entry):  # type: ignore[attr-defined]
            self._filling = True
            value = self._of(entry)
            if self.field.kind == "choice" and value not in self.field.choices:
                self.widget.set_options([*self.field.choices, value] if value else list(self.field.choices))  # type: ignore[attr-defined]
            self.widget.value = value  # type: ignore[attr-defined]
            self._filling = False
        self._shown = entry
        self.fault.clear()
        with self.fault:
            for one in faults:
                text(one.sentence).classes("field-fault")

    def _of(self, entry: Entry) -> object:
        if self.field.kind == "yes_no":
            return entry == "true"
        if isinstance(entry, list):
            return "\n".join(one.replace("\n", " ") for one in entry if isinstance(one, str))
        return entry if entry is not None else (None if self.field.kind == "choice" else "")

    def _changed(self) -> None:
        if self._filling:
            return
        value: object = self.widget.value  # type: ignore[attr-defined]
        if self.field.kind == "yes_no":
            entry: Entry = "true" if value else "false"
        elif self.field.kind == "list":
            lines = [line.strip() for line in str(value or "").splitlines() if line.strip()]
            entry = lines or None
        else:
            entry = str(value) if value not in (None, "") else None
        if entry != self._shown:
            self._shown = entry
            self._on_entry(self.field.option, entry)

    def _show_tables(self, tables: Sequence[object]) -> None:
        if tables == self._shown and tables:
            return
        self.rows.clear()
        with self.rows:
            text(self.field.label, tag="h3")
            for number, table in enumerate(tables):
                if isinstance(table, dict):
                    self._table(number, table, list(tables))
            add = ui.button("Add", icon="add", on_click=lambda: self._put([*tables, {}]))
            add.props("flat dense no-caps").classes("quiet")
            add._props["aria-label"] = f"Add one to {self.field.option}"

    def _table(self, number: int, table: dict[str, Entry], tables: list[object]) -> None:
        with ui.element("div").classes("table-card").props("role=group"):
            for column in self.field.columns:
                self._column(column, number, table, tables)
            remove = ui.button("Remove", on_click=lambda: self._put(tables[:number] + tables[number + 1 :]))
            remove.props("flat dense no-caps").classes("danger")
            remove._props["aria-label"] = f"Remove number {number + 1} of {self.field.option}"

    def _column(self, column: FormField, number: int, table: dict[str, Entry], tables: list[object]) -> None:
        value = table.get(column.key)

        def put(new: object) -> None:
            entry = None if new in (None, "") else str(new)
            changed = {key: one for key, one in table.items() if key != column.key}
            if entry is not None:
                changed[column.key] = entry
            tables[number] = changed
            table.clear()
            table.update(changed)
            self._shown = list(tables)  # type: ignore[assignment]
            self._on_entry(self.field.option, list(tables))  # type: ignore[arg-type]

        usual = str(entry_of(column, column.default) or "")
        if column.kind in ("choice", "yes_no"):
            choices = ["", *(column.choices or ("true", "false"))]
            made: ui.element = ui.select(
                choices, value=value or "", label=column.label, on_change=lambda event: put(event.value)
            )
        else:
            made = ui.input(
                column.label,
                value=str(value or ""),
                placeholder=usual,
                on_change=lambda event: put(event.value),
            )
            made.props("debounce=500")
        made.props("outlined dense")
        with made:
            ui.tooltip(f"{column.help}{f'; default {usual}' if usual else ''}")

    def _put(self, tables: list[object]) -> None:
        self._shown = None
        self._on_entry(self.field.option, tables or None)  # type: ignore[arg-type]
