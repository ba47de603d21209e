"""The command that holds plugins against their contracts: check."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import click

from rlkit.errors import ConfigError
from rlkit.wording import visible

PATIENCE_S = 2.0
"""After which a check that is still being made says so."""


@click.command()
@click.argument("asked", metavar="PLUGIN...", nargs=-1, required=True)
@click.option(
    "-s",
    "--set",
    "overrides",
    multiple=True,
    metavar="OPTION=VALUE",
    help="An option of the plugin; of one of several: NAME.OPTION=VALUE.",
)
@click.option(
    "--data",
    type=click.Path(exists=True, path_type=Path),
    metavar="FILE|FOLDER",
    help="For a reward: a .json, .jsonl or .parquet file whose rows it judges; for an environment: one whose rows it "
    "begins from.  [made ones]  For a suite: a folder of local copies.  [the hub]",
)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON instead.")
def check(asked: tuple[str, ...], overrides: tuple[str, ...], data: Path | None, as_json: bool) -> None:
    """Hold plugins against their contracts, and say in sentences what is wrong.

    A PLUGIN is a file, a module, or a registered name (`grpo`; `rewards/math` where several kinds have it). Exit code
    0: all is well; 1: a check fails; 2: a plugin cannot be loaded.

    \b
    rlkit check reinforce.py -s decay=0.5
    rlkit check rewards/math --data test.jsonl
    """
    from rlkit.assembly.run import prepare_environment
    from rlkit.conformance import asked as asking
    from rlkit.conformance import report
    from rlkit.conformance.environments import read_tasks
    from rlkit.conformance.examining import examine
    from rlkit.conformance.findings import title
    from rlkit.conformance.rewards import read_samples

    prepare_environment()
    plugins = asking.plugins_of(asked)
    options = asking.options_of(plugins, overrides)
    samples = tasks = folder = None
    if data is not None:
        given, kinds = ("file", {"rewards", "environments"}) if data.is_file() else ("folder", {"suites"})
        asked_for = {plugin.kind for plugin in plugins}
        if asked_for.isdisjoint(kinds):
            raise ConfigError(
                f"--data {data}: a {given} is for {' and '.join(sorted(kinds))}, and there are none to check"
            )
        samples = read_samples(str(data)) if "rewards" in asked_for & kinds else None
        tasks = read_tasks(str(data)) if "environments" in asked_for & kinds else None
        folder = data if data.is_dir() else None
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    found: list[dict[str, Any]] = []
    lines: list[str] = []
    for plugin, chosen in zip(plugins, options, strict=True):
        if not as_json:
            click.secho(title(plugin), bold=True)
        findings = []
        # What the plugin prints is no JSON.
        with _Patience() as patience, redirect_stdout(sys.stderr) if as_json else nullcontext():
            for finding in examine(plugin, chosen, samples=samples, tasks=tasks, folder=folder, begins=patience.begins):
                findings.append(finding)
                if not as_json:
                    click.secho(visible(report.line(finding, width)), fg="red" if finding.wrong else None)
        found.append(report.as_data(plugin, findings))
        lines.append(report.summary(plugin, findings))
    click.echo(json.dumps(found, indent=2, ensure_ascii=False) if as_json else visible("\n".join(lines)))
    sys.exit(0 if all(each["passed"] for each in found) else 1)


class _Patience:
    """Says what is being checked, where that takes long."""

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None

    def begins(self, says: str) -> None:
        self._end()
        self._timer = threading.Timer(PATIENCE_S, click.echo, [f"  ...       checking whether {says}"], {"err": True})
        self._timer.daemon = True
        self._timer.start()

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def __enter__(self) -> _Patience:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
