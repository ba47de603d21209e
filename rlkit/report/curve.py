"""The learning curve of a run, as a picture and as text, from what metrics.jsonl says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkit.files import replace
from rlkit.records.metrics import Metrics, held_out_names, last_step, series
from rlkit.records.statistics import drawing_window, running_mean, tenths

if TYPE_CHECKING:
    from rlkit.pages.figure import Picture

PANELS = (
    ("response/length", "Response length", "tokens"),
    ("policy/kl", "KL to the reference", "nats a token"),
    ("policy/entropy", "Entropy", "nats a token"),
    ("sampler/gap_max", "Largest sampler gap", "nats"),
)
TRAIN, HELD_OUT = "#2a5f9e", "#c4561d"
BARS = "▁▂▃▄▅▆▇█"


def draw(metrics: Metrics, path: Path, title: str) -> None:
    """Write the picture to a file."""
    replace(path, lambda beside: picture(metrics, title).savefig(beside, dpi=150, format="png"))


def picture(metrics: Metrics, title: str) -> Picture:
    """Train reward and held-out pass rate over the steps, and below them what explains them.

    What the run has no numbers for is left out.
    """
    from matplotlib.ticker import MaxNLocator

    from rlkit.pages.figure import Picture, drawn

    panels = [panel for panel in PANELS if series(metrics, panel[0])[0]]
    figure = Picture(figsize=(9, 6.4 if panels else 4.2), layout="constrained")
    grid = figure.add_gridspec(2 if panels else 1, max(1, len(panels)), height_ratios=[2.4, 1] if panels else [1])
    top = figure.add_subplot(grid[0, :])
    below = [figure.add_subplot(grid[1, column]) for column in range(len(panels))]

    _draw_reward(top, metrics)
    top.set_title(drawn(title), loc="left", fontweight="bold")
    for axes, (name, panel, unit) in zip(below, panels, strict=True):
        steps, values = series(metrics, name)
        axes.plot(steps, values, color=TRAIN, linewidth=1.2)
        axes.set_title(panel, loc="left", fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.set_ylabel(unit, fontsize=8)
        axes.tick_params(labelsize=8)
        if name.startswith("sampler/"):
            _whole_decades(axes, [value for value in values if value > 0])
    for axes in (top, *below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(MaxNLocator(6 if axes in below else 10, integer=True))
    return figure


def _draw_reward(axes: Any, metrics: Metrics) -> None:
    from rlkit.pages.figure import drawn

    steps, rewards = series(metrics, "reward/mean")
    if steps:
        window = drawing_window(len(steps))
        label = f"train reward, mean of {window} steps" if window > 1 else "train reward"
        if window > 1:
            axes.plot(steps, rewards, color=TRAIN, alpha=0.3, linewidth=0.8)
        axes.plot(steps, running_mean(rewards, window), color=TRAIN, linewidth=2.2, label=label)
    for number, name in enumerate(held_out_names(metrics)):
        style = {"marker": "osD^v"[number % 5], "markersize": 8, "markeredgecolor": "white", "linestyle": "none"}
        axes.plot(
            *series(metrics, name),
            color=HELD_OUT,
            label=drawn(f"pass rate, {suite_of(name)}"),
            zorder=3,
            clip_on=False,
            **style,
        )
    axes.set_xlabel("step")
    axes.set_ylabel("reward, pass rate")
    low, high = axes.get_ylim()
    if low > -0.1 and high < 1.1:
        axes.set_ylim(0, 1.02)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="lower right")


def _whole_decades(axes: Any, values: Sequence[float]) -> None:
    if not values:
        return
    from matplotlib.ticker import NullFormatter

    axes.set_yscale("log")
    axes.set_ylim(10 ** math.floor(math.log10(min(values))), 10 ** (math.floor(math.log10(max(values))) + 1))
    axes.yaxis.set_minor_formatter(NullFormatter())


def text(metrics: Metrics) -> str:
    """The curve in a few lines: train reward per tenth of the run, and the held-out pass rates before and after."""
    lines = []
    steps, rewards = series(metrics, "reward/mean")
    if steps:
        means = tenths(steps, rewards, last_step(metrics))
        numbers = " ".join(f"{value:.2f}".replace("0.", ".", 1) for value in means)
        unit = ", by tenths" if len(means) < len(steps) else ""
        lines.append(f"train reward  {sparkline(means)}  {numbers}  (steps {steps[0]} to {steps[-1]}{unit})")
    for name in held_out_names(metrics):
        at, rates = series(metrics, name)
        if at:
            later = f" -> {rates[-1]:.3f} (step {at[-1]})" if len(at) > 1 else ""
            lines.append(f"pass rate     {sparkline(rates)}  {suite_of(name)}: {rates[0]:.3f} (step {at[0]}){later}")
    return "\n".join(lines)


def sparkline(values: Sequence[float]) -> str:
    """One bar a value, from the lowest to the highest of 0, 1 and the values."""
    low, high = min(0.0, *values), max(1.0, *values)
    return "".join(BARS[round((value - low) / (high - low) * (len(BARS) - 1))] for value in values)


def suite_of(name: str) -> str:
    """eval/heldout/mean@1 -> held-out mean@1."""
    return name.removeprefix("eval/").replace("heldout", "held-out").replace("/", " ")
