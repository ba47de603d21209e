"""What one step ahead saves: the same run in turn with either schedule, on a server of its own, in seconds a step.

    python tools/bench/schedules.py --rounds 3

It wants two cores, one for the server and one for the learner, and vLLM.
"""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from rlkit import config as configs
from rlkit.records.folder import RunFolder

SCHEDULES = ("synchronous", "one_ahead")
PHASES = ("step_s", "sample_s", "ahead_s", "measure_s", "update_s", "sync_s", "learner_waited_s", "sampler_waited_s")


@click.command()
@click.argument("preset", default="embedded")
@click.option("--rounds", default=3)
@click.option("--steps", default=8, help="Of each run; the first two warm up, and are left out.")
@click.option("--algo", default="grpo")
@click.option("-s", "settings", multiple=True)
@click.option("--json", "out", type=click.Path(path_type=Path))
def main(preset: str, rounds: int, steps: int, algo: str, settings: tuple[str, ...], out: Path | None) -> None:
    found: dict[str, dict[str, list[float]]] = {name: {phase: [] for phase in PHASES} for name in SCHEDULES}
    with tempfile.TemporaryDirectory() as folder, served(configs.load(preset, settings, algo).model.path) as url:
        for number in range(rounds):
            for schedule in SCHEDULES:
                name = f"{schedule}-{number}"
                run = [sys.executable, "-m", "rlkit", "run", preset, "--algo", algo, "--quiet", "--name", name]
                set_ = [
                    f"sampler={{kind: vllm_server, urls: ['{url}']}}", f"schedule={schedule}", f"steps={steps}",
                    f"out={folder}", "eval.every=0", "eval.problems=4", "checkpoint.every=0", *settings,
                ]  # fmt: skip
                subprocess.run([*run, *(part for one in set_ for part in ("-s", one))], check=True)
                for row in RunFolder.open(Path(folder) / name).read_metrics():
                    if row["step"] > 2 and "time/step_s" in row:
                        for phase in PHASES:
                            found[schedule][phase].append(row.get(f"time/{phase}", 0.0))
                click.echo(f"{name} done", err=True)
    print(f"| schedule | {' | '.join(phase.removesuffix('_s') for phase in PHASES)} |")
    print("|---" * (len(PHASES) + 1) + "|")
    for schedule, phases in found.items():
        print(f"| {schedule} | {' | '.join(shown(values) for values in phases.values())} |")
    one, other = (statistics.median(found[schedule]["step_s"]) for schedule in SCHEDULES)
    print(f"\nsynchronous takes {one / other:.2f} times as long")
    if out is not None:
        out.write_text(json.dumps(found, indent=1))


def shown(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})" if any(values) else ""


@contextmanager
def served(model: str) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen([sys.executable, "-m", "rlkit", "serve", model, "--port", str(port)])
    try:
        while True:
            if server.poll() is not None:
                raise SystemExit("the server did not start")
            try:
                urllib.request.urlopen(f"{url}/health", timeout=1)
                break
            except OSError:
                time.sleep(0.5)
        yield url
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
