"""A progress bar on a terminal, one line a step elsewhere; each evaluation has a line of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console as Terminal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rlkit.records.metrics import evaluation_of
from rlkit.tracking import RunInfo
from rlkit.wording import thousands


class Console:
    """The tracker that people watch. Responses are not shown: they are in the run's folder."""

    def __init__(self, run: RunInfo, terminal: Terminal | None = None) -> None:
        """`terminal` None: standard output."""
        self.steps = run.steps
        self.terminal = terminal or Terminal(highlight=False, soft_wrap=True)
        self.progress: Progress | None = None
        if self.terminal.is_terminal:
            self.progress = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[numbers]}"),
                TimeRemainingColumn(compact=True),
                TextColumn("left"),
                console=self.terminal,
                speed_estimate_period=600,
            )
            self.task = self.progress.add_task("", total=run.steps, numbers="")
            self.progress.start()
        self.last: int | None = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        training = {name: value for name, value in metrics.items() if not name.startswith("eval/")}
        if set(training) - {"time/eval_s"}:
            if self.progress is None:
                self._print(f"step {step}/{self.steps} {step_line(training)}")
            elif self.last is None and step > 1:  # resumed: steps made before say nothing of the speed
                self.progress.reset(self.task, completed=step, numbers=step_line(training, short=True))
            else:
                self.progress.update(self.task, completed=step, numbers=step_line(training, short=True))
            self.last = step
        for suite, said in _evaluations(metrics).items():
            self._print(f"step {step}/{self.steps} evaluation, {suite}: {said}")

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Nothing."""

    def close(self) -> None:
        if self.progress is not None:
            self.progress.stop()

    def _print(self, line: str) -> None:
        self.terminal.print(line, markup=False)


def step_line(metrics: Mapping[str, float], short: bool = False) -> str:
    """`reward 0.612 pass 0.60 kl 0.0123 len 17.3 gap 2e-06 1.1k tok/s 0.51 s`, as far as there are numbers.

    `short` leaves out what does not fit beside a progress bar.
    """
    shown = {
        "reward/mean": "reward {:.3f}",
        "reward/pass_rate": "pass {:.2f}",
        "policy/kl": "kl {:.4f}",
        "response/length": "" if short else "len {:.1f}",
        "sampler/gap_max": "" if short else "gap {:.0e}",
    }
    parts = [form.format(metrics[name]) for name, form in shown.items() if form and name in metrics]
    if metrics.get("samples/no_value"):
        parts.append(f"{metrics['samples/no_value']:.0f} without reward")
    if missing := metrics.get("refill/groups_missing"):
        groups = metrics["refill/groups"]
        parts.append(f"{groups:.0f} of {groups + missing:.0f} groups")
    if "throughput/tokens_per_s" in metrics:
        parts.append(f"{thousands(metrics['throughput/tokens_per_s'])} tok/s")
    if "time/step_s" in metrics and not short:
        parts.append(f"{metrics['time/step_s']:.2f} s")
    return " ".join(parts)


def _evaluations(metrics: Mapping[str, float]) -> dict[str, str]:
    """Suite -> its results: eval/SUITE/mean@1 and the like."""
    suites: dict[str, list[str]] = {}
    for name, value in metrics.items():
        if (evaluated := evaluation_of(name)) is not None:
            suite, what = evaluated
            suites.setdefault(suite, []).append(f"{what} {value:.4g}")
    return {suite: " ".join(results) for suite, results in suites.items()}
