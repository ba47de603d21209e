"""Who waits for what, and since when: said when it takes unusually long; and where no sign of life comes at all, the
run is ended, with the stacks of all ranks left behind.

Each rank has a thread that watches. It counts by the ticks it has made itself: of the time in which the process was
stopped, or the machine asleep, nobody can say that nothing happened. What the ranks tell each other here goes through
files, since whatever else joins them may be what hangs.
"""

from __future__ import annotations

import contextlib
import faulthandler
import math
import os
import re
import socket
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from rlkit import ranks
from rlkit.blame import place
from rlkit.errors import StalledError
from rlkit.files import replace
from rlkit.interfaces.progress import Progress, signs, unseen, waited_for
from rlkit.records import checkpoints
from rlkit.records.folder import RunFolder
from rlkit.wording import duration

LONG_S = 60.0
"""After so long in a phase, or without a sign of life, it is said what goes on; then after twice as long each time."""
GRACE_S = 10.0
"""How long a rank that ends the run waits for the stacks of the others."""
POLL_S = 1.0
_LONGEST_TICK_S = 5.0
_SPOKEN_S = 2.0
"""In which the rank that says it does so, before the others end: whoever started them ends all then."""

At = tuple[int, str, int, int]
"""Which phase since the beginning, its name, done, total."""


@dataclass
class Patience:
    """What was seen of a run so far, and whether that is unusual."""

    for_s: float = 0.0
    """In the phase in hand."""
    silent_s: float = 0.0
    """Without a sign of life."""
    _at: At = (0, "", 0, 0)
    _signs: int = 0
    _longest: dict[str, float] = field(default_factory=dict)
    """Phase -> the longest that it has taken, where it was there before."""
    _phase_due: float = LONG_S
    _silence_due: float = LONG_S

    def look(self, at: At, signs: int, passed: float) -> bool:
        """Whether something is to be said. `passed`: seconds since the last look."""
        if at[0] != self._at[0]:
            name = self._at[1]
            self._longest[name] = max(self.for_s, self._longest.get(name, 0.0))
            self.for_s, self._phase_due = 0.0, max(LONG_S, 2 * self._longest.get(at[1], 0.0))
        else:
            self.for_s += passed
        if (at, signs) != (self._at, self._signs):
            self.silent_s, self._silence_due = 0.0, LONG_S
        else:
            self.silent_s += passed
        self._at, self._signs = at, signs
        if self.for_s < self._phase_due and self.silent_s < self._silence_due:
            return False
        self._phase_due = max(self._phase_due, 2 * self.for_s)
        self._silence_due = max(self._silence_due, 2 * self.silent_s)
        return True

    def said(self) -> str:
        """sampling: 41 of 64, for 2 min 00 s; nothing new for 1 min 05 s."""
        _, phase, done, total = self._at
        text = f"{phase}: {done} of {total}" if total > 1 else phase
        text += f", for {duration(self.for_s)}"
        if self.silent_s >= 10:
            text += f"; nothing new for {duration(self.silent_s)}"
        if what := waited_for():
            text += f"; waiting for {what}"
        return text


