"""Runs that live and die in forks of one process, which has imported all there is to import: and the places where one
can be killed.

Started as a script it reads jobs from its standard input, a JSON object a line, and answers each with its exit codes.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

PHASES = {
    "checking the sampler": 1, "syncing weights": 1, "sampling": 3, "scoring": 1, "measuring": 1, "updating": 2,
    "saving": 1, "evaluating heldout": 3,
}  # fmt: skip
"""What progress is called with, and at which call of a step."""


TOLD = "told"
"""In the place of a fault: the second rank alone is told to end, and has no time."""


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


class _Fault:
    """Kills this process at a place, in a step."""

    def __init__(self, place: str, step: int) -> None:
        self.place, self.step = place, step
        self.at = -1
        self.calls = 0

    def reached(self, place: str) -> bool:
        return place == self.place and self.at == self.step

    def phase(self, phase: str, *_: Any) -> None:
        if self.reached(phase):
            self.calls += 1
            if self.calls == PHASES[phase]:
                _die()


def _around(
    owner: Any, name: str, before: Callable[..., Any] | None = None, after: Callable[..., Any] | None = None
) -> None:
    usual = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if before is not None:
            before(*args, **kwargs)
        found = usual(*args, **kwargs)
        if after is not None:
            after(*args, **kwargs)
        return found

    setattr(owner, name, wrapped)


def arm(place: str, step: int) -> None:
    """Kill this process when it reaches the place in that step. For a process that does nothing else."""
    from rlkit.engine import checkpoint
    from rlkit.engine.deepspeed import Engine
    from rlkit.generation.weights import gloo
    from rlkit.interfaces import progress
    from rlkit.loop.base import Loop
    from rlkit.loop.flight import Flight
    from rlkit.loop.learner import Learner
    from rlkit.records import folder

    fault = _Fault(place, step)

    def begins(loop: Loop) -> None:
        fault.at = loop.state.step + 1

    def dies(name: str, which: Callable[..., bool] = lambda *_, **__: True) -> Callable[..., None]:
        def look(*args: Any, **kwargs: Any) -> None:
            if fault.reached(name) and which(*args, **kwargs):
                _die()

        PLACES.add(name)
        return look

    def half_a_line(run: folder.RunFolder, step: int, metrics: Any) -> None:
        if fault.reached("half a line of metrics") and "reward/mean" in metrics:
            with run.metrics_file.open("a") as file:
                file.write('{"step": 9')
            _die()

    def half_a_file(path: Path, write: Callable[[Path], Any]) -> None:
        for name in ("rollouts", "credit"):
            if fault.reached(f"half a file of {name}") and path.parent.name == name:
                write(path.with_name(path.name + ".part"))
                _die()

    progress.unseen = fault.phase
    _around(Flight, "_progress", lambda _, *said: fault.phase(*said))
    _around(Loop, "_one_step", begins)
    _around(Loop, "_steps", lambda loop: setattr(fault, "at", loop.state.step))
    _around(Engine, "update", after=dies("an update is made"))
    _around(Learner, "learn", after=dies("all is learnt"))
    _around(folder.RunFolder, "log_metrics", half_a_line, dies("metrics are written", lambda *a: "reward/mean" in a[2]))
    _around(folder.RunFolder, "log_metrics", after=dies("an evaluation is written", lambda *a: "time/eval_s" in a[2]))
    _around(folder, "replace", half_a_file)
    _around(Engine, "save", after=dies("an engine is saved"))
    _around(checkpoint, "_write_models", dies("all but the model is saved"))
    is_new = lambda path, _: path.name.startswith(".step-")  # noqa: E731
    is_old = lambda path, _: path.name.startswith("step-") and path.parent.name == "checkpoints"  # noqa: E731
    _around(Path, "rename", dies("a checkpoint is whole", is_new), dies("a checkpoint is seen", is_new))
    _around(Path, "rename", after=dies("an old checkpoint is hidden", is_old))
    _around(gloo, "send", dies("weights are announced"), dies("weights are sent"))
    _around(folder.RunFolder, "cut_after", dies("resumed"), dies("what is made again is cut off"))


PLACES = {*PHASES, "half a line of metrics", "half a file of rollouts", "half a file of credit"}
"""All places, once one was armed."""


def tell_the_second_rank(step: int) -> None:
    """Send it SIGTERM while it samples for that step, and let the time pass that there is to save."""
    from rlkit.interfaces import progress
    from rlkit.loop.base import Loop

    at = [0]

    def tell(phase: str, done: int = 0, total: int = 0) -> None:
        if (phase, done, at[0], os.environ["RANK"]) == ("sampling", 1, step, "1"):
            signal.raise_signal(signal.SIGTERM)
            time.sleep(60)

    progress.unseen = tell
    _around(Loop, "_one_step", lambda loop: at.append(loop.state.step + 1) or at.pop(0))


def live(job: dict[str, Any]) -> NoReturn:
    """One life of a run, in a process of its own."""
    from rlkit import config as configs
    from rlkit.assembly import run as runs
    from rlkit.engine import distributed
    from rlkit.errors import StoppedError

    if job["fault"] is not None and job["fault"][0] == TOLD:
        tell_the_second_rank(job["fault"][1])
    elif job["fault"] is not None:
        arm(*job["fault"])
    config = configs.load(job["config"], job["settings"], job["algo"])
    try:
        runs.train(config, resume=job["resume"], quiet=True)
    except StoppedError as stopped:
        distributed.leave(stopped.exit_code)
    distributed.leave(0)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print while they are imported

    # All that a life imports, so that none does.
    import deepspeed  # noqa: F401
    import matplotlib.backends.backend_agg  # noqa: F401
    import pandas  # noqa: F401
    import peft  # noqa: F401
    import transformers.models.qwen3.modeling_qwen3  # noqa: F401

    from rlkit import config as configs
    from rlkit.assembly import build, ending  # noqa: F401
    from rlkit.assembly import run as runs
    from rlkit.generation import transformers as sampler  # noqa: F401
    from rlkit.loop import learner, one_ahead, synchronous  # noqa: F401
    from rlkit.report import curve  # noqa: F401

    runs.prepare_environment()
    configs.resolve(configs.load("embedded_xs"))
    for line in sys.stdin:
        job = json.loads(line)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        shared = {"WORLD_SIZE": str(job["ranks"]), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        left, codes = {}, {}
        for rank in range(job["ranks"]):
            if (pid := os.fork()) == 0:
                log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                for stream in (1, 2):
                    os.dup2(log, stream)
                if job["ranks"] > 1:
                    os.environ |= {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                try:
                    live(job)
                except BaseException:
                    import traceback

                    traceback.print_exc()
                    sys.stderr.flush()
                os._exit(1)
            left[pid] = rank
        while left:
            pid, status = os.wait()
            codes[left.pop(pid)] = os.waitstatus_to_exitcode(status)
            # As the parent of --nproc does: those that were told to end do so by themselves.
            if not set(codes.values()) <= {0, 143}:
                for other in left:
                    os.kill(other, signal.SIGKILL)
        print(json.dumps([codes[rank] for rank in range(job["ranks"])]), file=answers, flush=True)


class Lives:
    """The process that forks, as tests have it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / "forks.log").open("w"),
            text=True,
        )

    def live(
        self, run: Path, algo: str, settings: Sequence[str], ranks: int = 1, fault: tuple[str, int] | None = None
    ) -> list[int]:
        """Begin the run, or go on with it from its newest checkpoint. Returns the ranks' exit codes, as Popen has
        them."""
        resume = any((run / "checkpoints").glob("step-*"))
        here = [f"out={run.parent}", f"name={json.dumps(run.name)}"]
        job = {
            "config": str(run / "config.yaml") if resume else "embedded_xs",
            "settings": here if resume else [*here, *settings],
            "algo": None if resume else algo,
            "resume": resume,
            "ranks": ranks,
            "fault": fault,
            "log": str(self.folder / f"{run.name}.log"),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(job), file=self._process.stdin, flush=True)
        codes: list[int] = json.loads(self._process.stdout.readline())
        return codes

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


if __name__ == "__main__":
    main()
