"""The course of a run: loss, validation and learning rate over its steps."""

from __future__ import annotations

import json
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from nicegui import ui

from lora_studio.runs import VALIDATION
from lora_studio.web.curves import Point
from lora_studio.web.pages.frame import heading, text
from lora_studio.web.studio import studio

SECONDS_APART = 1.0
_COLOURS = {"loss": "#3f86c6", "validation": "#c8772b", "learning rate": "#8b8b8b"}


class CourseChart:
    """Drawn again when there is something new, at most once a second while the run is at work.

    Drawing takes a browser without a GPU some milliseconds, of the cores on which the run may be. What is new
    goes to the chart itself: an element that is updated has NiceGUI draw the page's whole tree anew.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._version, self._drawn = (0, 0), 0.0
        with ui.element("section").classes("panel"):
            heading("Course", level=2)
            self._none = text("No step is done yet.").classes("soft")
            self._chart = ui.echart(_options()).classes("chart")
            self._chart.props('role=img aria-label="Loss, validation and learning rate over the steps"')
        self._chart.set_visibility(False)

    def show(self, version: tuple[int, int], *, at_work: bool) -> None:
        """What was measured since."""
        now = time.monotonic()
        if version == self._version or (at_work and now < self._drawn + SECONDS_APART):
            return
        self._version, self._drawn = version, now
        series = series_of(self._folder, version)
        if self._chart.visible and series != "[]":
            told = f"{{series: {series}}}", "{lazyUpdate: true}"
            self._chart.run_chart_method(":setOption", *told)
            return
        self._none.set_visibility(series == "[]")
        self._chart.set_visibility(series != "[]")
        self._chart.options[":series"] = series  # one text: NiceGUI would look at each of a thousand numbers


@lru_cache(maxsize=8)
def series_of(folder: Path, version: tuple[int, int]) -> str:
    """The curves of a run as JSON, for all pages that show it. `version`: of the measurements."""
    live = studio().live
    curves = {
        "loss": live.curve(folder, "loss"),
        "validation": live.curve(folder, "loss", VALIDATION),
        "learning rate": live.curve(folder, "learning_rate"),
    }
    return json.dumps([_line(name, points) for name, points in curves.items() if points])


def _line(name: str, points: list[Point]) -> dict[str, Any]:
    return {
        "name": name,
        "type": "line",
        "data": [[round(step, 1), float(f"{value:.5g}")] for step, value in points],
        "yAxisIndex": int(name == "learning rate"),
        "showSymbol": name == "validation",
        "symbolSize": 6,
        "lineStyle": {"width": 1.5, "type": "dashed" if name == "learning rate" else "solid"},
        "itemStyle": {"color": _COLOURS[name]},
    }


def _options() -> dict[str, Any]:
    """Two axes: the losses to the left, the rate to the right."""
    label = {"color": "#8b8b8b"}
    line = {"splitLine": {"lineStyle": {"color": "rgba(128,128,128,0.25)", "width": 1}}, "axisLabel": label}
    return {
        "animation": False,
        "grid": {"left": 52, "right": 60, "top": 34, "bottom": 28},
        "legend": {"top": 0, "left": 0, "textStyle": label, "itemHeight": 8},
        "tooltip": {"trigger": "axis"},
        "xAxis": {
            **{"type": "value", "max": "dataMax", "splitLine": {"show": False}},
            "axisLabel": label | {"showMaxLabel": False},  # the last of the steps is no round number
        },
        "yAxis": [
            {"type": "value", "scale": True, **line},
            {"type": "value", "axisLabel": label, "splitLine": {"show": False}},
        ],
        ":series": "[]",
    }
