"""A run that begins where another one was: from which checkpoint, with what settings, and what differs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkit.assembly.replaying import OF_THE_METHOD
from rlkit.comparison.runs import flatten
from rlkit.config import RunConfig
from rlkit.errors import ConfigError, RlkitError
from rlkit.records import checkpoints
from rlkit.records.folder import RunFolder

SAMPLES = ("data", "model", "environment", "conversation", "reward", "noise", "batch", "sampling", "seed", "schedule")
"""Sections that say what a step's samples are: where one differs, those that a checkpoint holds are drawn anew."""


@dataclass(frozen=True)
class Origin:
    """A checkpoint of another run."""

    run: RunFolder
    checkpoint: Path

    @property
    def step(self) -> int:
        step = checkpoints.step_of(self.checkpoint)
        assert step is not None
        return step

    def same(self, config: RunConfig, *sections: str) -> bool:
        there, here = self.run.read_settings(), config.dump()
        return all(there.get(section) == here.get(section) for section in sections)

    def differences(self, config: RunConfig) -> dict[str, list[Any]]:
        """Key -> the value there and the one here, of the settings that are not the same; None where one has no such
        key."""
        there, here = flatten(self.run.read_settings()), flatten(config.dump())
        keys = [key for key in {**there, **here} if key not in ("name", "out")]
        return {key: [there.get(key), here.get(key)] for key in keys if there.get(key) != here.get(key)}

    def check(self, config: RunConfig) -> None:
        """ConfigError where there is nothing left to do."""
        if self.step >= config.steps:
            raise ConfigError(
                f"{self.checkpoint} is after step {self.step}, and the run would end after steps: {config.steps}: "
                f"nothing to do. To go further, add -s steps={2 * self.step}"
            )

    def record(self, config: RunConfig) -> dict[str, Any]:
        """For the new run's provenance."""
        place = {"run": str(self.run.path.resolve()), "how": "fork", "checkpoint": self.checkpoint.name}
        return {**place, "step": self.step, "differs": self.differences(config)}

    def said(self, config: RunConfig, has_critic: bool) -> str:
        """What the new run is, key by key where it differs."""
        lines = [f"a fork of {self.run.path} after step {self.step}"]
        lines += [f"  {key}: {there} -> {here}" for key, (there, here) in self.differences(config).items()]
        if len(lines) == 1:
            lines.append("  with the same settings")
        manifest = checkpoints.read_manifest(self.checkpoint)
        reference = config.reference.kind if config.reference is not None else "none"
        if reference in ("average", "copy") and reference != manifest.reference:
            lines.append("  the reference begins as model.path is: the checkpoint holds none of this kind")
        if has_critic and "critic" not in manifest.engines:
            lines.append("  the critic begins anew: the checkpoint holds none")
        return "\n".join(lines)


def settings_of(run: RunFolder, algo: str | None, name: str | None) -> dict[str, Any]:
    """A run's settings, for a fork of it, in a folder beside it. Another algorithm brings its own advantage, loss and
    reference."""
    settings = run.read_settings()
    if algo is not None and algo != settings["algo"]["kind"]:
        for key in OF_THE_METHOD:
            settings.pop(key, None)
    place = run.path.resolve()
    return {**settings, "name": name or f"{place.name}-fork", "out": str(place.parent)}


def origin_of(fork: Path, config: RunConfig) -> Origin:
    """The run and the checkpoint that `fork` names. ConfigError or RlkitError where there is none that is whole."""
    from rlkit.engine import checkpoint

    place, path = checkpoints.parted(fork)
    run = RunFolder.open(place)
    if path is None:
        path = checkpoint.newest_sound(run.checkpoints)
        if path is None:
            raise RlkitError(f"{run.path} holds no checkpoint that a run could begin from")
    else:
        checkpoint.check(path)
    origin = Origin(run, path)
    origin.check(config)
    return origin
