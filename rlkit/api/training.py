"""rlkit.train and rlkit.replay: a run started from Python."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlkit import config as configs
from rlkit import registry
from rlkit.api.messages import speaking_python
from rlkit.api.run import Run, trained, written
from rlkit.config import RunConfig
from rlkit.errors import ConfigError
from rlkit.records import checkpoints
from rlkit.records.folder import RunFolder

if TYPE_CHECKING:
    from os import PathLike

Exist = Literal["error", "resume", "new"]
SAME = ("name", "out", "steps")
"""Settings that may differ where a run goes on as it was."""


def train(
    config: RunConfig | Mapping[str, Any] | str | PathLike[str] = "embedded",
    *,
    algo: str | None = None,
    model: str | None = None,
    data: str | None = None,
    reward: str | Sequence[Mapping[str, Any]] | None = None,
    noise: str | None = None,
    steps: int | None = None,
    lr: float | None = None,
    batch: int | None = None,
    seed: int | None = None,
    name: str | None = None,
    out: str | PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    plugins: Sequence[str | PathLike[str]] = (),
    exist: Exist = "error",
    quiet: bool = False,
    profile: int = 0,
) -> Run:
    """Train a model by reinforcement learning, and return the run.

    What `rlkit run` does, with the same words: `rlkit run embedded_xs --algo grpo --steps 30 -s optimizer.eps=1e-6` is
    `rlkit.train("embedded_xs", algo="grpo", steps=30, settings={"optimizer.eps": 1e-6})`.

    Args:
        config: where the settings come from: a preset's name (`rlkit config ls`), a YAML file, a dict, or a RunConfig.
        algo: the algorithm: "vimpo", "grpo", "ppo", ... (`rlkit list algorithms`).
        model: a folder or hub id, or "embedded:s": short for `model.path`.
        data: a .json, .jsonl or .parquet file, or a data set's hub id: short for `data.path`.
        reward: what judges, by name, or "FILE.py:FUNCTION"; or several with weights, as in
            `[{"kind": "final_answer"}, {"kind": "length", "weight": 0.2}]`.
        noise: disturbs the rewards on purpose, as in "group_flip:0.25".
        steps: rollouts: sample, score, update.
        lr: the learning rate: short for `optimizer.lr`.
        batch: prompts of one rollout: short for `batch.prompts_per_step`.
        seed: decides data order, samples and noise.
        name: of the run's folder; None: algorithm, model and seed.
        out: the folder of all runs; None: "runs".
        settings: any other field of the config, by its key with dots: `{"optimizer.weight_decay": 0.0}`.
        plugins: Python files or modules to import first, such as `__file__`, where a script has a reward of its own.
        exist: what to do where the run's folder holds a run already, as when a cell of a notebook is run again.
            "error": say so. "resume": go on with it where it stopped, and take it as it is where it is done; its
            settings must be the same, but for `steps`. "new": train another beside it, NAME-2, NAME-3, ...
            "error" is the default since only you know: "resume" gives back old results, "new" trains for as long again.
        quiet: print nothing.
        profile: so many steps, after the first, are traced by torch's profiler into the run's `profile/`.

    Returns:
        The `Run`: metrics, samples, credit and evaluation as tables, `plot()`, `sample()`, `evaluate()`, `resume()`.

    Raises:
        ConfigError: for settings that cannot be, before a model is loaded, and for a folder that holds a run.
        RlkitError: for what goes wrong later.
        KeyboardInterrupt: where it was interrupted; the step in hand was ended and all is saved.

    Example:
        >>> run = rlkit.train("embedded_xs", steps=30, algo="grpo")
        >>> run.plot()
        >>> run.sample("47+85=", n=3)
    """
    short = {"model": model, "data": data, "reward": reward, "steps": steps, "lr": lr, "batch": batch}
    given: dict[str, Any] = {configs.full_name(key, value): value for key, value in short.items()}
    given |= {"seed": seed, "name": name, "out": out}
    with speaking_python():
        if registry.loading() is not None:
            raise ConfigError(
                f"rlkit.train was called while {registry.loading()} was being imported as a plugin. Put what trains "
                'under `if __name__ == "__main__":` there'
            )
        more = {configs.full_name(key, value): value for key, value in (settings or {}).items()}
        if twice := [key for key in more if given.get(key) is not None]:
            raise ConfigError(f"{twice[0]} is given twice, by an argument and in `settings`: leave one of them out")
        wanted = _config(config, algo, {**given, **more}, [os.fspath(each) for each in plugins])
        if noise is not None:
            from rlkit.sweeps.spec import parse_noises

            registry.load(wanted.plugins)
            wanted = wanted.model_copy(update={"noise": [*wanted.noise, *parse_noises(noise)]})
        wanted, resume = _placed(wanted, exist)
        if resume:
            run = Run(wanted.folder)
            _check_same(run, wanted)
            if run.finished and wanted.steps == run.steps and _is_whole(run):
                if not quiet and _main():
                    print(f"{run.folder} has done its {run.steps} steps: it is taken as it is")
                return run
        return trained(wanted, resume=resume, quiet=quiet, profile=profile)


def replay(
    run: str | PathLike[str],
    *,
    algo: str | None = None,
    steps: tuple[int, int] | None = None,
    name: str | None = None,
    out: str | PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    plugins: Sequence[str | PathLike[str]] = (),
    quiet: bool = False,
) -> Run:
    """Train from the samples that a run has stored, without sampling: what `rlkit replay` does.

    With the run's own settings, the same updates bit for bit; with another algorithm, what that makes of the same
    samples, which are off-policy for it.

    Args:
        run: its folder.
        algo: another algorithm; None: the run's own.
        steps: the first and the last of its steps to learn from, as in (1, 20); None: all.
        name: of the new run's folder; None: RUN-replayed-ALGO.
        out: the folder of all runs; None: that of `run`.
        settings: what is to be different, as in `{"optimizer.lr": 1e-5}`; what decides samples cannot be.
        plugins: Python files or modules to import first.
        quiet: print nothing.

    Returns:
        The new `Run`.

    Raises:
        ConfigError: for settings that cannot be, and steps of which the run has stored no samples.
        RlkitError: for what goes wrong later.
        KeyboardInterrupt: as `rlkit.train`.

    Example:
        >>> rlkit.replay("runs/vimpo-s-seed0", algo="grpo", settings={"correction": {}})
    """
    from rlkit.assembly import replaying

    with speaking_python():
        given = written({"name": name, "out": out, **(settings or {})})
        said = None if steps is None else f"{steps[0]}-{steps[1]}"
        made = replaying.settings(Path(run), said, algo, given)
        more = [os.fspath(each) for each in plugins]
        config = configs.load(RunFolder(Path(run)).config_file, [*made, *given], algo)
        wanted = config.model_copy(
            update={"plugins": [*config.plugins, *(each for each in more if each not in config.plugins)]}
        )
        return trained(wanted, resume=False, quiet=quiet)


def _config(
    source: RunConfig | Mapping[str, Any] | str | PathLike[str],
    algo: str | None,
    given: Mapping[str, Any],
    plugins: Sequence[str],
) -> RunConfig:
    """The settings from the source, with what is given in their place; None is not given."""
    if isinstance(source, RunConfig):
        source = source.dump()
    read = dict(source) if isinstance(source, Mapping) else os.fspath(source)
    loaded = configs.load(read, written(given), algo)
    return loaded.model_copy(update={"plugins": [*loaded.plugins, *(p for p in plugins if p not in loaded.plugins)]})


def _placed(config: RunConfig, exist: Exist) -> tuple[RunConfig, bool]:
    """The config with the folder that `exist` means, and whether the run there goes on. ConfigError."""
    if exist not in ("error", "resume", "new"):
        raise ConfigError(f'exist={exist!r}: give "error", "resume" or "new"')
    if not _begun(config.folder):
        return config, False
    if exist == "resume":
        return config, True
    names = (f"{config.run_name}-{number}" for number in range(2, 10**6))
    free = next(name for name in names if not _begun(config.out / name))
    if exist == "new":
        return config.model_copy(update={"name": free}), False
    raise ConfigError(
        f'{config.folder} holds a run already: exist="resume" goes on with it, exist="new" trains another in '
        f"{config.out / free}, and rlkit.Run({str(config.folder)!r}) opens it as it is"
    )


def _begun(folder: Path) -> bool:
    """Whether there is a run that has made a step."""
    try:
        RunFolder.check_free(folder)
    except ConfigError:
        return True
    return False


def _check_same(run: Run, config: RunConfig) -> None:
    """ConfigError where the run was made with other settings than those it is to go on with."""
    from rlkit.generation import resolve_sampler

    resolved = configs.resolve(config)
    sampler, _ = resolve_sampler(resolved.sampler, resolved.model)
    there, wanted = run.config, resolved.model_copy(update={"sampler": sampler}).dump()
    differ = [key for key in sorted({*there, *wanted} - {*SAME}) if there.get(key) != wanted.get(key)]
    if differ:
        raise ConfigError(
            f"{run.folder} was made with other settings, so that it is not what is asked for (it differs in "
            f'{", ".join(_keys(differ, there, wanted))}): exist="new" trains another beside it; '
            f"rlkit.Run({str(run.folder)!r}).resume(settings={{...}}) goes on with this one under other settings"
        )


def _keys(names: Sequence[str], there: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """With what differs within sections."""
    found = []
    for name in names:
        a, b = there.get(name), wanted.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += [f"{name}.{key}" for key in sorted({*a, *b}) if a.get(key) != b.get(key)]
        else:
            found.append(name)
    return found


def _is_whole(run: Run) -> bool:
    """Whether nothing is missing that the end of a run makes: model, last evaluation, report, picture."""
    folder = RunFolder(run.folder)
    newest = checkpoints.latest(folder.checkpoints)
    rows = folder.read_metrics()
    evaluated = [any(name.startswith("eval/") for name in row) for row in (rows[0], rows[-1])]
    return (
        newest == checkpoints.path_of(folder.checkpoints, run.steps)
        and (newest / checkpoints.MODEL).is_dir()
        and evaluated[0] <= evaluated[1]
        and folder.report.is_file()
        and folder.learning_curve.is_file()
    )


def _main() -> bool:
    return os.environ.get("RANK", "0") == "0"
