"""Many runs side by side: who is ahead, whether it means anything, and where the comparison is not fair."""

from __future__ import annotations

from pathlib import Path

from rlkit.comparison.csv_files import write_tables
from rlkit.comparison.page import write_page
from rlkit.comparison.picture import draw
from rlkit.comparison.summary import Comparison, compare
from rlkit.comparison.terminal import text

__all__ = ["Comparison", "compare", "text", "write"]


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """comparison.html, comparison.png, arms.csv, pairs.csv and seeds.csv; returns their paths. The same comparison
    gives the same files. OSError where they cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        write_page(comparison, folder / "comparison.html"),
        draw(comparison, folder / "comparison.png"),
        *write_tables(comparison, folder),
    ]
