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

__all__ = ["Comparison", "compare", "is_one", "text", "write"]

FILES = (
    "comparison.html",
    "comparison.png",
    "comparison.pdf",
    "comparison.svg",
    "arms.csv",
    "pairs.csv",
    "seeds.csv",
    "arms.tex",
    "pairs.tex",
)
"""All that is written of a comparison."""


def is_one(folder: Path) -> bool:
    """Whether a comparison has been written there."""
    return bool(runs_of(folder))


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """Write `FILES`; returns their paths. The same comparison gives the same files, and those of an earlier one of the
    same runs, or of some of them, make way.

    OSError where they cannot be written; ConfigError where there is another comparison, of runs that are not all among
    these, or a file of one of these names that no comparison has written."""
    # A sweep's own folder may have been moved since, and its runs with it.
    own = folder.resolve().parent in {path.resolve() for path in comparison.paths}
    others = sorted(runs_of(folder) - {str(run.folder.resolve()) for run in comparison.runs})
    if others and not own:
        raise ConfigError(
            f"{folder} holds a comparison of other runs ({', '.join(others)}), which would be lost: choose another "
            "folder with --out, or delete that one"
        )
    foreign = [] if is_one(folder) else [name for name in FILES if (folder / name).exists()]
    if foreign:
        raise ConfigError(
            f"{folder} holds {', '.join(foreign)}, which no comparison of rlkit's has written there and which would be "
            "lost: choose another folder with --out, or delete what is there"
        )
    folder.mkdir(parents=True, exist_ok=True)
    # First: what they say of the runs makes the folder a comparison's, should the others fail.
    tables = write_tables(comparison, folder)
    return [
        write_page(comparison, folder / "comparison.html"),
        *draw(comparison, folder),
        *tables,
        *write_latex(comparison, folder),
    ]
