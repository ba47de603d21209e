"""rlkit.sweep: many runs side by side, started from Python."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rlkit import config as configs
from rlkit import sweeps
from rlkit.api.comparing import Comparison, compare
from rlkit.api.frames import frame, frame_of
from rlkit.api.messages import speaking_python
from rlkit.api.run import Run
from rlkit.api.training import Exist
from rlkit.config import RunConfig
from rlkit.errors import ConfigError, RlkitError, nearest
from rlkit.records import tables
from rlkit.records.folder import RunFolder
from rlkit.sweeps import spec as specs
from rlkit.sweeps.sweep_folder import SweepFolder, SweepRun
from rlkit.wording import counted

if TYPE_CHECKING:
    from os import PathLike

    from pandas import DataFrame

    from rlkit.pages.figure import Picture


class Sweep:
    """A sweep, over or still going: its runs, and what they come to.

    `rlkit.sweep` returns one; `rlkit.Sweep("runs/NAME")` opens one that is there. Tables are pandas DataFrames, or
    pyarrow's where pandas is not installed, and read anew each time. In a notebook, a sweep shows its comparison. Where
    a path is expected, a Sweep stands for its folder.

    Args:
        folder: of the sweep, such as "runs/sweep".

    Raises:
        ConfigError: where there is none.

    Example:
        >>> sweep = rlkit.Sweep("runs/noise")
        >>> sweep.metrics.groupby(["arm", "step"])["reward/clean"].mean().unstack("arm").plot()
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        with speaking_python():
            self._sweep = SweepFolder.open(Path(folder))

    @property
    def folder(self) -> Path:
        """Where all of it is."""
        return self._sweep.path

    @property
    def runs(self) -> DataFrame:
        """A row for each scored run: `name`, `arm` (the algorithm, with its settings where several arms share it),
        `condition` (the noise, and what else all arms share), `seed`, `step` (the last that is made) and `folder`."""
        rows = [
            {**_named(run), "step": Run(folder).step if RunFolder.is_one(folder) else 0, "folder": str(folder)}
            for run, folder in self._folders()
        ]
        return frame_of(rows)

    @property
    def metrics(self) -> DataFrame:
        """The metrics of all scored runs: a row for each run and step, with `name`, `arm`, `condition` and `seed`
        before what `Run.metrics` holds."""
        found = []
        for run, folder in self._folders():
            if RunFolder.is_one(folder):
                table = tables.metrics(RunFolder(folder))
                for place, (key, value) in enumerate(_named(run).items()):
                    table = table.add_column(place, key, pa.array([value] * len(table)))
                found.append(table)
        return frame(pa.concat_tables(found, promote_options="default") if found else pa.table({}))

    @property
    def tuning(self) -> DataFrame:
        """What was tried before the scored runs: a row for each arm, trial and seed, with its settings, its `score` and
        whether it is what was `chosen`. Empty where nothing was tuned."""
        rows = [
            {
                "arm": tuned.arm,
                "condition": tuned.condition,
                **trial.settings,
                "seed": int(seed),
                "score": score,
                "chosen": trial.settings == tuned.chosen,
            }
            for tuned in self._sweep.read_tuning()
            for trial in tuned.trials
            for seed, score in trial.scores.items()
        ]
        return frame_of(rows, ("arm", "condition", "seed", "score", "chosen"))

    def run(self, name: str) -> Run:
        """One of its scored runs.

        Args:
            name: as in `runs`, such as "vimpo-seed0".

        Raises:
            ConfigError: for a name that none has, and for a run that has not begun.

        Example:
            >>> sweep.run("vimpo-seed0").plot()
        """
        folders = {run.name: folder for run, folder in self._folders()}
        if name not in folders:
            raise ConfigError(f"{self.folder} has no run {name!r}{nearest(name, folders)}")
        return Run(folders[name])

    def compare(self, *, metrics: str | Sequence[str] | None = None, threshold: float | None = None) -> Comparison:
        """Its arms side by side, as far as they have come: see `rlkit.compare`.

        Args:
            metrics: what to compare, in place of clean reward and pass rates.
            threshold: of each metric, in its own unit.

        Raises:
            ConfigError: where no run has logged anything yet, and as `rlkit.compare`.

        Example:
            >>> sweep.compare().pairs[["a", "b", "difference", "verdict"]]
        """
        return compare(self, metrics=metrics, threshold=threshold)

    def plot(self) -> Picture:
        """The learning curves of its arms, as a matplotlib figure, which a notebook shows.

        Example:
            >>> sweep.plot().savefig("sweep.pdf")
        """
        return self.compare().plot()

    def _folders(self) -> Iterable[tuple[SweepRun, Path]]:
        return ((run, self._sweep.run_folder(run)) for run in self._sweep.runs)

    def __fspath__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        return f"<rlkit.Sweep {str(self.folder)!r}: {counted(len(self._sweep.runs), 'run')}>"

    def _repr_html_(self) -> str:
        return self.compare()._repr_html_()

    __str__ = __fspath__


