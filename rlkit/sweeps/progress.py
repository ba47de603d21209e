"""One display for all runs of a sweep: bars on a terminal, a line for each run that ends elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from rlkit.sweeps.jobs import Job, left_s
from rlkit.wording import duration, visible


class Display:
    """Used as a context; `watch` is what `jobs.run_all` calls."""

    def __init__(
        self, what: str, jobs: Sequence[Job], at_once: int, estimate: Callable[[Job, float], str], terminal: Console
    ) -> None:
        """`estimate` makes a sentence of the first run that has a few steps, and the seconds all should take."""
        self.what, self.jobs, self.at_once, self.terminal = what, jobs, at_once, terminal
        self.estimate: Callable[[Job, float], str] | None = estimate
        self.ended = {job for job in jobs if job.done or job.stopped}
        self.progress: Progress | None = None
        self.bars: dict[Job, TaskID] = {}
        if terminal.is_terminal:
            self.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20, complete_style="cyan", finished_style="bold green"),
                MofNCompleteColumn(),
                TextColumn("{task.fields[said]}"),
                console=terminal,
            )
            self.overall = self.progress.add_task(what, total=len(jobs), completed=len(self.ended), said="")

    def __enter__(self) -> Display:
        if self.progress is not None:
            self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.progress is not None:
            self.progress.stop()

    def watch(self, running: Sequence[Job]) -> None:
        left = left_s(self.jobs, self.at_once)
        farthest = max(running, key=lambda job: job.step, default=None)
        if left is not None and self.estimate is not None and farthest is not None and farthest.step > 0:
            self.say(self.estimate(farthest, left))
            self.estimate = None
        for job in self.jobs:
            if job in running or job in self.ended:
                continue
            if job.done or job.error is not None or job.stopped:
                self.ended.add(job)
                self.say(self._line(job))
        if self.progress is not None:
            self._draw(running, left)

    def _line(self, job: Job) -> str:
        place = f"[{len(self.ended)}/{len(self.jobs)}] {job.name}"
        if job.error is not None:
            indented = "\n".join(f"    {line}" for line in job.error.splitlines())
            return (
                f"{place} died after step {job.step} of {job.steps}; the others go on. Its last lines ({job.log}):\n"
                + indented
            )
        if job.stopped is not None:
            where = f"after step {job.step} of {job.steps}"
            return f"{place} stopped by a health check {where}; the others go on. {job.stopped}"
        return f"{place} done: clean reward {job.reward:.3f} in its last step, {duration(job.seconds)}"

    def _draw(self, running: Sequence[Job], left: float | None) -> None:
        assert self.progress is not None
        for job in [job for job in self.bars if job not in running]:
            self.progress.remove_task(self.bars.pop(job))
        for job in running:
            if job not in self.bars:
                self.bars[job] = self.progress.add_task(f"  {job.name}", total=job.steps, said="")
            self.progress.update(
                self.bars[job], completed=job.step, said=f"reward {job.reward:.3f}" if job.step else "starts"
            )
        said = f"{duration(left)} left" if left is not None else ""
        self.progress.update(self.overall, completed=len(self.ended), said=said)

    def say(self, line: str) -> None:
        self.terminal.print(visible(line), markup=False, highlight=False, soft_wrap=True)
