"""rlkit.Run: a run's folder as an object, with its tables and what can be done with its model."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkit import config as configs
from rlkit.api.frames import frame, frame_of
from rlkit.api.messages import speaking_python
from rlkit.config import RunConfig
from rlkit.errors import StoppedError
from rlkit.records import tables
from rlkit.records.folder import RunFolder
from rlkit.records.metrics import last_step
from rlkit.wording import counted

if TYPE_CHECKING:
    from os import PathLike

    from pandas import DataFrame

    from rlkit.pages.figure import Picture


class Run:
    """A run, over or still going: what it has left in its folder, and what can be done with its model.

    `rlkit.train` returns one; `rlkit.Run("runs/NAME")` opens one that is there. Tables are pandas DataFrames, or
    pyarrow's where pandas is not installed. They are read anew each time, so that they show what a run has done since;
    that needs neither torch nor a GPU. In a notebook, a run shows itself as its curve and its results. Where a path is
    expected, a Run stands for its folder.

    Args:
        folder: of the run, such as "runs/vimpo-s-seed0".

    Raises:
        ConfigError: where there is no run. What is damaged raises RlkitError when it is read.

    Example:
        >>> run = rlkit.Run("runs/vimpo-s-seed0")
        >>> run.metrics.plot("step", "reward/mean")
        >>> run.samples([run.step]).groupby("prompt")["reward"].mean()
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        with speaking_python():
            self._run = RunFolder.open(Path(folder))

    @property
    def folder(self) -> Path:
        """Where all of it is."""
        return self._run.path

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.folder.resolve().name

    @property
    def config(self) -> dict[str, Any]:
        """All settings, as in config.yaml: plain data, whatever plugins it names."""
        return self._run.read_settings()

    @property
    def provenance(self) -> dict[str, Any]:
        """Versions, plugins, seed, command line, git commit, resumes, as in provenance.json."""
        return self._run.read_provenance()

    @property
    def step(self) -> int:
        """The last step that is made."""
        return last_step(self._run.read_metrics())

    @property
    def steps(self) -> int:
        """Those it was to make."""
        steps: int = self.config["steps"]
        return steps

    @property
    def finished(self) -> bool:
        """Whether it has made them all."""
        return self.step >= self.steps

    @property
    def metrics(self) -> DataFrame:
        """A row a step: `step`, and a column for each metric by its name, empty where the step has not logged it or it
        was no finite number. Step 0 is the evaluation before training."""
        return frame(tables.metrics(self._run))

    @property
    def evaluation(self) -> DataFrame:
        """A row for each number that an evaluation in training gave: `step`, `suite` (`heldout`, `math500`), `metric`
        (`mean@1`, `length`) and `value`."""
        return frame(tables.evaluation(self._run))

    def samples(self, steps: int | Iterable[int] | None = None) -> DataFrame:
        """What was sampled in training, a row each.

        Args:
            steps: the step or steps whose samples are wanted; None: all, which is much of a long run.

        Returns:
            `step`, `prompt`, `response`, `answer`, `reward`, `clean_reward`, `status`, `correct`, `truncated`,
            `tokens`, `mask`, log-probs and more.

        Raises:
            RlkitError: for a step whose samples are not there.

        Example:
            >>> run.samples([1, run.step])[["step", "prompt", "response", "reward"]]
        """
        return frame(tables.samples(self._run, steps))

    def credit(self, steps: int | Iterable[int] | None = None) -> DataFrame:
        """What the algorithm credited the tokens of the first 64 samples of each step.

        Args:
            steps: the one, or those, that are wanted; None: all.

        Returns:
            `step`, `row` (which of the step's samples), and for `advantages` and each kind of credit a list of a number
            a token.

        Raises:
            RlkitError: for a step of which none is on record.

        Example:
            >>> run.credit([run.step])["advantages"].map(max)
        """
        return frame(tables.credit(self._run, steps))

    def plot(self) -> Picture:
        """The learning curve, and what explains it, as a matplotlib figure, which a notebook shows.

        Raises:
            RlkitError: where the metrics cannot be read.

        Example:
            >>> run.plot().savefig("curve.pdf")
        """
        from rlkit.report import curve

        return curve.picture(self._run.read_metrics(), self.name)

    def report(self) -> Path:
        """Write report.html: curves, timing, samples, settings, and what calls for attention.

        Returns:
            The page's path.

        Example:
            >>> webbrowser.open(run.report().resolve().as_uri())
        """
        from rlkit import report

        with speaking_python():
            return report.write(self.folder)

    def sample(
        self,
        prompt: str,
        n: int = 1,
        *,
        seed: int = 0,
        temperature: float | None = None,
        max_tokens: int | None = None,
        trust_remote_code: bool = False,
    ) -> list[str]:
        """Ask the newest model that is saved.

        Args:
            prompt: the question, which is put to the model as those of training are.
            n: responses.
            seed: decides what is drawn.
            temperature: None: training's.
            max_tokens: of the longest response; None: training's.
            trust_remote_code: let the model's folder run code of its own.

        Returns:
            The n responses; of a run with an environment, the conversations.

        Raises:
            RlkitError: where no model is saved yet.

        Example:
            >>> run.sample("47+85=", n=3)
        """
        from rlkit.assembly.run import prepare_environment

        prepare_environment()
        from rlkit.assembly.sampling import open_model

        with speaking_python(), ExitStack() as stack:
            asked = open_model(str(self.folder), stack, temperature, max_tokens, trust_remote_code)
            if asked.setting is not None:
                return [one.text for one in asked.act(prompt, n, seed)]
            return asked.answer(prompt, n, seed)

    def evaluate(
        self,
        suites: str | Sequence[str] = (),
        *,
        data: str | PathLike[str] | None = None,
        prompt: str | None = None,
        answer: str | None = None,
        reward: str | None = None,
        n: int | None = None,
        limit: int | None = None,
        max_tokens: int | None = None,
        out: str | PathLike[str] | None = None,
        settings: Mapping[str, Any] | None = None,
        plugins: Sequence[str] = (),
        quiet: bool = False,
    ) -> DataFrame:
        """Measure the newest model on benchmark suites, or on problems of your own: what `rlkit eval` does.

        Called again, it goes on where it stopped. Settings that are not given are the run's own.

        Args:
            suites: names of `rlkit list suites`, such as "math500" or ["math500", "aime24"].
            data: problems of your own: a .json, .jsonl or .parquet file, or a data set's hub id. With suites: the
                folder of local copies.
            prompt: your data's column of questions.
            answer: its column of golds.
            reward: what judges the answers.
            n: samples of each problem; None: 32 for AIME, else 1.
            limit: only the first so many problems.
            max_tokens: of the longest response.
            out: folder of responses and results; None: `eval/` in the run's.
            settings: any other, as in `{"top_p": 0.95}`.
            plugins: Python files or modules to import first.
            quiet: print nothing.

        Returns:
            A row for each suite and metric: `suite`, `metric` (`mean@1`, `pass@8`), `value`, and the ends `low` and
            `high` of its 95 % interval over problems. Everything else is in results.json.

        Raises:
            ConfigError: for suites, data and settings that cannot be.
            RlkitError: for what goes wrong later, and where it was interrupted.

        Example:
            >>> run.evaluate(data="test.jsonl", n=4)
        """
        from rlkit.assembly import evaluate as evaluating

        given = {
            "data": os.fspath(data) if data is not None else None,
            "prompt": prompt,
            "answer": answer,
            "reward": reward,
            "samples": n,
            "limit": limit,
            "max_tokens": max_tokens,
            "out": out,
        }
        names = [suites] if isinstance(suites, str) else suites
        with speaking_python():
            results = evaluating.evaluate(
                str(self.folder), names, given, overrides=written(settings or {}), plugins=plugins, quiet=quiet
            )
        rows = [
            {"suite": suite, "metric": metric, **{key: estimate[key] for key in ("value", "low", "high")}}
            for suite, result in results.items()
            for metric, estimate in result["metrics"].items()
        ]
        return frame_of(rows)

    def resume(
        self, steps: int | None = None, *, settings: Mapping[str, Any] | None = None, quiet: bool = False
    ) -> Run:
        """Go on with the run from its newest checkpoint; of one that has made its steps, make what is missing.

        Args:
            steps: how many it is to have in all; None: as many as it was to make.
            settings: what is to be different from here on, as in `{"optimizer.lr": 1e-5}`.
            quiet: print nothing.

        Returns:
            The run itself.

        Raises:
            ConfigError: where there is nothing left to do, and for settings that cannot be.
            RlkitError: for what goes wrong later.
            KeyboardInterrupt: as `rlkit.train`.

        Example:
            >>> run.resume(steps=2 * run.steps)
        """
        with speaking_python():
            changes = {"steps": steps, **(settings or {})}
            place = {"name": self.name, "out": str(self.folder.resolve().parent)}
            config = configs.load(self._run.config_file, written({**changes, **place}))
            trained(config, resume=True, quiet=quiet)
        return self

    def __fspath__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        return f"<rlkit.Run {str(self.folder)!r}: {self._state()}>"

    def _state(self) -> str:
        config = self.config
        replayed = f", replayed from {config['replay']['run']}" if config.get("replay") else ""
        return f"{config['algo']['kind']}, {self.step} of {counted(config['steps'], 'step')}{replayed}"

    def _repr_html_(self) -> str:
        from rlkit import report
        from rlkit.pages.figure import as_html
        from rlkit.report import curve

        metrics = self._run.read_metrics()
        found = report.warnings_of(metrics, self._run.read_config())
        said = [f"<li>{html.escape(str(warning))}</li>" for warning in found]
        name, state, folder = map(html.escape, (self.name, self._state(), str(self)))
        parts = [
            f"<p><b>{name}</b>: {state}; <code>{folder}</code></p>",
            as_html(curve.picture(metrics, self.name), f"Learning curve of {self.name}"),
            f"<p>{counted(len(found), 'warning')}</p><ul>{''.join(said)}</ul>" if said else "",
        ]
        return "".join(parts)

    __str__ = __fspath__


def trained(config: RunConfig, *, resume: bool, quiet: bool, profile: int = 0) -> Run:
    """Train, and return the run. KeyboardInterrupt where an interrupt has ended it before its last step."""
    from rlkit.assembly import run as runs

    try:
        return Run(runs.train(config, resume=resume, quiet=quiet, profile=profile))
    except StoppedError as stopped:
        run = Run(stopped.folder)
        raise KeyboardInterrupt(
            f"stopped after step {run.step} of {run.steps}, and all of it is saved: "
            f"rlkit.Run({str(run.folder)!r}).resume() goes on"
        ) from None


def written(settings: Mapping[str, Any]) -> list[str]:
    """Settings as key=value, whose values are read as YAML; None is not given."""
    given = {key: value for key, value in settings.items() if value is not None}
    return [f"{key}={json.dumps(value, ensure_ascii=False, default=str)}" for key, value in given.items()]
