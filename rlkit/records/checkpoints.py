"""Which checkpoints a run's folder holds, and whether they are what was written. What is in one, and how it gets there,
is rlkit/engine/checkpoint.py's.

One is complete or invisible: it is written under a hidden name, its manifest last, and gets its own name when all of it
is on the disk. What goes wrong with it later, the manifest tells: of every file it holds the size and a checksum.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from rlkit import distribution
from rlkit.errors import RlkitError

FOLDER = "checkpoints"
"""In a run's."""
MANIFEST = "manifest.json"
MODEL = "hf"
"""In a checkpoint: the policy as a Hugging Face folder."""
ADAPTER = "adapter"
"""Likewise: its LoRA adapters alone, as peft has them."""

ASIDE = "damaged-"
"""Before the name of a checkpoint that was passed over."""

FORMAT = 1
"""Of a checkpoint's folder: counted up when a resume must read it otherwise."""
_FORMAT_0 = "model.json"
"""What checkpoints had before there were manifests."""
_CHUNK = 1 << 22


@dataclass(kw_only=True)
class Manifest:
    """What is in a checkpoint, and what it is of."""

    format: int = FORMAT
    step: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    """Of rlkit, torch and deepspeed."""
    config: str = ""
    """Digest of the run's settings."""
    engines: dict[str, Any] = field(default_factory=dict)
    """By name, what it can be loaded into: model path, names and shapes of parameters, ranks, ZeRO stage, dtype."""
    reference: str = "none"
    """Its kind."""
    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Path in the checkpoint -> size in bytes and checksum."""

    def text(self) -> str:
        return json.dumps({**asdict(self), "checksum": self.checksum()}, indent=1) + "\n"

    def checksum(self) -> str:
        """Of the manifest itself."""
        return f"{zlib.crc32(json.dumps(asdict(self), sort_keys=True).encode()):08x}"


class OtherFormatError(RlkitError):
    """A checkpoint that another rlkit made, in a format that this one does not read."""


def read_manifest(path: Path) -> Manifest:
    """A checkpoint's. RlkitError where there is none or it is damaged; OtherFormatError, naming the rlkit that made
    it."""
    file = path / MANIFEST
    if not file.is_file():
        file = path / _FORMAT_0
    try:
        found = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise RlkitError(f"checkpoint {path} is damaged: {MANIFEST} is missing") from error
    except (OSError, ValueError) as error:
        raise RlkitError(f"checkpoint {path} is damaged: {file.name} cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise RlkitError(f"checkpoint {path} is damaged: {file.name} is no manifest")
    old = file.name == _FORMAT_0
    made_in = 0 if old else found.get("format")
    if "engines" not in found if old else isinstance(made_in, int) and made_in > FORMAT:
        versions = found.get("versions")
        by = f"rlkit {versions.get('rlkit', '?')}" if isinstance(versions, dict) else "an older rlkit"
        raise OtherFormatError(
            f"checkpoint {path} was made by {by}{'' if old else f' in format {made_in}'}, and this is rlkit "
            f"{distribution.version(distribution.NAME)}, which reads format {FORMAT}: resume the run with the rlkit "
            "that made it, which its provenance.json names, or begin it anew"
        )
    try:
        written = None if old else found.pop("checksum")
        manifest = Manifest(**found | {"format": made_in})
    except (LookupError, TypeError, AttributeError) as error:
        raise RlkitError(f"checkpoint {path} is damaged: {file.name} is no manifest ({error})") from error
    if not old and written != manifest.checksum():
        raise RlkitError(f"checkpoint {path} is damaged: {file.name} is not what was written")
    return manifest


def path_of(folder: Path, step: int) -> Path:
    """The checkpoint after `step`, whether it is there or not. `folder` holds a run's checkpoints."""
    return folder / f"step-{step:08d}"


def step_of(path: Path) -> int | None:
    """After which step it is; None: it has not the name of a checkpoint."""
    name = re.fullmatch(r"step-(\d{8,})", path.name)
    return int(name[1]) if name else None


def parted(path: Path) -> tuple[Path, Path | None]:
    """A run's folder, and the checkpoint in it that the path is; None: the path is the run's."""
    whole = path.resolve()
    if step_of(whole) is None or whole.parent.name != FOLDER:
        return path, None
    return path.parent.parent if path.parent.name == FOLDER else whole.parent.parent, path


def named(folder: Path) -> list[Path]:
    """All that have the name of a checkpoint, oldest first; none where there is no such folder."""
    if not folder.is_dir():
        return []
    found = {step: child for child in folder.iterdir() if (step := step_of(child)) is not None}
    return [found[step] for step in sorted(found)]


def complete(folder: Path) -> list[Path]:
    """The checkpoints in a folder that lack nothing, oldest first."""
    return [path for path in named(folder) if not damage(path)]


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint in a folder; None where there is none. A newer one that is damaged is warned
    of."""
    for path in reversed(named(folder)):
        said = damage(path)
        if not said:
            return path
        warnings.warn(f"{said}. It is passed over", stacklevel=2)
    return None


def set_aside(folder: Path, after: int) -> None:
    """Give the checkpoints of later steps, which a resume has passed over as damaged, names that are none."""
    for path in named(folder):
        if (step_of(path) or 0) > after:
            aside = path.with_name(f"{ASIDE}{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)


def best(folder: Path, rows: Sequence[Mapping[str, float]], by: str) -> Path | None:
    """The complete checkpoint that is best by a metric, of those in whose step it was measured, the newest of several;
    None where it was in none. `by`: the metric's name, with a `-` before it where less is better; `rows`: of
    metrics.jsonl."""
    name, sign = by.removeprefix("-"), -1 if by.startswith("-") else 1
    values = {int(row["step"]): sign * row[name] for row in rows if math.isfinite(row.get(name, math.nan))}
    found = [(values[step], step, path) for path in complete(folder) if (step := step_of(path)) in values]
    return max(found)[2] if found else None


def damage(path: Path, within: str = "") -> str:
    """What is wrong with a checkpoint, in a sentence; "" for one that lacks nothing. Looked at are the names and sizes
    of what a resume reads; with `within`, MODEL or ADAPTER, names and bytes of that folder alone, which is there."""
    try:
        manifest = read_manifest(path)
    except OtherFormatError:
        return ""  # it may be whole: who wants to read it hears of its format
    except RlkitError as error:
        return str(error)
    for name, (size, written) in manifest.files.items():
        if within:
            said = rotten(path / name, size, written) if name.partition("/")[0] == within else ""
        else:
            said = "" if is_model(name) else _differs(path / name, size)
        if said:
            return f"checkpoint {path} is damaged: {said}"
    return ""


def is_model(name: str) -> bool:
    """Whether a file of a checkpoint is for other programs, and no resume reads it."""
    return name.partition("/")[0] in (MODEL, ADAPTER)


def checksum(file: BinaryIO) -> str:
    """Of a file's bytes. It is to find what a disk has lost, and no proof against people."""
    found = 0
    while chunk := file.read(_CHUNK):
        found = zlib.crc32(chunk, found)
    return f"{found:08x}"


def rotten(path: Path, size: int, expected: str) -> str:
    """What is wrong with the bytes of a file; "" where they are those that were written."""
    if said := _differs(path, size):
        return said
    try:
        with path.open("rb") as file:
            found = checksum(file)
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"
    return "" if found == expected else f"{path.name} is not what was written (checksum {found}, {expected} was)"


def _differs(path: Path, size: int) -> str:
    try:
        found = path.stat().st_size
    except OSError:
        return f"{path.name} is missing"
    return "" if found == size else f"{path.name} has {found} bytes of {size}"
