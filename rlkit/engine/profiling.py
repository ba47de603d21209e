"""Traces of some steps by torch's profiler, and which operators each phase of them spends its time in."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from rlkit.files import write_text
from rlkit.records.samples import step_name
from rlkit.wording import counted

MARK = "phase: "
SHOWN = 10
"""Operators of each phase in the table."""


def phase(name: str) -> record_function:
    """A context whose inside traces show as a phase of the step; without a profiler it does nothing."""
    return record_function(MARK + name)


class Profiler:
    """Watches steps of this process, the first left out, since it warms up."""

    def __init__(self, steps: int, folder: Path) -> None:
        """steps: how many to trace; 0: none. folder: where to write, once there is something."""
        self._left = steps
        self._asked = steps
        self._folder = folder
        self._warm = False
        self._spent: dict[str, Counter[str]] = defaultdict(Counter)
        """Phase -> operator -> microseconds, without those of the operators that it calls."""
        self._calls: dict[str, Counter[str]] = defaultdict(Counter)

    @property
    def table_file(self) -> Path:
        return self._folder / "operators.txt"

    @contextmanager
    def watch(self, step: int) -> Iterator[None]:
        """Trace what happens within, and write it down: STEP.json.gz, and the table of all steps so far."""
        if not self._left or not self._warm:
            self._warm = True
            yield
            return
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
        with profile(activities=activities, acc_events=True) as traced:
            yield
        self._left -= 1
        self._folder.mkdir(exist_ok=True)
        traced.export_chrome_trace(str(self._folder / f"{step_name(step)}.json.gz"))
        self._add(list(traced.events()))
        write_text(self.table_file, self.table())

    def _add(self, events: list[Any]) -> None:
        phases = [e for e in events if e.name.startswith(MARK) and e.device_type == DeviceType.CPU]
        for event in events:
            if event.name.startswith(MARK) or event.device_type != DeviceType.CPU:
                continue
            inside = (p for p in phases if p.time_range.start <= event.time_range.start < p.time_range.end)
            name = next((p.name.removeprefix(MARK) for p in inside), "other")
            own = event.self_device_time_total or event.self_cpu_time_total
            self._spent[name][event.name] += own
            self._calls[name][event.name] += 1

    def table(self) -> str:
        """Of each phase, the operators that take longest, where they run: on the GPU if they do, else on the CPU."""
        steps = self._asked - self._left
        lines = [f"Operators by their own time, of {counted(steps, 'step')}; milliseconds a step, calls a step", ""]
        for name, spent in sorted(self._spent.items(), key=lambda item: -item[1].total()):
            lines.append(f"{name}: {spent.total() / 1000 / steps:.1f} ms")
            for operator, micros in spent.most_common(SHOWN):
                calls = self._calls[name][operator] / steps
                lines.append(f"  {micros / 1000 / steps:10.2f}  {calls:8.0f}  {operator}")
            lines.append("")
        return "\n".join(lines)

    def said(self) -> str | None:
        """One line on what was traced, for people; None where nothing was asked for."""
        if not self._asked:
            return None
        traced = self._asked - self._left
        if not traced:
            return "profile: nothing was traced. The first step is left out, since it warms up, and there was no other"
        return (
            f"profile: {counted(traced, 'step')} in {self._folder}; open a trace in https://ui.perfetto.dev, "
            f"read {self.table_file.name}"
        )
