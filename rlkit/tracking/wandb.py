"""Weights & Biases: a mirror of metrics.jsonl, with a table of responses; and a comparison's files as a run."""

from __future__ import annotations

import csv
import netrc
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rlkit import distribution, registry
from rlkit.config import Section
from rlkit.errors import ConfigError
from rlkit.scoring.noise import noise_label
from rlkit.tracking import RunInfo

UPLOADING_S = 240.0
"""That the end of a run waits for what the server does not have yet."""


class WandbConfig(Section):
    project: str | None = None
    """None: WANDB_PROJECT, else rlkit."""
    entity: str | None = None
    """None: WANDB_ENTITY, else the key's own."""
    group: str | None = None
    """Runs of one group differ by their seed; None: WANDB_RUN_GROUP, else algorithm, model and data, so that the
    workspace, grouped, lays algorithms over each other. `rlkit sweep` puts its runs into a group of the sweep's name.
    """
    tags: list[str] = []
    """Besides algorithm, model, data, noise and seed; none: those of WANDB_TAGS."""


@registry.tracker("wandb")
def wandb(config: WandbConfig, run: RunInfo) -> WandbTracker:
    """Weights & Biases; offline where there is no key, to be uploaded later with `wandb sync`.

    Where the config is silent, wandb's own variables count: WANDB_PROJECT, WANDB_ENTITY, WANDB_RUN_GROUP, WANDB_TAGS,
    WANDB_NAME, WANDB_MODE. A run's own `name` is that of its folder.
    """
    return WandbTracker(config, run)


class WandbTracker:
    def __init__(self, config: WandbConfig, run: RunInfo) -> None:
        seed, noise = run.config["seed"], noise_label(run.config["noise"])
        self.run = _begin(
            config,
            run.folder,
            name=os.environ.get("WANDB_NAME") or run.name,
            group=config.group or os.environ.get("WANDB_RUN_GROUP") or f"{run.algo}-{run.model}-{run.data}",
            tags=(run.algo, run.model, run.data, f"noise={noise}", f"seed={seed}", *_tags_of_environment(config)),
            # Flat: the workspace groups and filters by such keys, and cannot by a list of noises.
            config={**run.config, "algorithm": run.algo, "noise": noise, "seed": seed},
        )
        self.run.define_metric("step", hidden=True)
        self.run.define_metric("*", step_metric="step")
        self.table = _package().Table

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        # wandb's own counter never goes back: steps made again after a resume are not drawn twice.
        self.run.log({"step": step, **metrics}, step=step)

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        columns = ["step", "prompt", "response", "reward", "answer"]
        table = self.table(columns=columns, data=[[step, *(row[name] for name in columns[1:])] for row in rows])
        self.run.log({"step": step, "samples": table}, step=step)

    def close(self) -> None:
        _finish(self.run)


def log_comparison(folder: Path, options: WandbConfig, group: str) -> None:
    """Log the files of a comparison, CSV tables, PNG pictures and HTML pages, as one run beside the others of `group`.

    `folder`: where `rlkit compare` has written them. Logged again, they go into the same run. Raises ConfigError where
    there are none, and for a key that wandb refuses.
    """
    wandb = _package()
    filled = [file for file in sorted(folder.glob("*.csv")) if file.stat().st_size]
    tables = {f"tables/{file.stem}": wandb.Table(*_read_csv(file)) for file in filled}
    pictures = {f"pictures/{file.stem}": wandb.Image(str(file)) for file in sorted(folder.glob("*.png"))}
    # Not injected: it would fetch a style sheet, and the page has its own.
    pages = {f"pages/{file.stem}": wandb.Html(str(file), inject=False) for file in sorted(folder.glob("*.html"))}
    if not (tables or pictures or pages):
        raise ConfigError(
            f"{folder} holds no comparison (no CSV, PNG or HTML file): make it with `rlkit compare` first"
        )
    name = f"{group} comparison"
    run = _begin(options, folder, name=name, group=group, job_type="comparison", tags=("comparison",), config={})
    run.log({**tables, **pictures, **pages})
    _finish(run)


def _finish(run: Any) -> None:
    try:
        run.finish()
    except TimeoutError:
        warnings.warn(
            f"wandb: not all could be uploaded; `wandb sync --include-online {run.settings.sync_dir}` uploads it",
            stacklevel=3,
        )


def _read_csv(file: Path) -> tuple[list[str], list[list[Any]]]:
    """Column names and rows; columns that hold nothing but numbers are numbers, and what is empty is None."""
    with file.open(newline="") as lines:
        names, *rows = csv.reader(lines)
    columns = [_numbers(column) for column in zip(*rows, strict=True)]
    return names, [list(row) for row in zip(*columns, strict=True)]


