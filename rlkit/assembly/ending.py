"""What is made of a run when it is over: its picture and report, a summary, and what to type to go on."""

from __future__ import annotations

import warnings
from pathlib import Path

from rlkit import ranks
from rlkit.errors import RlkitError
from rlkit.tracking.terminal import columns
from rlkit.wording import folded, visible


def summary(folder: Path) -> str:
    """What came out of a run, what is wrong with it, and where to look."""
    from rlkit import report
    from rlkit.records import checkpoints
    from rlkit.records.folder import RunFolder
    from rlkit.records.metrics import last_step
    from rlkit.report import curve

    run = RunFolder.open(folder)
    metrics, config = run.read_metrics(), run.read_config()
    steps = config.steps
    lines = ["", curve.text(metrics), ""]
    for warning in report.warnings_of(metrics, config):
        lines += [folded(f"warning: {warning}", columns(), indent=2), ""]
    lines.append(f"  picture  {run.learning_curve}")
    if run.report.is_file():
        lines.append(f"  report   {run.report}")
    if (by := config.checkpoint.best) and (best := checkpoints.best(run.checkpoints, metrics, by)):
        lines.append(f"  best     {best} ({by})")
    lines.append(f"  run      {folder}")
    done = last_step(metrics)
    if done < steps:
        lines.append(f"  stopped after step {done} of {steps}; {going_on(folder)}")
    return visible("\n".join(lines))


def going_on(folder: Path) -> str:
    """What to type to resume a run that was started as this one."""
    if ranks.starter() not in ("", ranks.NPROC):
        return f"to go on, start it in the same way with `--resume {folder}` in place of config and name"
    count = ranks.world_size()
    said = count > 1 or len(ranks.visible_gpus()) > 1  # without it there would be one on each
    return f"go on with: rlkit run --resume {folder}{f' --nproc {count}' if said else ''}"


def draw(folder: Path) -> None:
    from rlkit import report
    from rlkit.records.folder import RunFolder
    from rlkit.report import curve

    run = RunFolder.open(folder)
    try:
        curve.draw(run.read_metrics(), run.learning_curve, title=folder.name)
        report.write(folder)
    except (OSError, RlkitError) as error:
        warnings.warn(
            f"the run is whole, but its picture or its report could not be written: {error}. `rlkit report {folder}` "
            "tries again",
            stacklevel=2,
        )
