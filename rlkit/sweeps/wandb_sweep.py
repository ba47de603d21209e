"""A sweep in wandb: its runs in a group, its comparison beside them; and its definition for wandb's own agents."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from rlkit import config as configs
from rlkit.config import PluginRef
from rlkit.errors import ConfigError
from rlkit.records.folder import RunFolder
from rlkit.sweeps.spec import SweepConfig, arms
from rlkit.sweeps.sweep_folder import SweepFolder


def grouped(ref: PluginRef, group: str) -> PluginRef:
    """wandb lays the runs of a group over each other; other trackers stay as they are."""
    if ref.kind != "wandb" or ref.options.get("group") is not None:
        return ref
    return PluginRef(kind=ref.kind, **{**ref.options, "group": group})


def log_comparison(folder: Path) -> None:
    """Log what `rlkit compare` wrote into the sweep's folder as a run of the group, where its runs went to wandb.

    Raises ConfigError where no comparison is there, and for what wandb refuses.
    """
    from rlkit.tracking import wandb as mirror

    sweep = SweepFolder.open(folder)
    begun = next(filter(RunFolder.is_one, map(sweep.run_folder, sweep.runs)), None)
    for ref in RunFolder(begun).read_config().trackers if begun else []:
        if ref.kind == "wandb":
            options = mirror.WandbConfig(**ref.options)
            mirror.log_comparison(folder / "comparison", options, options.group or folder.name)


def write_definition(spec: SweepConfig, file: Path, folder: Path) -> list[Path]:
    """Write the definition of the runs that `rlkit sweep` would make, for `wandb sweep FILE`; returns what was written.

    `folder`: where the runs go, by its name also their group. A base that is no preset is written beside the file.
    ConfigError for a sweep that is no grid, for settings that cannot be, and where a file is there already.
    """
    base, written = spec.base, [file]
    if not isinstance(base, str):
        written.append(file.with_suffix(".base.yaml").resolve())
        base = str(written[-1])
    content = definition(spec, folder, base)
    for path in written:
        if path.exists():
            raise ConfigError(f"{path} exists already: choose another name, or remove it first")
    try:
        for path, data in zip(written, (content, spec.base), strict=False):
            path.write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120))
    except OSError as error:
        raise ConfigError(f"cannot write {error.filename}: {error.strerror}") from error
    return written


def definition(spec: SweepConfig, folder: Path, base: str) -> dict[str, Any]:
    """What wandb's agents start is `rlkit run BASE KEY=VALUE...`, with the config that the sweep's arms have."""
    _check(spec)
    # All of them, so that none is refused by an agent that could be refused now.
    runs = [(arm, arm.config(spec, seed, folder, "run", {})) for arm in arms(spec) for seed in spec.seeds]
    trackers = [grouped(ref, folder.name) for ref in runs[0][1].trackers]
    if not any(ref.kind == "wandb" for ref in trackers):
        trackers.append(grouped(configs.resolve_ref("trackers", PluginRef(kind="wandb"), "trackers"), folder.name))
    from rlkit.tracking import wandb as mirror

    ours = next(ref.options for ref in trackers if ref.kind == "wandb")
    noises = {arm.noise: [ref.model_dump() for ref in config.noise] for arm, config in runs}
    own = next(iter(spec.algos.values()))
    shared = {**spec.set, **own, "trackers": [ref.model_dump() for ref in trackers], "out": str(folder)}
    values: dict[str, list[Any]] = {
        "algo.kind": [*spec.algos],
        "noise": [*noises.values()],
        "seed": [*spec.seeds],
        **spec.grid,
    }
    return {
        "name": folder.name,
        "project": mirror.project(mirror.WandbConfig(**ours)),
        **({"entity": ours["entity"]} if ours["entity"] else {}),
        "method": "grid",
        "program": "rlkit",
        "command": [
            *("${env}", "${program}", "run", base),
            *(f"{key}={json.dumps(value)}" for key, value in shared.items()),
            "${args_no_hyphens}",
        ],
        "parameters": {key: {"values": [_parameter(value) for value in each]} for key, each in values.items()},
    }


def _check(spec: SweepConfig) -> None:
    """ConfigError where the sweep is more than a grid: wandb tries every value of a setting with every other's."""
    cannot = [
        ("settings of an algorithm's own", len(spec.algos) > 1 and any(spec.algos.values())),
        ("zip", spec.zip),
        ("list", spec.written != [{}]),
        ("tune", spec.tune),
    ]
    if said := [name for name, there in cannot if there]:
        raise ConfigError(
            f"--wandb-sweep: a wandb sweep is a grid, every value with every other, and cannot say {', '.join(said)}. "
            "Leave them out, or run the sweep here, with the tracker wandb: -s 'trackers=[wandb]'"
        )
    if "trackers" in spec.grid:
        raise ConfigError("--wandb-sweep: trackers cannot be a grid's: a wandb sweep has its runs in wandb")


def _parameter(value: Any) -> Any:
    """wandb's agent writes str(value), and `rlkit run` reads that as YAML."""
    plain = re.fullmatch(r"[\w.-]+", value) and yaml.safe_load(value) == value if isinstance(value, str) else None
    return value if plain or isinstance(value, int | float) else json.dumps(value)
