"""rlkit.compare: runs side by side, as tables and a picture."""

from __future__ import annotations

import html
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlkit import comparison as comparisons
from rlkit.api.frames import frame_of
from rlkit.api.messages import speaking_python
from rlkit.comparison.csv_files import tables
from rlkit.errors import ConfigError

if TYPE_CHECKING:
    from os import PathLike

    from pandas import DataFrame

    from rlkit.pages.figure import Picture


class Comparison:
    """Runs side by side: who is ahead, by how much, whether it means anything, and where it is not fair.

    `rlkit.compare` makes one. `print` it for what `rlkit compare` prints; in a notebook it shows itself. Tables are
    pandas DataFrames, or pyarrow's where pandas is not installed.

    Args:
        comparison: what `rlkit.comparison.compare` found.

    Example:
        >>> compared = rlkit.compare("runs/vimpo-s-seed0", "runs/grpo-s-seed0")
        >>> compared.arms[["arm", "metric", "final"]]
    """

    def __init__(self, comparison: comparisons.Comparison) -> None:
        self._comparison = comparison
        self._tables = tables(comparison)

    @property
    def arms(self) -> DataFrame:
        """A row for each condition, metric and arm: final value, mean over the middle half of the seeds, area under the
        curve, each with its interval, and what it took to reach the threshold."""
        return frame_of(self._tables["arms"])

    @property
    def pairs(self) -> DataFrame:
        """A row for each pair of arms: the difference with its interval, p, p after Holm, and the verdict in words."""
        return frame_of(self._tables["pairs"], ("condition", "metric", "statistic", "a", "b", "difference", "verdict"))

    @property
    def seeds(self) -> DataFrame:
        """A row for each run and metric."""
        return frame_of(self._tables["seeds"])

    def plot(self) -> Picture:
        """The learning curves, means over seeds with bands, as a matplotlib figure, which a notebook shows.

        Example:
            >>> compared.plot().savefig("comparison.pdf")
        """
        from rlkit.comparison.picture import picture

        return picture(self._comparison)

    def write(self, folder: str | PathLike[str] = "comparison") -> list[Path]:
        """Write the page, the picture and the tables.

        Args:
            folder: where they go.

        Returns:
            Their paths.

        Raises:
            ConfigError: where a comparison of other runs is there.
            OSError: where they cannot be written.

        Example:
            >>> compared.write("vimpo-against-grpo")
        """
        with speaking_python():
            return comparisons.write(self._comparison, Path(folder))

    def __str__(self) -> str:
        from rich.console import Console

        terminal = Console(file=io.StringIO(), highlight=False, width=120)
        terminal.print(comparisons.text(self._comparison))
        printed: str = terminal.file.getvalue()  # type: ignore[attr-defined]
        return printed.strip("\n")

    def __repr__(self) -> str:
        found = self._comparison
        return f"<rlkit.Comparison of {len(found.runs)} runs: {', '.join(found.arms)}>"

    def _repr_html_(self) -> str:
        from rlkit.pages.figure import as_html

        return as_html(self.plot(), "Learning curves") + f"<pre>{html.escape(str(self))}</pre>"


def compare(
    *runs: str | PathLike[str],
    metrics: str | Sequence[str] | None = None,
    threshold: float | None = None,
) -> Comparison:
    """Compare runs, or the runs of a sweep: what `rlkit compare` does, without writing anything.

    Args:
        runs: Run objects, a Sweep, or paths of their folders.
        metrics: what to compare, in place of clean reward and pass rates.
        threshold: of each metric, in its own unit: what it takes until it is reached is told.

    Returns:
        The `Comparison`: `arms`, `pairs` and `seeds` as tables, `plot()`, `write()`.

    Raises:
        ConfigError: for folders that hold no run, for a metric that none has, and where they have none in common.

    Example:
        >>> a = rlkit.train("embedded_xs", algo="vimpo", steps=40)
        >>> b = rlkit.train("embedded_xs", algo="grpo", steps=40)
        >>> print(rlkit.compare(a, b))
    """
    wanted = [metrics] if isinstance(metrics, str) else metrics
    with speaking_python():
        if not runs:
            raise ConfigError("nothing to compare: give runs, a sweep, or their folders")
        paths = [Path(os.fspath(run)) for run in runs]
        return Comparison(comparisons.compare(paths, metrics=wanted, threshold=threshold))
