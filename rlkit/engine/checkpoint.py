"""Checkpoints on disk. One is complete or invisible: it is written into a hidden folder, and renamed when the disk has
all of it.

checkpoints/step-00000040/
    state.pt        the run's state
    policy/         DeepSpeed's state: weights, optimizer, updates made; critic/ likewise
    reference/      what a moving reference keeps, a file a rank under ZeRO-3, else one
    hf/             the policy as a Hugging Face folder; not there where it could not be written
    adapter/        its LoRA adapters alone, as peft has them; likewise
    manifest.json   written last: what it is of, and of every other file the size and a checksum

A full disk, or any other write that fails on any rank, leaves the checkpoints that were there, and nothing else.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from rlkit import distribution
from rlkit.engine import distributed, states
from rlkit.engine.deepspeed import Engine
from rlkit.engine.reference import Reference
from rlkit.engine.resharding import Layout
from rlkit.errors import ConfigError, RlkitError
from rlkit.files import write_text
from rlkit.records.checkpoints import (
    ADAPTER,
    ASIDE,
    MANIFEST,
    MODEL,
    Manifest,
    checksum,
    complete,
    damage,
    is_model,
    named,
    path_of,
    read_manifest,
    rotten,
)
from rlkit.records.checkpoints import latest as latest
from rlkit.wording import size


def save(
    folder: Path,
    step: int,
    engines: dict[str, Engine],
    run_state: dict[str, Any],
    keep: int,
    reference: Reference | None = None,
    *,
    config: str = "",
    best: int | None = None,
) -> Path:
    """Write `folder/step-N`; of the others stay the newest `keep`, itself among them, and that of step `best`.
    Collective.

    `engines` are the trained ones by name, "policy" among them; `run_state` is made of plain data and tensors; `config`
    is a digest of the run's settings. The folder is on a disk that all ranks see. Where the Hugging Face folder cannot
    be written, the checkpoint is complete without it, and a warning says so: what was learnt does not hang on a copy
    of it. Raises RlkitError, on every rank, where anything else cannot be written; then all is as it was.
    """
    done = path_of(folder, step)
    hidden = folder / f".{done.name}"
    try:
        distributed.on_main(lambda: _begin(folder, hidden))
        for name, engine in engines.items():
            engine.save(hidden / name)
        if reference is not None:
            distributed.on_all(lambda: reference.save(hidden / "reference"))
        distributed.on_main(lambda: torch.save(run_state, hidden / "state.pt"))
        try:
            _write_models(hidden, engines["policy"])
        except RlkitError as error:
            if distributed.main_rank():
                warnings.warn(
                    f"checkpoint {done.name} can be resumed from, but has no model that other programs load: {error}. "
                    f"When that is mended, `rlkit run --resume {folder.parent}` writes it",
                    stacklevel=2,
                )
        packages = {"rlkit": distribution.NAME, "torch": "torch", "deepspeed": "deepspeed"}
        manifest = Manifest(
            step=step,
            versions={name: distribution.version(package) or "?" for name, package in packages.items()},
            config=config,
            engines={name: engine.identity for name, engine in engines.items()},
            reference=_kind(reference),
        )
        _seal(hidden, manifest)
        distributed.on_main(lambda: _show(hidden, done))
    except RlkitError as error:
        if distributed.main_rank():
            shutil.rmtree(hidden, ignore_errors=True)
        distributed.barrier()
        raise RlkitError(_not_saved(done, error)) from error
    if distributed.main_rank():
        _prune(done, keep, best)
    distributed.barrier()
    return done


def newest_sound(folder: Path) -> Path | None:
    """The newest checkpoint whose bytes are those that were written; None where there is none at all. Collective: the
    ranks share the reading, and agree.

    Newer ones that are damaged are warned of. RlkitError where all are, which names what is wrong with each.
    """
    wrong: list[tuple[str, str]] = []
    for path in reversed(distributed.gather_objects(named(folder))[0]):
        said = _damage(path)
        if not said:
            if distributed.main_rank():
                for name, why in wrong:
                    warnings.warn(
                        f"{why}. It is passed over: the run goes on from {path.name}, and with the first step it is "
                        f"set aside under the name of {ASIDE}{name}",
                        stacklevel=2,
                    )
            return path
        wrong.append((path.name, said))
    if wrong:
        listed = "\n  ".join(why for _, why in wrong)
        raise RlkitError(f"no checkpoint of {folder.parent} can be resumed from:\n  {listed}")
    return None


def check(path: Path) -> None:
    """RlkitError for a checkpoint whose bytes are not those that were written. Collective."""
    if said := _damage(path):
        raise RlkitError(said)


def load(
    path: Path, engines: dict[str, Engine], reference: Reference | None = None, *, fork: bool = False
) -> dict[str, Any]:
    """Load a checkpoint into engines that have made no update yet; returns the run's state. Collective.

    With `fork` it may be that of a run with another algorithm: what only one of the two has, a critic or a reference
    that moves, is left out, or stays as it was loaded.

    With another number of ranks, ZeRO stage or dtype than it was saved with, weights in float32 and AdamW's moments are
    those saved, and a warning says so; else the run goes on bit for bit. The checkpoint stays as it is. Raises
    ConfigError for a checkpoint of another model, before anything is loaded, and RlkitError for one that is damaged.
    """
    manifest = read_manifest(path)
    saved = manifest.engines
    if fork:
        engines = {name: engine for name, engine in engines.items() if name in saved}
        reference = reference if manifest.reference == _kind(reference) else None
    elif saved.keys() != engines.keys():
        raise ConfigError(
            f"checkpoint {path} holds {', '.join(sorted(saved))}; this run has {', '.join(sorted(engines))}: "
            "resume it with the algorithm it was made with"
        )
    for name, engine in engines.items():
        if differences := _differences(saved[name], engine.identity):
            raise ConfigError(f"checkpoint {path} is not of this run's {name}:\n  " + "\n  ".join(differences))
    if not fork and manifest.reference != _kind(reference):
        raise ConfigError(
            f"checkpoint {path} is of a run with another reference:\n  reference: {manifest.reference} in the "
            f"checkpoint, {_kind(reference)} here"
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
    return states.read(path / "state.pt")


def add_model(path: Path, policy: Engine) -> bool:
    """Write what a checkpoint lacks of the folders that other programs load, the adapters' too where `policy`, which is
    that of the checkpoint, has any; False: all are there. Collective. RlkitError where one cannot be written."""
    if not _write_models(path, policy):
        return False
    if (path / MANIFEST).is_file():  # older checkpoints have none
        manifest = read_manifest(path)
        manifest.files = {name: of for name, of in manifest.files.items() if not is_model(name)}
        _seal(path, manifest)
    return True


def _write_models(path: Path, policy: Engine) -> bool:
    exports = {MODEL: policy.export} | ({ADAPTER: policy.export_adapter} if policy.has_adapters else {})
    missing = [name for name in exports if not distributed.any_rank((path / name).is_dir())]
    for name in missing:
        hidden = path / f".{name}"
        exports[name](hidden)
        if distributed.main_rank():
            hidden.rename(path / name)
        distributed.barrier()
    return bool(missing)


def _begin(folder: Path, hidden: Path) -> None:
    for leftover in folder.glob(".step-*"):
        shutil.rmtree(leftover)
    hidden.mkdir(parents=True)


def _seal(path: Path, manifest: Manifest) -> None:
    """Flush what the manifest does not hold yet, and then write it, with that. Each rank reads what it wrote itself,
    which its machine still has in memory."""
    own: dict[str, tuple[int, str]] = {}

    def look() -> None:
        for file in sorted(path.rglob("*")):
            name = file.relative_to(path).as_posix()
            if file.is_file() and name not in (MANIFEST, *manifest.files) and _writer(file) == distributed.rank():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
                    own[name] = (file.stat().st_size, checksum(opened))

    def write() -> None:
        manifest.files |= {name: of for each in found for name, of in each.items()}
        write_text(path / MANIFEST, manifest.text())
        _flush([path / MANIFEST, *(each for each in path.rglob("*") if each.is_dir()), path])

    distributed.on_all(look)
    found = distributed.gather_objects(own)
    distributed.on_main(write)


def _writer(file: Path) -> int:
    """The rank that wrote it: DeepSpeed and the references name it where it is not always the first."""
    found = re.search(r"(?:^|zero_pp_)rank[_-](\d+)", file.name)
    return int(found[1]) if found else 0


def _flush(paths: Iterable[Path]) -> None:
    """Have the disk hold files, or what stands in folders."""
    for path in paths:
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _show(hidden: Path, done: Path) -> None:
    if done.exists():
        _remove(done)
    hidden.rename(done)
    _flush([done.parent])


def _prune(newest: Path, keep: int, best: int | None) -> None:
    folder = newest.parent
    kept = {*complete(folder)[-keep:], newest}
    if best is not None:
        kept.add(path_of(folder, best))
    for path in named(folder):
        if path not in kept:
            _remove(path)


def _damage(path: Path) -> str:
    """What is wrong with what a resume reads of it, in a sentence; "" where nothing is. Collective."""
    said = distributed.gather_objects(damage(path))[0]
    if said:
        return said
    try:
        files = read_manifest(path).files
    except RlkitError:
        return ""  # of another format: `load` says so
    names = [name for name in files if not is_model(name)][distributed.rank() :: distributed.world_size()]
    wrong = next(filter(None, (rotten(path / name, *files[name]) for name in names)), "")
    wrong = next(filter(None, distributed.gather_objects(wrong)), "")
    return wrong and f"checkpoint {path} is damaged: {wrong}"


def _not_saved(done: Path, error: RlkitError) -> str:
    folder = done.parent
    left = complete(folder)
    try:
        free = f" ({size(shutil.disk_usage(folder).free)} are free there)"
    except OSError:
        free = ""
    stays = f"`rlkit run --resume {folder.parent}` goes on from {left[-1].name}" if left else "none was there before"
    return f"{done.name} could not be written to {folder}{free}: {error}. What was there is as it was: {stays}"


def _layout(saved: dict[str, Any], engine: Engine) -> Layout:
    dtype = saved.get("dtype", engine.layout.dtype)  # the first ones do not name it
    return Layout(ranks=saved["ranks"], zero_stage=saved["zero_stage"], dtype=dtype)


def _kind(reference: Reference | None) -> str:
    return "none" if reference is None else reference.kind


def _remove(path: Path) -> None:
    # Renamed first: a checkpoint that is half deleted must not look like one. What is left of it goes with the next.
    shutil.rmtree(path.rename(path.with_name(f".{path.name}.old")), ignore_errors=True)


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
