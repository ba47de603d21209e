"""What a sweep leaves on disk, for whoever reads it.

sweep.yaml     what was asked for
plan.json      the scored runs: arm, condition, seed, folder of each
tuning.json    what was tried for each arm before, and what was chosen
lock           held by the sweep and its runs while any of them is at work
configs/, logs/, runs/, tuning/   a YAML file, the output and the run's folder of each run
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlkit.errors import ConfigError
from rlkit.files import write_text


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """A scored run: an arm under a condition, with a seed."""

    name: str
    arm: str
    """The algorithm, and its settings where several arms share it: `vimpo`, `vimpo beta=0.1`."""
    condition: str
    """What all arms of a comparison share: the noise, and other settings that are no algorithm's own; `none`."""
    seed: int


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Settings that were tried, and what came out: the final value of the clean reward, for each tuning seed."""

    settings: Mapping[str, Any]
    scores: Mapping[str, float | None]
    """Seed -> score; None: that run died, or never had a clean reward that is a number."""

    @property
    def mean(self) -> float | None:
        """Over the seeds; None where one has no score."""
        known = [score for score in self.scores.values() if score is not None]
        return sum(known) / len(known) if known and len(known) == len(self.scores) else None


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What was tried for an arm under a condition, on seeds of its own."""

    arm: str
    condition: str
    metric: str
    seeds: Sequence[int]
    trials: Sequence[Trial]
    chosen: Mapping[str, Any] | None
    """None: no trial ended on every seed."""

    @property
    def at_the_end(self) -> dict[str, str]:
        """Numeric settings whose best value is the `lowest` or `highest` tried: a better one may lie beyond."""
        ends = {}
        for key, value in (self.chosen or {}).items():
            tried = [trial.settings[key] for trial in self.trials]
            if len({*tried}) > 1 and all(isinstance(each, int | float) for each in tried):
                if value == min(tried):
                    ends[key] = "lowest"
                elif value == max(tried):
                    ends[key] = "highest"
        return ends


@dataclass(frozen=True)
class SweepFolder:
    path: Path
    runs: Sequence[SweepRun] = field(default=(), compare=False)

    @classmethod
    def is_one(cls, path: Path) -> bool:
        return (path / "plan.json").is_file()

    @classmethod
    def open(cls, path: Path) -> SweepFolder:
        """A sweep that has begun. ConfigError where there is none."""
        if not cls.is_one(path):
            raise ConfigError(f"{path} is not a sweep's folder: there is no plan.json in it")
        with _damage_said(path / "plan.json"):
            return cls(path, [SweepRun(**run) for run in json.loads((path / "plan.json").read_text())["runs"]])

    def run_folder(self, run: SweepRun) -> Path:
        return self.path / "runs" / run.name

    def read_tuning(self) -> list[Tuning]:
        """Empty where nothing was tuned."""
        file = self.path / "tuning.json"
        if not file.is_file():
            return []
        with _damage_said(file):
            return [
                Tuning(**{**each, "trials": [Trial(**trial) for trial in each["trials"]]})
                for each in json.loads(file.read_text())
            ]

    def write_tuning(self, tuning: Sequence[Tuning]) -> None:
        _write(self.path / "tuning.json", [asdict(each) for each in tuning])

    def write_plan(self) -> None:
        _write(self.path / "plan.json", {"runs": [asdict(run) for run in self.runs]})


@contextlib.contextmanager
def _damage_said(file: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{file} is damaged ({error!r}): `rlkit sweep --resume {file.parent}` writes it anew"
        ) from error


def _write(file: Path, data: Any) -> None:
    """Whole or not at all: a sweep may be compared while it goes on."""
    write_text(file, json.dumps(data, indent=2) + "\n")
