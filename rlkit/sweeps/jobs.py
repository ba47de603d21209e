"""Runs as processes of their own: some at once, each with its share of the cores and GPUs, none able to end another."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rlkit.config import RunConfig
from rlkit.errors import TOLD_TO_END
from rlkit.parent import end_with
from rlkit.ranks import visible_gpus
from rlkit.records import checkpoints
from rlkit.records import lock as locks
from rlkit.records.folder import RunFolder
from rlkit.records.metrics import read_on, step_of
from rlkit.wording import visible

LAST_LINES = 12
"""Of a run that died, shown."""
POLL_S = 0.2


@dataclass(kw_only=True, eq=False)
class Job:
    """One run, to be made or made already."""

    name: str
    algo: str
    config: RunConfig
    file: Path
    """Where the config is written, for the process."""
    folder: Path
    log: Path
    steps: int
    step: int = 0
    """Steps that metrics.jsonl holds."""
    reward: float = math.nan
    """Clean reward of the newest step."""
    started: float = 0.0
    first_step: float = 0.0
    seconds: float = 0.0
    """How long its process ran, where it ended."""
    error: str | None = None
    """What it said last, where it died."""
    _begun_after: int = 0
    """Steps made by earlier processes."""
    _log_before: int = 0
    """Bytes of the log that earlier processes have left."""
    _read: int = field(default=0, repr=False)

    @property
    def done(self) -> bool:
        """A checkpoint is complete or invisible, and the last one is the last thing a run must leave."""
        return checkpoints.path_of(RunFolder(self.folder).checkpoints, self.steps).is_dir()

    @property
    def stopped(self) -> str | None:
        """What the health check said that has ended it: it is not made again. None: none has."""
        return RunFolder(self.folder).read_stop()

    @property
    def resumable(self) -> bool:
        return RunFolder.is_one(self.folder) and checkpoints.latest(RunFolder(self.folder).checkpoints) is not None

    def look(self) -> None:
        """Read what metrics.jsonl has more of."""
        lines, self._read = read_on(RunFolder(self.folder).metrics_file, self._read)
        for line in lines:
            self.step = step_of(line)
            if (reward := line.get("reward/clean")) is not None:
                self.reward = reward
        if self.step > self._begun_after and self.started and not self.first_step:
            self.first_step = time.monotonic()

    def expected_s(self) -> float | None:
        """Seconds the whole run should take, from its first steps; None before there are five of this process."""
        steps = self.step - self._begun_after - 1
        if not self.first_step or steps < 5:
            return None
        each = (time.monotonic() - self.first_step) / steps
        return self.first_step - self.started + each * (self.steps - 1)


@dataclass(frozen=True)
class Share:
    """What one of the runs that go on at once may use."""

    cores: Sequence[int]
    gpus: Sequence[str]

    @property
    def ranks(self) -> int:
        """Of the run: one on each GPU."""
        return max(1, len(self.gpus))

    def environment(self) -> dict[str, str]:
        # OpenMP's own form has a number for each level of nesting: 4,2.
        wanted = int((os.environ.get("OMP_NUM_THREADS") or "1").partition(",")[0])
        threads = str(max(1, min(wanted, len(self.cores) // self.ranks)))
        return {"OMP_NUM_THREADS": threads} | ({"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)} if self.gpus else {})


def shares(count: int) -> list[Share]:
    """This machine's cores and GPUs in `count` parts that have nothing in common, as far as there are enough. All have
    as many GPUs, so that a run has as many ranks wherever it is made; what is left over is left idle."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    gpus = visible_gpus()
    each = len(gpus) // count
    return [Share(cores[i::count] or [cores[i % len(cores)]], gpus[i::count][:each]) for i in range(count)]


def alone(sweep: Path) -> contextlib.AbstractContextManager[int]:
    """Hold the lock of the sweep in this folder. ConfigError where another process or a run that is left of one has it.

    Gives the lock's file descriptor: runs inherit it, so that it is held until the last of them has ended.
    """
    return locks.alone(sweep, "sweep", "Wait for that to end, and for runs that are left of it")


