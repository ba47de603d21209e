"""Build the source archive, and the wheel from it: python tools/package.py [FOLDER], by default dist/.

Nothing is downloaded: setuptools, which builds, is in the environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def build(folder: Path) -> tuple[Path, Path]:
    """The archive and the wheel. The wheel comes from the archive, so that neither lacks what only the checkout has."""
    from setuptools import build_meta

    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        archive = folder / build_meta.build_sdist(str(folder))
    finally:
        os.chdir(before)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-cache-dir"]
    subprocess.run([*pip, "-w", str(folder), str(archive)], check=True)
    stem = archive.name.removesuffix(".tar.gz")
    return archive, folder / f"{stem}-py3-none-any.whl"


if __name__ == "__main__":
    for path in build(Path(sys.argv[1] if len(sys.argv) > 1 else "dist")):
        print(path)
