"""The course of a run: loss, validation and learning rate over its steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nicegui import ui

from lora_studio.runs import VALIDATION
from lora_studio.web.live import thinned
from lora_studio.web.pages.frame import heading, text
from lora_studio.web.studio import studio

_POINTS = 300
_EVERY = 6  # looks of the page: a chart is worth no more than every third second
_COLOURS = {"loss": "#3f86c6", "validation": "#c8772b", "learning rate": "#8b8b8b"}


class CourseChart:
    """Drawn again every few seconds, and only when there is something new."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._version: tuple[int, int] | None = None
        self._looks = 0
        with ui.element("section").classes("panel"):
            heading("Course", level=2)
            self._none = text("No step is done yet.").classes("soft")
            self._chart = ui.echart(_options([], [])).classes("chart")
            self._chart.props('role=img aria-label="Loss, validation and learning rate over the steps"')
        self._chart.set_visibility(False)
        self.look()

    def look(self) -> None:
        """Show what was measured since."""
        self._looks += 1
        live = studio().live
        metrics, validation = live.rows(self._folder), live.rows(self._folder, VALIDATION)
        version = (metrics.version, validation.version)
        if version == self._version or (self._looks % _EVERY != 0 and self._version is not None):
            return
        self._version = version
        rows = metrics.rows
        self._none.set_visibility(not rows)
        self._chart.set_visibility(bool(rows))
        if rows:
            self._chart.options.update(_options(rows, validation.rows))
            self._chart.update()


def _points(rows: list[dict[str, Any]], name: str) -> list[list[float]]:
    found = [(float(row["step"]), row[name]) for row in rows if isinstance(row.get(name), int | float)]
    steps = thinned([step for step, _ in found], _POINTS)
    values = thinned([float(value) for _, value in found], _POINTS)
    return [[round(step, 1), value] for step, value in zip(steps, values, strict=True)]


def _options(rows: list[dict[str, Any]], validation: list[dict[str, Any]]) -> dict[str, Any]:
    """Two axes: the losses to the left, the rate to the right."""
    series = {
        "loss": (_points(rows, "loss"), 0),
        "validation": (_points(validation, "loss"), 0),
        "learning rate": (_points(rows, "learning_rate"), 1),
    }
    label = {"color": "#8b8b8b"}
    line = {"splitLine": {"lineStyle": {"color": "rgba(128,128,128,0.25)", "width": 1}}, "axisLabel": label}
    return {
        "animation": False,
        "grid": {"left": 52, "right": 60, "top": 34, "bottom": 28},
        "legend": {"top": 0, "left": 0, "textStyle": label, "itemHeight": 8},
        "tooltip": {"trigger": "axis"},
        "xAxis": {"type": "value", "max": "dataMax", "axisLabel": label, "splitLine": {"show": False}},
        "yAxis": [
            {"type": "value", "scale": True, **line},
            {"type": "value", "axisLabel": label, "show": True},
        ],
        "series": [
            {
                "name": name,
                "type": "line",
                "data": points,
                "yAxisIndex": axis,
                "showSymbol": name == "validation",
                "symbolSize": 6,
                "lineStyle": {"width": 1.5, "type": "dashed" if name == "learning rate" else "solid"},
                "itemStyle": {"color": _COLOURS[name]},
            }
            for name, (points, axis) in series.items()
            if points
        ],
    }
