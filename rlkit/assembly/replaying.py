"""Another run's stored rollouts, in place of sampling: which settings ask for them, and whether they can be had."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkit import config as configs
from rlkit.config import RunConfig
from rlkit.config.sections import as_ref
from rlkit.errors import ConfigError, RlkitError
from rlkit.records import checkpoints
from rlkit.records.folder import RunFolder
from rlkit.records.samples import LEARNT_FROM, check_columns, step_files
from rlkit.wording import ranges

if TYPE_CHECKING:
    from rlkit.data import Problem

AS_SAMPLED = ("seed", "schedule", "environment", "conversation", "reward", "data", "batch", "sampling")
"""Keys and sections that have decided what the samples are."""
MAY_DIFFER = (
    *("data.path", "data.eval_path", "data.eval_split"),
    *("batch.minibatches", "batch.epochs", "batch.tokens_per_microbatch"),
)
"""Keys within them that have not. Data of another path must hold the prompts that were sampled from."""
OF_THE_METHOD = ("advantage", "loss", "reference")
"""Settings that go with an algorithm: another one begins with its own."""


@dataclass(frozen=True)
class Source:
    """The run that has sampled."""

    folder: RunFolder
    config: RunConfig
    checkpoint: Path | None
    """Where a replay begins that does not begin at the first step; None: with the model."""


def settings(run: Path, steps: str | None, algo: str | None, given: Sequence[str]) -> list[str]:
    """What makes the config of `run` that of its replay: key=value, to be set before those that are `given`.

    steps: "3-8"; None: all that are stored, up to a `steps` among the given. ConfigError where there is no run, or
    nothing stored.
    """
    folder = RunFolder.open(run)
    stored = list(step_files(folder.rollouts))
    if not stored:
        raise ConfigError(f"{folder.path} holds no samples: it has made no step, or its rollouts/ were removed")
    keys = {text.partition("=")[0]: text.partition("=")[2] for text in given}
    first, last = (1, stored[-1]) if steps is None else _first_and_last(steps)
    if steps is not None and "steps" in keys:
        raise ConfigError(f"--steps {steps} and steps={keys['steps']} both say where the replay ends: give one of them")
    made = [f"replay.run={_quoted(folder.path.resolve())}", f"replay.first={first}", f"steps={last}"]
    began = str(folder.read_settings()["algo"]["kind"])
    kind = algo or keys.get("algo.kind") or _kind(keys.get("algo")) or began
    if kind != began:
        made += [f"{key}=null" for key in OF_THE_METHOD if not any(f"{each}.".startswith(f"{key}.") for each in keys)]
    made += [f"name={_quoted(f'{folder.path.resolve().name}-replayed-{kind}')}"]
    made += [f"out={_quoted(folder.path.resolve().parent)}"]
    return [text for text in made if text.partition("=")[0] not in keys]


def _first_and_last(steps: str) -> tuple[int, int]:
    found = re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", steps)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ConfigError(f"--steps {steps}: expected the first and the last step, as in 1-20")
    return int(found[1]), int(found[2])


def _kind(algo: str | None) -> str | None:
    named = as_ref(configs.parse_value(algo, "algo")) if algo else None
    return str(named["kind"]) if isinstance(named, dict) and "kind" in named else None


def _quoted(value: object) -> str:
    """A text as YAML, which would take a name such as 1 for a number."""
    return "'" + str(value).replace("'", "''") + "'"


def source_of(config: RunConfig) -> Source | None:
    """The run that a resolved config replays; None: it samples.

    ConfigError where that has not stored what is to be learnt from, or had other settings where they decide samples.
    """
    replay = config.replay
    if replay is None:
        return None
    folder = RunFolder.open(replay.run)
    began = folder.read_config()
    if changed := list(_changed(began, config)):
        raise ConfigError(
            f"{', '.join(changed)}: a replay learns from samples that {folder.path} has made already, so what decides "
            "them stays as it was there: leave it out"
        )
    _check_stored(folder, replay.first, config.steps)
    checkpoint = _checkpoint(folder, replay.first - 1) if replay.first > 1 else None
    return Source(folder, began, checkpoint)


def check_prompts(source: Source, config: RunConfig, problems: Sequence[Problem]) -> None:
    """ConfigError where the data or the tokenizer are others than those that were sampled with, as the first step to
    be learnt from has them."""
    from rlkit.loop.rollouts import stored
    from rlkit.loop.state import Place

    assert config.replay is not None
    first = config.replay.first
    try:
        stored(source.folder.rollout_file(first), first, Place(), 0, problems)
    except RlkitError as error:
        raise ConfigError(f"step {first} cannot be replayed: {error}") from error


def _changed(before: RunConfig, now: RunConfig) -> Iterator[str]:
    there, here = before.dump(), now.dump()
    for section in AS_SAMPLED:
        a, b = there[section], here[section]
        if isinstance(a, Mapping) and isinstance(b, Mapping) and section != "environment":
            names: dict[str, tuple[Any, Any]] = {f"{section}.{key}": (a[key], b[key]) for key in a}
        else:
            names = {section: (a, b)}
        yield from (key for key, (one, other) in names.items() if one != other and key not in MAY_DIFFER)


def _check_stored(folder: RunFolder, first: int, last: int) -> None:
    there = step_files(folder.rollouts)
    if missing := [step for step in range(first, last + 1) if step not in there]:
        raise ConfigError(
            f"{folder.path} has no samples of step {ranges(missing)}; it has those of {ranges(list(there)) or 'none'}: "
            f"choose steps that are all there{_before(first, missing[0])}"
        )
    for step in range(first, last + 1):
        try:
            check_columns(there[step], LEARNT_FROM)
        except RlkitError as error:
            raise ConfigError(f"step {step} cannot be replayed{_before(first, step)}: {error}") from error


def _before(first: int, step: int) -> str:
    """What can be replayed although `step` cannot."""
    return f" (those before it can: --steps {first}-{step - 1})" if step > first else ""


def _checkpoint(folder: RunFolder, step: int) -> Path:
    path = checkpoints.path_of(folder.checkpoints, step)
    there = checkpoints.complete(folder.checkpoints)
    if path not in there:
        steps = [number for each in there if (number := checkpoints.step_of(each)) is not None]
        holds = f"those of {ranges(steps)}" if steps else "none"
        others = f", or at {ranges([each + 1 for each in steps])}" if steps else ""
        raise ConfigError(
            f"a replay from step {step + 1} begins with the checkpoint of step {step}, and {folder.path} holds "
            f"{holds}: begin at step 1{others}"
        )
    return path
