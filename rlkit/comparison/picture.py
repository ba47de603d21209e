"""The learning curves of a comparison as a picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkit.comparison.runs import condition_name
from rlkit.comparison.summary import ArmResult, Comparison
from rlkit.pages import PALETTE

if TYPE_CHECKING:
    from rlkit.pages.figure import Picture

WIDTH, HEIGHT = 4.4, 3.0
"""Of a panel, in inches."""
LETTER = 0.07
"""Width of one in the legend, in inches."""


def draw(comparison: Comparison, folder: Path) -> list[Path]:
    """Write comparison.png, .pdf and .svg; returns their paths."""
    from matplotlib import rc_context

    figure = picture(comparison)
    # Without dates and with ids that are not drawn anew, so that the same comparison gives the same files.
    with rc_context({"svg.hashsalt": "rlkit", "pdf.fonttype": 42}):
        for file, metadata in (("png", "Software"), ("pdf", "CreationDate"), ("svg", "Date")):
            figure.savefig(folder / f"comparison.{file}", dpi=130, metadata={metadata: None})
    return [folder / f"comparison.{file}" for file in ("png", "pdf", "svg")]


def picture(comparison: Comparison) -> Picture:
    """A row of panels for each metric that is compared, a column for each condition: means over seeds with bands."""
    from rlkit.pages.figure import Picture, drawn

    rows, columns = comparison.metrics, comparison.conditions
    width = max(7.5, WIDTH * len(columns))
    across = max(1, int(width / (0.9 + LETTER * max(map(len, comparison.arms)))))
    size = (width, HEIGHT * len(rows) + 0.25 * math.ceil(len(comparison.arms) / across))
    figure = Picture(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), len(columns), squeeze=False, sharey="row")
    named: dict[str, Any] = {}
    for row, metric in enumerate(rows):
        for column, condition in enumerate(columns):
            axes = grid[row][column]
            results = comparison.of(condition, metric) if metric in comparison.compared[condition] else []
            if not results:
                axes.set_axis_off()
                continue
            for result in (each for each in results if each.seeds):
                named[result.arm] = _curve(axes, result, comparison.arms.index(result.arm))
            axes.set_title(drawn(f"{metric}, {condition_name(condition)}"), loc="left", fontsize=9)
            _finish(axes, results[0].threshold)
    arms = [arm for arm in comparison.arms if arm in named]
    figure.supxlabel("lines: means over seeds; bands: 95 % bootstrap intervals; dotted: the threshold", fontsize=8)
    names = [drawn(arm) for arm in arms]
    figure.legend(
        [named[arm] for arm in arms], names, loc="outside upper left", ncols=across, frameon=False, fontsize=9
    )
    return figure


def _curve(axes: Any, result: ArmResult, number: int) -> Any:
    color, curve = PALETTE[number % len(PALETTE)][0], result.curve
    marks = {"marker": "o", "markersize": 3.5} if len(curve.steps) < 25 else {}
    dash = "-" if number < len(PALETTE) else "--"
    (line,) = axes.plot(curve.steps, curve.mean, color=color, linewidth=1.6, linestyle=dash, **marks)
    if curve.low is not None and curve.high is not None:
        axes.fill_between(curve.steps, curve.low, curve.high, color=color, alpha=0.15, linewidth=0)
    return line


def _finish(axes: Any, threshold: float | None) -> None:
    from matplotlib.ticker import MaxNLocator

    if threshold is not None:
        axes.axhline(threshold, color="#59616a", linewidth=0.8, linestyle=(0, (2, 3)))
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8, labelleft=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
