"""Checkpoints on disk. One is complete or invisible: it is written into a hidden folder and renamed at the end.

checkpoints/step-00000040/
    model.json      what it is of: model path, parameter names and shapes, ranks, ZeRO stage, dtype, reference
    state.pt        the run's state
    policy/         DeepSpeed's state: weights, optimizer, updates made; critic/ likewise
    reference/      what a moving reference keeps, a file a rank under ZeRO-3, else one
    hf/             the policy as a Hugging Face folder; not there where it could not be written
    adapter/        its LoRA adapters alone, as peft has them; likewise
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch

from rlkit.engine import distributed
from rlkit.engine.deepspeed import Engine
from rlkit.engine.reference import Reference
from rlkit.engine.resharding import Layout
from rlkit.errors import ConfigError, RlkitError
from rlkit.records.checkpoints import ADAPTER, MODEL, complete, path_of
from rlkit.records.checkpoints import latest as latest


def save(
    folder: Path,
    step: int,
    engines: dict[str, Engine],
    run_state: dict[str, Any],
    keep: int,
    reference: Reference | None = None,
) -> Path:
    """Write `folder/step-N` and delete all but the newest `keep` checkpoints. Collective.

    `engines` are the trained ones by name, "policy" among them; `run_state` is made of plain data and tensors.
    The folder is on a disk that all ranks see. Where the Hugging Face folder cannot be written, the checkpoint is
    complete without it, and a warning says so: what was learnt does not hang on a copy of it.
    """
    done = path_of(folder, step)
    hidden = folder / f".{done.name}"
    if distributed.main_rank():
        for leftover in folder.glob(".step-*"):
            shutil.rmtree(leftover)
        hidden.mkdir(parents=True)
    distributed.barrier()
    for name, engine in engines.items():
        engine.save(hidden / name)
    if reference is not None:
        reference.save(hidden / "reference")
    if distributed.main_rank():
        torch.save(run_state, hidden / "state.pt")
        identity = {name: engine.identity for name, engine in engines.items()}
        of = {"engines": identity, "reference": _kind(reference)}
        (hidden / "model.json").write_text(json.dumps(of, indent=1))
    try:
        add_model(hidden, engines["policy"])
    except RlkitError as error:
        if distributed.main_rank():
            warnings.warn(
                f"checkpoint {done.name} can be resumed from, but has no model that other programs load: {error}. "
                f"When that is mended, `rlkit run --resume {folder.parent}` writes it",
                stacklevel=2,
            )
    distributed.barrier()
    if distributed.main_rank():
        if done.exists():
            _remove(done)
        hidden.rename(done)
        for old in complete(folder)[:-keep]:
            _remove(old)
    distributed.barrier()
    return done


def load(path: Path, engines: dict[str, Engine], reference: Reference | None = None) -> dict[str, Any]:
    """Load a checkpoint into engines that have made no update yet; returns the run's state. Collective.

    With another number of ranks, ZeRO stage or dtype than it was saved with, weights in float32 and AdamW's moments are
    those saved, and a warning says so; else the run goes on bit for bit. The checkpoint stays as it is. Raises
    ConfigError for a checkpoint of another model, before anything is loaded.
    """
    try:
        of: dict[str, Any] = json.loads((path / "model.json").read_text())
    except FileNotFoundError as error:
        raise RlkitError(f"{path} is no checkpoint: it has no model.json") from error
    saved = of.get("engines")
    if saved is None:
        raise RlkitError(
            f"checkpoint {path} was made by an older rlkit: resume the run with that one, or begin it anew"
        )
    if saved.keys() != engines.keys():
        raise ConfigError(
            f"checkpoint {path} holds {', '.join(sorted(saved))}; this run has {', '.join(sorted(engines))}: "
            "resume it with the algorithm it was made with"
        )
    for name, engine in engines.items():
        if differences := _differences(saved[name], engine.identity):
            raise ConfigError(f"checkpoint {path} is not of this run's {name}:\n  " + "\n  ".join(differences))
    if of["reference"] != _kind(reference):
        raise ConfigError(
            f"checkpoint {path} is of a run with another reference:\n  reference: {of['reference']} in the checkpoint, "
            f"{_kind(reference)} here"
        )
    layout = _layout(saved["policy"], engines["policy"])
    if layout != engines["policy"].layout and distributed.main_rank():
        warnings.warn(
            f"checkpoint {path.name} was saved with {layout}, and goes on with {engines['policy'].layout}: weights and "
            f"AdamW's moments are those saved, and later steps are rounded otherwise. As it was: {layout.options}",
            stacklevel=2,
        )
    for name, engine in engines.items():
        engine.load(path / name, _layout(saved[name], engine))
    if reference is not None:
        reference.load(path / "reference", layout.parts)
    if not (path / "state.pt").is_file():
        raise RlkitError(
            f"{path} holds no state.pt: an older rlkit made it. Begin the run anew, or resume it with that"
        )
    state: dict[str, Any] = torch.load(path / "state.pt", weights_only=True)
    return state


def add_model(path: Path, policy: Engine) -> bool:
    """Write what a checkpoint lacks of the folders that other programs load, the adapters' too where `policy`, which is
    that of the checkpoint, has any; False: all are there. Collective. RlkitError where one cannot be written."""
    exports = {MODEL: policy.export} | ({ADAPTER: policy.export_adapter} if policy.has_adapters else {})
    missing = [name for name in exports if not distributed.any_rank((path / name).is_dir())]
    for name in missing:
        hidden = path / f".{name}"
        exports[name](hidden)
        if distributed.main_rank():
            hidden.rename(path / name)
        distributed.barrier()
    return bool(missing)


def _layout(saved: dict[str, Any], engine: Engine) -> Layout:
    """Checkpoints of older versions do not name the dtype."""
    dtype = saved.get("dtype", engine.layout.dtype)
    return Layout(ranks=saved["ranks"], zero_stage=saved["zero_stage"], dtype=dtype)


def _kind(reference: Reference | None) -> str:
    return "none" if reference is None else reference.kind


def _remove(path: Path) -> None:
    # Renamed first: a checkpoint that is half deleted must not look like one.
    shutil.rmtree(path.rename(path.with_name(f".{path.name}.old")))


def _differences(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    lines = []
    if saved["model"] != now["model"]:
        lines.append(f"model.path: {saved['model']} in the checkpoint, {now['model']} here")
    then, here = saved["parameters"], now["parameters"]
    changed = [name for name in then.keys() | here.keys() if then.get(name) != here.get(name)]
    lines += [
        f"{name}: {then.get(name, 'absent')} there, {here.get(name, 'absent')} here" for name in sorted(changed)[:5]
    ]
    if len(changed) > 5:
        lines.append(f"and {len(changed) - 5} more parameters")
    return lines
