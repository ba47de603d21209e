"""Trackers held against their contract: they bear what a run may log, and leave alone what is not theirs."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from rlkit import config as configs
from rlkit import registry
from rlkit.conformance.findings import Broken, Check
from rlkit.records.folder import RunFolder
from rlkit.registry import Plugin
from rlkit.tracking import RunInfo, Tracker

ODD = {
    "reward/mean": math.nan,
    "policy/loss": math.inf,
    "an odd name, with é and ␛": 1.0,
    "a/b/c/d": -0.0,
    "m" * 300: 1e300,
}
HOSTILE = "\x1b[2J\x00\u202e\ud800" + "a" * 10_000
STEPS = 5


def checks(plugin: Plugin, options: dict[str, Any]) -> Iterator[Check]:
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place), _offline():
        subject = _Subject(plugin, options, Path(place))
        yield Check("it takes a run's metrics", subject.metrics, first=True)
        yield Check("it takes NaN, infinities and odd names", subject.odd)
        yield Check("it takes responses, whatever characters they hold", subject.samples)
        yield Check("it takes steps that are made again after a resume", subject.resumed)
        yield Check("it closes", lambda: subject.tracker.close())
        yield Check("it writes in the run's folder alone, and leaves the run's own files", subject.stays)


class _Subject:
    def __init__(self, plugin: Plugin, options: dict[str, Any], place: Path) -> None:
        self.plugin, self.options, self.place = plugin, options, place
        self.folder = place / "runs" / "checked"
        run = RunFolder(self.folder)
        self.ours = (run.config_file, run.metrics_file, run.provenance_file, run.rollout_file(1))
        for file in self.ours:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(file.name)

    @cached_property
    def tracker(self) -> Tracker:
        run = RunInfo(name="checked", folder=self.folder, config=configs.load("embedded_xs").dump(), steps=STEPS)
        made: Tracker = registry.build("trackers", self.plugin.name, self.options, run)
        return made

    def metrics(self) -> None:
        for step in (1, 2):
            self.tracker.log(step, {"reward/mean": 0.5, "policy/loss": -0.1, "updates/skipped": 0})
        self.tracker.log(3, {})

    def odd(self) -> None:
        for name, value in ODD.items():
            try:
                self.tracker.log(4, {name: value})
            except Exception as error:
                raise Broken(
                    f"it raised {type(error).__name__}: {error} on {value!r} under the name {name[:40]!r}"
                ) from error

    def samples(self) -> None:
        row: dict[str, Any] = {
            "prompt": "47+85=", "question": "47+85=", "response": "#### 132", "answer": "132", "found": "132",
            "reward": 1.0, "clean_reward": 1.0, "status": "ok", "length": 8, "truncated": False,
        }  # fmt: skip
        hostile = {"response": HOSTILE, "reward": None, "clean_reward": None, "status": "error", "found": None}
        for rows in ([row], [], [row | hostile | {"answer": ""}] * 2):
            try:
                self.tracker.log_samples(4, rows)
            except Exception as error:
                what = ascii(rows[0]["response"][:8]) if rows else "no rows"
                raise Broken(f"it raised {type(error).__name__}: {error} on {len(rows)} responses, {what}") from error

    def resumed(self) -> None:
        self.tracker.log(2, {"reward/mean": 0.5})

    def stays(self) -> None:
        for file in self.ours:
            if not file.is_file() or file.read_text() != file.name:
                raise Broken(f"it changed the run's own {file.name}: write files of other names")
        outside = [
            path.relative_to(self.place)
            for path in self.place.rglob("*")
            if path.is_file() and not path.is_relative_to(self.folder)
        ]
        if outside:
            raise Broken(
                f"it wrote {', '.join(map(str, outside[:3]))} in the working directory: write under the run's folder "
                "(RunInfo.folder)"
            )


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """A check of wandb makes no run on its server."""
    before = os.environ.get("WANDB_MODE")
    os.environ["WANDB_MODE"] = "offline"
    try:
        yield
    finally:
        if before is None:
            del os.environ["WANDB_MODE"]
        else:
            os.environ["WANDB_MODE"] = before
