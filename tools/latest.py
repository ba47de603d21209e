"""Install the newest of everything into a scratch environment, run the promises there, and say what has drifted.

    python tools/latest.py                      # the quick promises; some 5 GB in a temporary folder
    python tools/latest.py --all                # the slow ones too
    python tools/latest.py --folder env -k laws # keep the environment, and run what matches

Exit code 0: all passed; 1: some failed; 2: the newest versions do not install together. What is newer than in
rlkit/tested.toml and passes `--all` may go there and into requirements/.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TORCH_INDEX = os.environ.get("TORCH_INDEX", "https://download.pytorch.org/whl/cpu")


def drift(tested: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """A line a package: what was tested, what is there now."""
    lines = []
    for name, before in tested.items():
        now = found.get(name, "not installed")
        word = "as tested" if now.partition("+")[0] == before else f"tested: {before}"
        lines.append(f"{name:<14} {now:<16} {word}")
    return lines


def failures(report: Path) -> list[str]:
    """The tests of a JUnit file that failed or could not be run, each with the first line of why."""
    failed = []
    for case in ElementTree.parse(report).iter("testcase"):
        for kind in ("failure", "error"):
            if (found := case.find(kind)) is not None:
                why = (found.get("message") or "").strip().partition("\n")[0]
                failed.append(f"{case.get('classname')}::{case.get('name')}: {why}")
    return failed


def install(folder: Path, gpu: bool) -> Path:
    """The environment's interpreter. CalledProcessError where the newest versions do not go together."""
    venv.create(folder, with_pip=True, clear=True)
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip", "install", "-q", "--upgrade", "--upgrade-strategy", "eager"]
    extras = "wandb,tensorboard,dev" + (",vllm" if gpu else "")
    index = [] if gpu else ["--extra-index-url", TORCH_INDEX]
    # An index that cannot be reached is asked for each package: once will do.
    environment = {**os.environ, "PIP_RETRIES": "0"}
    subprocess.run([*pip, "pip", "setuptools", "wheel"], check=True, env=environment)
    subprocess.run([*pip, *index, "-e", f"{ROOT}[{extras}]"], check=True, env=environment)
    return python


def versions(python: Path) -> dict[str, str]:
    listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], check=True, capture_output=True, text=True)
    return {each["name"].lower().replace("_", "-"): each["version"] for each in json.loads(listed.stdout)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="make the environment here, and keep it")
    parser.add_argument("--all", action="store_true", help="the slow promises too")
    parser.add_argument("-k", default="", metavar="WORDS", help="the promises that match, as pytest's -k")
    given = parser.parse_args()
    gpu = shutil.which("nvidia-smi") is not None
    with tempfile.TemporaryDirectory() as scratch:
        folder, report = given.folder or Path(scratch, "env"), Path(scratch, "report.xml")
        try:
            python = install(folder.resolve(), gpu)
        except subprocess.CalledProcessError:
            print("the newest versions do not install together: pip says why above", file=sys.stderr)
            return 2
        print(
            "\n".join(drift(tomllib.loads((ROOT / "rlkit" / "tested.toml").read_text()), versions(python))), flush=True
        )
        if not gpu:
            print(
                "vllm is left out: there is no GPU, and its builds for the CPU are not on the Python index", flush=True
            )
        chosen = ([] if given.all else ["-m", "not slow"]) + (["-k", given.k] if given.k else [])
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [python, "-m", "pytest", "tests/promises", f"--junitxml={report}", *chosen]
        done = subprocess.run(command, cwd=ROOT, env={"OMP_NUM_THREADS": "1", **environment})
        failed = failures(report) if report.is_file() else []
    print("\n".join(["", *failed, f"{len(failed)} promises do not hold with the newest versions"]) if failed else "")
    if done.returncode and not failed:
        print("pytest itself failed: see above", file=sys.stderr)
    elif not failed:
        print("all promises that were run hold with the newest versions")
    return 1 if done.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