def sweep(
    file: str | PathLike[str] | None = None,
    *,
    algos: str | Sequence[str] | Mapping[str, Mapping[str, Any]] | None = None,
    seeds: str | Sequence[int] | None = None,
    noise: str | Sequence[str] | None = None,
    base: str | PathLike[str] | Mapping[str, Any] | RunConfig | None = None,
    model: str | None = None,
    data: str | None = None,
    reward: str | None = None,
    steps: int | None = None,
    lr: float | Sequence[float] | None = None,
    batch: int | Sequence[int] | None = None,
    settings: Mapping[str, Any] | None = None,
    tune: Mapping[str, Sequence[Any]] | None = None,
    tune_seeds: str | Sequence[int] | None = None,
    plugins: Sequence[str | PathLike[str]] = (),
    jobs: int = 1,
    name: str | None = None,
    out: str | PathLike[str] = "runs",
    exist: Exist = "error",
    quiet: bool = False,
) -> Sweep:
    """Run algorithms beside each other, on the same prompts, seeds and noise; then compare them.

    What `rlkit sweep` does, with the same words. Each run is a process of its own. The comparison is written to
    `comparison/` in the sweep's folder.

    Args:
        file: a sweep written down, or one that ships ("noise", "vimpo"); what is given here takes the place of what it
            says.
        algos: the algorithms to compare: "vimpo,grpo" or ["vimpo", "grpo"]; or a dict from each to settings of its own,
            as in `{"vimpo": {"algo.beta": 0.1}, "grpo": {}}`.
        seeds: "0-4", "0,2,5" or a list of numbers; None: 0.
        noise: as in ["none", "group_flip:0.25"].
        base: the config that all runs share: a preset, a YAML file, a dict or a RunConfig; None: "embedded".
        model: short for `model.path`, as in `rlkit.train`; so are the next ones.
        data: short for `data.path`.
        reward: what judges.
        steps: of each run.
        lr: short for `optimizer.lr`; several: every run with each of them.
        batch: short for `batch.prompts_per_step`; several as with `lr`.
        settings: any other field of the config; a list is several values, and all combinations are made.
        tune: settings to choose for each arm before the scored runs, as in `{"lr": [1e-4, 2e-4]}`.
        tune_seeds: seeds to tune on; none of them is scored.
        plugins: Python files or modules to import first.
        jobs: runs at once; cores and GPUs are shared out.
        name: of the sweep's folder; None: the file's, else "sweep".
        out: where that stands.
        exist: what to do where the folder is there already. "error": say so. "resume": make what is missing of it, if
            it is the same sweep. "new": another beside it, NAME-2, NAME-3, ...
        quiet: print nothing.

    Returns:
        The `Sweep`: `runs`, `metrics` and `tuning` as tables, `compare()`, `plot()`.

    Raises:
        ConfigError: for a sweep that cannot be, before any run starts, and for a folder that holds something else.
        RlkitError: where runs died, when the others are done.
        KeyboardInterrupt: where it was interrupted; `exist="resume"` goes on.

    Example:
        >>> sweep = rlkit.sweep(algos=["vimpo", "grpo"], seeds="0-4", base="embedded_xs", steps=40, jobs=2)
        >>> sweep.compare().arms[["arm", "metric", "final", "final_low", "final_high"]]
    """
    from rich.console import Console

    short = {"model": model, "data": data, "reward": reward, "steps": steps, "lr": lr, "batch": batch}
    several = {**{key: value for key, value in short.items() if value is not None}, **(settings or {})}
    several = {configs.full_name(key, value): value for key, value in several.items()}
    given: dict[str, Any] = {
        "algos": algos if algos is None or isinstance(algos, str | Mapping) else ",".join(algos),
        "seeds": _listed(seeds),
        "noise": _listed(noise),
        "base": _base(base),
        "set": {key: value for key, value in several.items() if not _is_several(value)},
        "grid": {key: list(value) for key, value in several.items() if _is_several(value)},
        "tune": {key: list(values) for key, values in (tune or {}).items()},
        "tune_seeds": _listed(tune_seeds),
    }
    if plugins:
        given["set"]["plugins"] = [os.fspath(plugin) for plugin in plugins]
    with speaking_python():
        source = os.fspath(file) if file is not None else None
        spec = specs.load(source, {key: value for key, value in given.items() if value not in (None, {})})
        folder = _placed((Path(out) / (name or (Path(source).stem if source else "sweep"))).resolve(), spec, exist)
        outcome = sweeps.sweep(spec, folder, jobs=jobs, terminal=Console(quiet=quiet, highlight=False, soft_wrap=True))
        if outcome.interrupted:
            raise KeyboardInterrupt(f'the sweep in {folder} was interrupted: exist="resume" goes on with it')
        made = Sweep(folder)
        if outcome.scored:
            from rlkit.sweeps.wandb_sweep import log_comparison

            made.compare().write(folder / "comparison")
            log_comparison(folder)
        if outcome.failed:
            raise RlkitError(
                f"{counted(len(outcome.failed), 'run')} died: {', '.join(outcome.failed)}. Their output is in "
                f'{folder / "logs"}; when it is mended, exist="resume" makes them, and rlkit.Sweep({str(folder)!r}) '
                "opens what is done"
            )
    return made