class Watch:
    """A Progress, which notes what it is told and passes it on; every rank has one, until it is closed."""

    def __init__(self, run: RunFolder, then: str, say: Callable[[str], None] | None) -> None:
        """`then`: how the run goes on from a checkpoint, for the end of a message. `say`: gets a line where something
        takes long; None: nobody reads them."""
        self.shown: Progress = unseen
        """Who shows it to people."""
        self.before_end: Callable[[], None] = _nothing
        """Called before the process ends: the terminal is left as it was."""
        self.limit_minutes = math.inf
        """Without a sign of life, after which the run is ended."""
        self._run_folder = run
        self._then = then
        self._say = say
        # All ranks begin before the first of them can stall, so they count alike.
        earlier = len(list(run.stalls.iterdir())) if run.stalls.is_dir() else 0
        self._stacks = run.stalls / str(earlier + 1)
        self._at: At = (0, "starting", 0, 0)
        self._patience = Patience()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="rlkit-watch", daemon=True)
        self._thread.start()

    def __call__(self, phase: str, done: int = 0, total: int = 0) -> None:
        number, before, *_ = self._at
        self._at = (number + (phase != before), phase, done, total)
        self.shown(phase, done, total)

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._over.wait(POLL_S):
            now = time.monotonic()
            passed, before = min(now - before, _LONGEST_TICK_S), now
            due = self._patience.look(self._at, signs(), passed)
            if due and self._say is not None:
                with contextlib.suppress(OSError, ValueError):  # nobody reads any more
                    self._say(self._patience.said())
            if self._patience.silent_s >= 60 * self.limit_minutes or (ranks.world_size() > 1 and self._dumped()):
                self._end()

    def _end(self) -> NoReturn:
        """Not by an exception: what hangs in a collective or a driver would never see it."""
        own, count = ranks.rank(), ranks.world_size()
        trouble = self._dump()
        limit = time.monotonic() + GRACE_S
        while len(there := self._dumped()) < count and not trouble and time.monotonic() < limit:
            time.sleep(0.2)
        if own == min(there, default=own):
            _within(2.0, self.before_end)
            prefix = f"rlkit (rank {own})" if own else "rlkit"
            _within(2.0, lambda: print(f"{prefix}: {self._sentence(there, trouble)}", file=sys.stderr, flush=True))
        else:
            time.sleep(_SPOKEN_S)
        os._exit(StalledError.exit_code)

    def _dump(self) -> str:
        """The stacks of this rank's threads, in a file. What went wrong with that, if anything did."""
        first = f"rank {ranks.rank()} of {ranks.world_size()}, on {socket.gethostname()}: {self._patience.said()}"
        first += _busy_at()

        def write(path: Path) -> None:
            with path.open("w", encoding="utf-8") as file:
                print(first, end="\n\n", file=file, flush=True)
                faulthandler.dump_traceback(file, all_threads=True)

        try:
            self._stacks.mkdir(parents=True, exist_ok=True)
            replace(self._stacks / f"rank-{ranks.rank()}.txt", write)
        except OSError as error:
            faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
            return f"{first}\nThe stacks stand above, since {self._stacks} could not be written: {error}"
        return ""

    def _dumped(self) -> dict[int, Path]:
        """The ranks that have left their stacks."""
        with contextlib.suppress(OSError):
            names = ((re.fullmatch(r"rank-(\d+)\.txt", file.name), file) for file in self._stacks.iterdir())
            return {int(match[1]): file for match, file in sorted(names, key=lambda n: n[1]) if match}
        return {}

    def _sentence(self, there: dict[int, Path], trouble: str) -> str:
        said = [there[rank].read_text(encoding="utf-8").splitlines()[0] for rank in sorted(there)[:8]]
        silent = [rank for rank in range(ranks.world_size()) if rank not in there]
        if silent and not trouble:
            said.append(
                f"no answer from rank {', '.join(map(str, silent))}: stopped, stuck or ended, or the machine is gone"
            )
        newest = checkpoints.latest(self._run_folder.checkpoints)
        stacks = trouble or f"The stacks of all threads: {self._stacks}"
        log = self._run_folder.rewards_log
        if any(": scoring" in line for line in said) and log.is_file():
            stacks += f"\nThose of rewards that are near their deadline (scoring.timeout_s): {log}"
        return "\n".join(
            [
                f"the run is ended: no sign of life for {duration(60 * self.limit_minutes)} (engine.timeout_minutes). "
                "Where it was merely slow, raise that",
                *(f"  {line}" for line in said),
                stacks,
                f"{f'The last checkpoint is {newest}' if newest else 'There is no checkpoint yet'}; {self._then}",
            ]
        )


def _nothing() -> None:
    pass


def _within(seconds: float, action: Callable[[], None]) -> None:
    """Try it: a lock of the terminal's may be held by what hangs."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(seconds)


def _busy_at() -> str:
    """Where the main thread is, in rlkit's code or a plugin's, for the end of a line."""
    paths = sysconfig.get_paths()
    libraries = tuple(paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    for each, line in traceback.walk_stack(frame):
        file, module = each.f_code.co_filename, str(each.f_globals.get("__name__", ""))
        if module.startswith("rlkit") or not file.startswith((*libraries, "<")):
            return f"; at {place(file, line)}, {each.f_code.co_name}"
    return ""
