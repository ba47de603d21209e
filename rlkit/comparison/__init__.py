"""Many runs side by side: who is ahead, whether it means anything, and where the comparison is not fair."""

from __future__ import annotations

from pathlib import Path

from rlkit.comparison.csv_files import runs_of, write_tables
from rlkit.comparison.latex import write_latex
from rlkit.comparison.page import write_page
from rlkit.comparison.picture import draw
from rlkit.comparison.summary import Comparison, compare
from rlkit.comparison.terminal import text
from rlkit.errors import ConfigError

__all__ = ["Comparison", "compare", "text", "write"]


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """comparison.html, comparison.png, .pdf and .svg, arms and pairs as .csv and .tex, seeds.csv; returns their paths.
    The same comparison gives the same files. OSError where they cannot be written; ConfigError where another
    comparison is there, of runs that are not all among these."""
    # A sweep's own folder may have been moved since, and its runs with it.
    own = folder.resolve().parent in {path.resolve() for path in comparison.paths}
    others = sorted(runs_of(folder) - {str(run.folder.resolve()) for run in comparison.runs})
    if others and not own:
        raise ConfigError(
            f"{folder} holds a comparison of other runs ({', '.join(others)}), which would be lost: choose another "
            "folder with --out, or delete that one"
        )
    folder.mkdir(parents=True, exist_ok=True)
    return [
        write_page(comparison, folder / "comparison.html"),
        *draw(comparison, folder),
        *write_tables(comparison, folder),
        *write_latex(comparison, folder),
    ]