def _placed(folder: Path, spec: specs.SweepConfig, exist: Exist) -> Path:
    """The folder that `exist` means. ConfigError where something else is there."""
    if exist not in ("error", "resume", "new"):
        raise ConfigError(f'exist={exist!r}: give "error", "resume" or "new"')
    if exist == "new":
        places = (folder, *(folder.with_name(f"{folder.name}-{number}") for number in range(2, 10**6)))
        return next(place for place in places if not place.exists() or not any(place.iterdir()))
    if exist == "resume" and (folder / "sweep.yaml").is_file():
        there, wanted = sweeps.read_spec(folder).model_dump(), spec.model_dump()
        if differ := [key for key in wanted if there[key] != wanted[key]]:
            raise ConfigError(
                f'{folder} holds another sweep (it differs in {", ".join(differ)}): exist="new" makes one beside it'
            )
        return folder
    sweeps.check_free(folder, spec)
    return folder


def _base(base: str | PathLike[str] | Mapping[str, Any] | RunConfig | None) -> str | dict[str, Any] | None:
    if isinstance(base, RunConfig):
        return {key: value for key, value in base.dump().items() if key not in ("name", "out", "seed")}
    if base is None or isinstance(base, Mapping):
        return None if base is None else dict(base)
    return os.fspath(base)


def _listed(value: str | Sequence[Any] | None) -> str | list[Any] | None:
    return value if value is None or isinstance(value, str | int) else list(value)


def _is_several(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _named(run: SweepRun) -> dict[str, Any]:
    return {"name": run.name, "arm": run.arm, "condition": run.condition, "seed": run.seed}
