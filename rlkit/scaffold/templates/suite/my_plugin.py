"""my_plugin: an evaluation suite for rlkit. What stands here is a few additions: make it yours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlkit import suite
from rlkit.evaluation.suites import Suite


def rows(folder: Path | None) -> list[dict[str, Any]]:
    """The problems. `folder` is that of local copies, where the user gives one (`rlkit eval --data FOLDER`): look for
    your file there, and else fetch it. `rlkit.evaluation.suites.table` does both for a data set on the hub."""
    pairs = [(17, 25), (48, 36), (59, 74), (86, 13)]
    return [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a, b in pairs]


@suite("my_plugin")
def my_plugin() -> Suite:
    """Four additions of two-digit numbers"""
    return Suite(
        load=rows,
        # Fewer or more are an error: figures of another data set could not be compared.
        count=4,
        # The text around a question, with {prompt} for it; None: the bare question.
        template=None,
        # Any reward by its name; its options go into `options`.
        reward="final_answer",
        # Responses to each problem, and the figure that the suite is quoted by: mean, pass or maj.
        samples=1,
        metric="mean",
    )