def _numbers(column: Sequence[str]) -> list[Any]:
    cells = [cell or None for cell in column]
    try:
        return [None if cell is None else float(cell) for cell in cells]
    except ValueError:
        return cells


def _package() -> Any:
    """wandb itself. ConfigError where it is not installed."""
    distribution.check_extra("tracker wandb", "wandb")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else its own faults go to its makers, offline too
    import wandb

    return wandb


def _begin(
    options: WandbConfig,
    folder: Path,
    *,
    name: str,
    group: str,
    tags: Iterable[str],
    config: Mapping[str, Any],
    job_type: str | None = None,
) -> Any:
    """A run of wandb's, with its files in `folder`; where one has begun there, it goes on under that one's id."""
    wandb = _package()
    mode = os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
    id_file = folder / "wandb-id"
    known = id_file.read_text().strip() if id_file.exists() else None
    # An agent of wandb's has settled where the run belongs; its own id comes by the environment.
    # wandb reads its variables once a process, and they may have been set since.
    entity = options.entity or os.environ.get("WANDB_ENTITY")
    place = {} if os.environ.get("WANDB_SWEEP_ID") else {"project": project(options), "entity": entity}
    settings = wandb.Settings(silent=True, console="off", finish_timeout=UPLOADING_S, finish_timeout_raises=True)

    def begin(mode: str) -> Any:
        return wandb.init(
            **place,
            group=_cut(group, 128),
            tags=sorted({_cut(tag, 64) for tag in (*tags, *options.tags)}),
            name=_cut(name, 128),
            job_type=job_type,
            id=known,
            resume="allow" if known and mode == "online" else None,
            config=dict(config),
            dir=str(folder),
            mode=mode,
            settings=settings,
        )

    why = " (WANDB_MODE)" if os.environ.get("WANDB_MODE") else " (no key: `wandb login` makes one known)"
    try:
        run = begin(mode)
    except wandb.Error as error:
        # A server that is away may come back, and training need not wait for it; one that says no will not.
        if not (mode == "online" and "timed out" in str(error).lower()):
            raise ConfigError(f"tracker wandb: {error}. WANDB_MODE=offline runs without the server") from error
        mode, why = "offline", f" (the server does not answer: {str(error).splitlines()[0]})"
        run = begin(mode)
    id_file.write_text(run.id + "\n")
    if mode == "offline":
        print(f"wandb: offline{why}; upload with `wandb sync {run.settings.sync_dir}`", flush=True)
    elif run.url:
        print(f"wandb: {run.url}", flush=True)
    print(f"wandb: {'disabled (WANDB_MODE)' if mode == 'disabled' else _place(run)}", flush=True)
    return run


def project(options: WandbConfig) -> str:
    """As the config has it, else the environment."""
    return options.project or os.environ.get("WANDB_PROJECT") or "rlkit"


def _tags_of_environment(options: WandbConfig) -> list[str]:
    """Those of WANDB_TAGS, with commas between, where the config has none."""
    named = [] if options.tags else os.environ.get("WANDB_TAGS", "").split(",")
    return [tag.strip() for tag in named if tag.strip()]


def _place(run: Any) -> str:
    """Where a run of wandb's stands, and which variables of the environment had a say in it."""
    parts = {"entity": run.settings.entity, "project": run.project, "group": run.group, "run": run.name}
    of = {"entity": "WANDB_ENTITY", "project": "WANDB_PROJECT", "group": "WANDB_RUN_GROUP", "run": "WANDB_NAME"}
    said = ", ".join(
        f"{what} {value}" + (f" ({of[what]})" if value == os.environ.get(of[what]) else "")
        for what, value in parts.items()
        if value
    )
    tags = [tag.strip() for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag.strip()]
    found = [tag for tag in tags if tag in (run.tags or ())]
    return said + (f", tags {', '.join(found)} (WANDB_TAGS)" if found else "")


def has_key() -> bool:
    """Whether a key for the server (WANDB_BASE_URL, else wandb.ai) is in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    places = [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]
    for file in (Path(place).expanduser() for place in places if place):
        if file.is_file():
            try:
                return netrc.netrc(file).authenticators(host) is not None
            except netrc.NetrcParseError as error:
                raise ConfigError(f"{file} cannot be read: {error}. Mend it, or set WANDB_API_KEY") from error
    return False


def _cut(text: str, limit: int) -> str:
    """wandb refuses longer names."""
    return text[:limit]
