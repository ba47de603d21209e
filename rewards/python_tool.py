"""The tool `python`: code of the model's, in the sandbox of the reward `code`."""

from __future__ import annotations

import time

from rlkit.wording import number

from .sandbox import Cells, Ran, Sandbox
from .toolbox import ToolError

_LEAST_S = 0.1


class Python:
    """For one trajectory at a time.

    sandbox: tried out; its limits hold for each call, but that all calls of a turn share the time.
    keep_state: what a call defines is there for the next one.
    """

    def __init__(self, sandbox: Sandbox, *, keep_state: bool) -> None:
        # A uid for each run: of one sandbox, all processes of the machine share the uid.
        self._sandbox = sandbox
        self._keep_state = keep_state
        self._cells: Cells | None = None
        self._left_s = sandbox.limits.timeout_s

    def new_trajectory(self) -> None:
        self._end()
        self.new_turn()

    def new_turn(self) -> None:
        self._left_s = self._sandbox.limits.timeout_s

    def python(self, code: str) -> str:
        """Runs Python code and returns what it prints, and the value of its last expression.

        Args:
            code: The code. Only Python's standard library is there, and no network.
        """
        limits = self._sandbox.limits
        if self._left_s < _LEAST_S:
            raise ToolError(f"not run: the code of one turn may take {number(limits.timeout_s)} s together")
        lost = " What earlier code has defined is lost." if self._keep_state and self._cells is not None else ""
        cells = self._cells = self._cells or Sandbox(limits, unsafe=self._sandbox.unsafe).cells()
        began = time.monotonic()
        try:
            ran = cells.run(code, self._left_s)
        finally:
            self._left_s -= time.monotonic() - began
        if ran.end != "said" or not self._keep_state:
            self._end()
        said = self._fault(ran)
        printed = ran.output.decode(errors="replace")
        if said is None:
            return printed
        lost = lost if ran.end != "said" else ""
        raise ToolError(f"{said}{lost}" + (f"\nUntil then it printed:\n{printed}" if printed else ""))

    def _fault(self, ran: Ran) -> str | None:
        limits = self._sandbox.limits
        if ran.end == "time":
            return f"stopped: the code of one turn may take {number(limits.timeout_s)} s."
        if ran.end == "output":
            return f"stopped: code may print {limits.output_kib:,} KiB."
        if ran.end == "exit":
            return "the process that runs the code ended: it was killed, crashed, or ended itself."
        return ran.errors or None

    def _end(self) -> None:
        cells, self._cells = self._cells, None
        if cells is not None:
            cells.close()
