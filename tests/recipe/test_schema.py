"""The reference page: fresh, whole, and true of what the models accept."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
from pydantic import BaseModel, ValidationError
from write_reference import recipe_page

from lora_studio.adapters import ADAPTERS
from lora_studio.data.captioners import CAPTIONERS
from lora_studio.quantization import QUANTIZERS
from lora_studio.recipe import FREE, Recipe, options
from lora_studio.recipe.section import Section
from lora_studio.registry import Registry
from lora_studio.training.optimizers import OPTIMIZERS, SCHEDULES
from lora_studio.training.tracking import OFFERED

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "recipe.md"


class Row(NamedTuple):
    table: str
    option: str
    kind: str
    default: str
    limits: str
    about: str
    resume: str

    @property
    def dotted(self) -> str:
        return f"{self.table}.{self.option}" if self.table else self.option


def rows() -> Iterator[Row]:
    """The page's rows, read from its text."""
    table = ""
    for line in recipe_page().splitlines():
        if heading := re.match(r"## (?:`\[+([\w.]+)\]+`|.*)", line):
            table = heading[1] or ""
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 6 and cells[0].startswith("`"):
            yield Row(table, cells[0].strip("`"), *cells[1:])


def sections(section: type[Section] = Recipe, name: str = "") -> Iterator[tuple[str, type[Section]]]:
    """Every table of a recipe, also those in lists."""
    yield name, section
    for key, field in section.model_fields.items():
        kind: Any = field.annotation
        kind = kind if isinstance(kind, type) else (get_args(kind) or (None,))[0]
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from sections(kind, f"{name}.{key}" if name else key)


SECTIONS = dict(sections())
ROWS = list(rows())


def test_the_page_is_what_the_models_say() -> None:
    assert PAGE.read_text("utf-8") == recipe_page(), "run: make docs"


def test_every_option_has_a_row_with_a_description() -> None:
    listed = {row.dotted for row in ROWS}
    assert len(listed) == len(ROWS)
    for name, _ in options():
        assert name in listed or name in SECTIONS
    for name, section in SECTIONS.items():
        inner = {key for key in section.model_fields if f"{name}.{key}".lstrip(".") in SECTIONS}
        assert {row.option for row in ROWS if row.table == name} == set(section.model_fields) - inner
    assert all(row.about for row in ROWS)
    assert {row.dotted for row in ROWS if row.resume == "yes"} == FREE


def accepts(row: Row, value: object) -> bool:
    """Whether the model itself takes a value, whatever else is missing."""
    try:
        SECTIONS[row.table].model_validate({row.option: value})
    except ValidationError as error:
        return not any(one["loc"][:1] == (row.option,) for one in error.errors())
    return True


@pytest.mark.parametrize(
    "row", [row for row in ROWS if re.search("[≥>≤<]", row.limits)], ids=lambda r: r.dotted
)
def test_a_range_is_where_the_model_draws_the_line(row: Row) -> None:
    for sign, text in re.findall(r"([≥>≤<]) ([-\d.]+)", row.limits):
        edge, beyond = float(text), -1e-3 if sign in "≥>" else 1e-3
        if "integer" in row.kind:
            edge, beyond = int(edge), int(beyond * 1000)
        outside = edge + beyond if sign in "≥≤" else edge
        inside = edge if sign in "≥≤" else edge - beyond
        count = re.search(r"list of (\d+)", row.kind)
        length = int(count[1]) if count else int(row.kind.startswith("list"))
        assert not accepts(row, [outside] * length if length else outside), (sign, text)
        if not count:  # a pair has to differ, too
            assert accepts(row, [inside] if length else inside), (sign, text)


@pytest.mark.parametrize("row", [row for row in ROWS if " or `" in row.limits], ids=lambda row: row.dotted)
def test_the_listed_values_are_accepted_and_others_are_not(row: Row) -> None:
    values = re.findall(r'`"([^"]+)"`', row.limits)
    assert len(values) > 1 and all(accepts(row, value) for value in values)
    assert not accepts(row, "something else")


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.default == "required"], ids=lambda row: row.dotted
)
def test_what_is_required_has_no_default(row: Row) -> None:
    with pytest.raises(ValidationError) as caught:
        SECTIONS[row.table].model_validate({})
    assert row.option in {one["loc"][0] for one in caught.value.errors() if one["type"] == "missing"}


@pytest.mark.parametrize(
    ("option", "table"),
    [
        ("adapter.kind", ADAPTERS),
        ("base.quantize", QUANTIZERS),
        ("data.captioner", CAPTIONERS),
        ("training.optimizer", OPTIMIZERS),
        ("training.lr_schedule", SCHEDULES),
    ],
)
def test_a_description_names_everything_in_the_table_of_its_option(option: str, table: Registry[Any]) -> None:
    (about,) = (row.about for row in ROWS if row.dotted == option)
    assert all(re.search(rf"\b{name}\b", about) for name in table.names())


def test_the_services_of_tracking_are_named() -> None:
    (about,) = (row.about for row in ROWS if row.dotted == "tracking.to")
    assert all(name in about for name in OFFERED)


def test_every_section_is_a_model_with_a_sentence() -> None:
    assert all(issubclass(one, BaseModel) and (one.__doc__ or "").endswith(".") for one in SECTIONS.values())
