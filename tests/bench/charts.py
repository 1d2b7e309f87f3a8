"""Charts of a report, drawn with matplotlib."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.bench.findings import Chart, Report

SIZE_INCHES = (8, 4)


def draw(report: Report, folder: Path, stem: str) -> list[Path]:
    """One SVG file for each chart of the report. The same data make the same file."""
    folder.mkdir(exist_ok=True)
    mpl.rcParams.update({"svg.hashsalt": "podmgr", "svg.fonttype": "none", "font.size": 9})
    paths = []
    for chart in report.findings.charts:
        path = folder / f"{stem}-{chart.name}.svg"
        figure = Figure(figsize=SIZE_INCHES, layout="constrained")
        _plot(chart, figure.add_subplot())
        figure.savefig(path, metadata={"Date": None})
        paths.append(path)
    return paths


def _plot(chart: Chart, axes: Axes) -> None:
    is_bars = any(isinstance(x, str) for series in chart.series for x in series.x)
    for number, series in enumerate(chart.series):
        errors = None
        if series.low:
            errors = [
                [y - low for y, low in zip(series.y, series.low, strict=True)],
                [high - y for y, high in zip(series.y, series.high, strict=True)],
            ]
        if is_bars:
            width = 0.8 / len(chart.series)
            places = [
                place + (number - (len(chart.series) - 1) / 2) * width for place in range(len(series.x))
            ]
            axes.bar(places, series.y, width, label=series.name, yerr=errors, capsize=2)
            axes.set_xticks(range(len(series.x)), [str(x) for x in series.x])
        else:
            axes.errorbar(
                list(map(float, series.x)),
                series.y,
                yerr=errors,
                label=series.name,
                marker=".",
                linestyle="-" if chart.has_lines else "none",
                capsize=2,
            )
    for goal in chart.goals:
        axes.axhline(goal, color="black", linestyle="--", linewidth=0.8)
    axes.set(title=chart.title, xlabel=chart.x_label, ylabel=chart.y_label)
    for is_log, scale, axis in (
        (chart.log_x, axes.set_xscale, axes.xaxis),
        (chart.log_y, axes.set_yscale, axes.yaxis),
    ):
        if is_log:
            scale("log")
            axis.set_major_formatter("{x:g}")
    axes.grid(visible=True, alpha=0.3)
    if len(chart.series) > 1:
        axes.legend()