def run_all(
    jobs: Sequence[Job], at_once: int, watch: Callable[[Sequence[Job]], None], say: Callable[[str], None], lock: int
) -> int:
    """Make every job that is not done, and that no health check has stopped. `watch` is called a few times a second
    with those that run, `say` with what people should know.

    A job that dies gets its `error`, and the others go on. A signal that asks for an end lets the runs end after the
    step in hand, as they do where this process is killed; a second interrupt ends them at once. Returns the number of
    the signal; 0: none came.
    """
    waiting = [job for job in jobs if not job.done and job.stopped is None]
    free = shares(at_once)
    running: dict[Job, tuple[subprocess.Popen[bytes], Share]] = {}
    with _interrupts() as asked, _ended(running):
        told = killed = False
        while running or (waiting and not asked):
            while free and waiting and not asked:
                share, job = free.pop(0), waiting.pop(0)
                running[job] = (_start(job, share, lock), share)
            time.sleep(POLL_S)
            if asked and not told:
                told = True
                say("ending the runs after the step in hand, and saving them; an interrupt more ends them at once")
                for process, _ in running.values():
                    process.terminate()
            # Others than interrupts come more than once, from a cluster, and mean the same each time.
            if asked[1:].count(signal.SIGINT) and not killed:
                killed = True
                say("ending the runs at once")
                for process, _ in running.values():
                    os.killpg(process.pid, signal.SIGKILL)  # its ranks too
            for job in list(running):
                job.look()
                process, share = running[job]
                if process.poll() is not None:
                    del running[job]
                    free.append(share)
                    job.seconds = time.monotonic() - job.started
                    if not job.done and job.stopped is None and not asked:
                        job.error = _last_words(job, process.returncode)
            watch(list(running))
        return asked[0] if asked else 0


@contextlib.contextmanager
def _ended(running: dict[Job, tuple[subprocess.Popen[bytes], Share]]) -> Iterator[None]:
    """None of these outlives a failure of the sweep itself."""
    try:
        yield
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.wait()


def _start(job: Job, share: Share, lock: int) -> subprocess.Popen[bytes]:
    if job.resumable:
        arguments = ["--resume", str(job.folder)]
    else:
        # What stopped before its first checkpoint cannot go on.
        shutil.rmtree(job.folder, ignore_errors=True)
        job.step, job._read = 0, 0
        arguments = [str(job.file)]
    job.log.parent.mkdir(parents=True, exist_ok=True)
    job.look()
    job.started, job.first_step, job._begun_after = time.monotonic(), 0.0, job.step
    with job.log.open("ab") as log:
        job._log_before = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "rlkit", "run", *arguments, "--nproc", str(share.ranks)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **share.environment()},
            pass_fds=[lock],
            # An interrupt from the terminal is passed on once, not once by the terminal and once from here.
            start_new_session=True,
            preexec_fn=partial(end_with, os.getpid(), signal.SIGTERM),
        )
    if hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(process.pid, share.cores)
    return process


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    asked: list[int] = []
    # Under nohup, which has the end of the terminal ignored, that stays so.
    caught = [s for s in TOLD_TO_END if s != signal.SIGHUP or signal.getsignal(s) is not signal.SIG_IGN]
    before = {s: signal.signal(s, lambda number, _: asked.append(number)) for s in caught}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _last_words(job: Job, code: int) -> str:
    said = last_lines(job.log, start=job._log_before)
    how = f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
    return f"{said}\n({how})" if said else f"{how}, saying nothing"


def last_lines(log: Path, count: int = LAST_LINES, start: int = 0) -> str:
    """Of a run's output from byte `start` on, which may quote what a model wrote."""
    lines = log.read_bytes()[start:].decode(errors="replace").rstrip().splitlines() if log.is_file() else []
    return "\n".join(map(visible, lines[-count:]))


def left_s(jobs: Sequence[Job], at_once: int) -> float | None:
    """Seconds until all are done, from those of the same algorithm that ended here, else from the first steps."""
    ended = [job for job in jobs if job.seconds and job.error is None]
    known: dict[str, list[float]] = {}
    for job in ended:
        known.setdefault(job.algo, []).append(job.seconds)
    for job in jobs:
        if job.algo not in known and (expected := job.expected_s()) is not None:
            known[job.algo] = [expected]
    if not known:
        return None
    usual = statistics.mean(second for seconds in known.values() for second in seconds)
    total = 0.0
    for job in jobs:
        if not job.done and job.error is None and job.stopped is None:
            whole = statistics.mean(known[job.algo]) if job.algo in known else usual
            total += whole * (1 - job.step / job.steps) if job.step else whole
    return total / at_once


def disk_bytes(folder: Path) -> int:
    """Of a folder that a run may be writing to."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += (Path(place) / name).stat().st_size
    return total
