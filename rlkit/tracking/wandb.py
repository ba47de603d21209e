"""Weights & Biases: a mirror of metrics.jsonl, with a table of responses."""

from __future__ import annotations

import importlib.util
import netrc
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit

from rlkit import registry
from rlkit.config import Section
from rlkit.errors import ConfigError
from rlkit.tracking import RunInfo


class WandbConfig(Section):
    project: str = "rlkit"
    entity: str | None = None
    group: str | None = None
    """Runs of one group differ by their seed; None: algorithm, model and data, so that the workspace, grouped,
    lays algorithms over each other."""
    tags: list[str] = []
    """Besides algorithm, model and data."""


@registry.tracker("wandb")
def wandb(config: WandbConfig, run: RunInfo) -> WandbTracker:
    """Weights & Biases; offline where there is no key, to be uploaded later with `wandb sync`."""
    if importlib.util.find_spec("wandb") is None:
        raise ConfigError("tracker wandb: the package is not installed. Run: pip install 'rlkit[wandb]'")
    return WandbTracker(config, run)


class WandbTracker:
    def __init__(self, config: WandbConfig, run: RunInfo) -> None:
        import wandb

        mode = os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
        id_file = run.folder / "wandb-id"
        known = id_file.read_text().strip() if id_file.exists() else None
        try:
            self.run = wandb.init(
                project=config.project,
                entity=config.entity,
                group=config.group or _cut(f"{run.algo}-{run.model}-{run.data}", 128),
                tags=sorted({_cut(tag, 64) for tag in (run.algo, run.model, run.data, *config.tags)}),
                name=run.name,
                id=known,
                resume="allow" if known and mode == "online" else None,
                config=run.config,
                dir=str(run.folder),
                mode=cast(Literal["online", "offline", "disabled"], mode),
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.Error as error:
            raise ConfigError(f"tracker wandb: {error}. WANDB_MODE=offline runs without the server") from error
        id_file.write_text(self.run.id + "\n")
        self.run.define_metric("step", hidden=True)
        self.run.define_metric("*", step_metric="step")
        self.table = wandb.Table
        if mode == "offline":
            why = "" if "WANDB_MODE" in os.environ else " (no key: `wandb login` makes one known)"
            folder = Path(self.run.settings.sync_dir)
            print(f"wandb: offline{why}; upload with `wandb sync {folder}`", flush=True)
        elif self.run.url:
            print(f"wandb: {self.run.url}", flush=True)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        # wandb's own counter never goes back: steps made again after a resume are not drawn twice.
        self.run.log({"step": step, **metrics}, step=step)

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        columns = ["step", "prompt", "response", "reward", "answer"]
        table = self.table(columns=columns, data=[[step, *(row[name] for name in columns[1:])] for row in rows])
        self.run.log({"step": step, "samples": table}, step=step)

    def close(self) -> None:
        self.run.finish()


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
