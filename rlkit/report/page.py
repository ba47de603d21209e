"""Puts a run's page together."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from rlkit.config import PluginRef, RunConfig
from rlkit.errors import ConfigError
from rlkit.pages import Chart, Clock, Series, as_json, render
from rlkit.records.folder import RunFolder
from rlkit.records.metrics import Metrics, held_out_names, last_step, series
from rlkit.records.samples import evenly, step_files
from rlkit.records.statistics import final_value, last_tenth
from rlkit.report.curve import suite_of
from rlkit.report.distributions import Step, by_prompt, histograms, read_steps
from rlkit.report.panels import evaluation, learning, noise, parts, sections
from rlkit.report.stored import STEPS, stored
from rlkit.report.warnings import warnings_of
from rlkit.secrets import hide
from rlkit.wording import duration, number

PHASES = {
    "sample": "sampling",
    "score": "waiting for rewards",
    "measure": "log-probs without gradient",
    "update": "updates",
    "sync": "weights to the sampler",
    "eval": "evaluation",
    "learner_waited": "waiting for samples",
}
"""Phase -> what it is. All are parts of time/step_s but the evaluation, which comes on top of it."""


@dataclass(frozen=True)
class Phase:
    name: str
    seconds: float
    """Of the whole run."""
    share: float
    each: float
    """Seconds a step in which it took place."""
    color: int


def write(run: Path) -> Path:
    """Write RUN/report.html, of a run that is over or still going, and return its path.

    What cannot be read of its samples is left out, and said on the page. ConfigError where no run is there, RlkitError
    for other files of it that are damaged, OSError where the page cannot be written.
    """
    folder = RunFolder.open(run)
    if not folder.metrics_file.is_file():
        raise ConfigError(f"{folder.path} holds no metrics.jsonl: a report needs the numbers of the run")
    metrics, config = folder.read_metrics(), folder.read_config()
    phases = timing(metrics)
    steps = list(step_files(folder.rollouts))
    chosen = evenly(steps, STEPS)
    spread = read_steps(folder, chosen)
    render(
        "report",
        folder.report,
        name=folder.path.resolve().name,
        line=_line(config),
        state=_state(metrics, config.steps),
        facts=_facts(metrics),
        warnings=warnings_of(metrics, config),
        learning=learning(metrics),
        parts=parts(metrics),
        noise=noise(metrics),
        noises=[_ref(each) for each in config.noise],
        evaluation=evaluation(metrics),
        results=results(metrics),
        sections=sections(metrics, config.model.dtype),
        phases=phases,
        seconds=_seconds_chart(metrics, phases),
        clocks=_clocks(metrics),
        by_prompt=by_prompt(spread),
        spread=_spread(spread),
        samples=stored(folder, chosen),
        chosen=len(chosen),
        steps=len(steps),
        path=shlex.quote(str(folder.path)),
        settings=hide(yaml.safe_dump(config.dump(), sort_keys=False, allow_unicode=True)),
        provenance=_provenance(folder),
    )
    return folder.report


def timing(metrics: Metrics) -> list[Phase]:
    """Seconds by phase over the whole run; what a step took beyond its phases is `other`. Empty without numbers."""
    found = {phase: series(metrics, f"time/{phase}_s")[1] for phase in PHASES}
    steps = series(metrics, "time/step_s")[1]
    rest = sum(steps) - sum(sum(values) for phase, values in found.items() if phase != "eval")
    named = [(PHASES[key], sum(values), len(values), at) for at, (key, values) in enumerate(found.items()) if values]
    if steps and rest > 0:
        named.append(("other", rest, len(steps), len(PHASES)))
    whole = sum(seconds for _, seconds, _, _ in named)
    return [Phase(name, seconds, seconds / whole, seconds / n, at) for name, seconds, n, at in named] if whole else []


@dataclass(frozen=True)
class Result:
    suite: str
    first: tuple[int, float]
    """Step, pass rate."""
    last: tuple[int, float]
    best: tuple[int, float]


def results(metrics: Metrics) -> list[Result]:
    """Pass rate on each set of held-out problems: before, at the end, and the best in between."""
    found = []
    for name in held_out_names(metrics):
        points = list(zip(*series(metrics, name), strict=True))
        if points:
            best = max(points, key=lambda point: point[1])
            found.append(Result(suite_of(name), points[0], points[-1], best))
    return found


def _facts(metrics: Metrics) -> list[tuple[str, str, str]]:
    """(what, number, what it is of) for the top of the page."""
    facts = []
    for name, label in (("reward/clean", "clean reward"), ("reward/pass_rate", "pass rate in training")):
        steps, values = series(metrics, name)
        if steps and (name == "reward/clean" or values != series(metrics, "reward/clean")[1]):
            last = last_step(metrics)
            end = steps[last_tenth(steps, last)]
            since = f"steps {end[0]} to {end[-1]}" if len(end) > 1 else f"step {end[0]}"
            facts.append((label, number(final_value(steps, values, last)), since))
    for result in results(metrics):
        (began, before), (ended, after) = result.first, result.last
        since = f"step {ended}; {number(before)} at step {began}" if ended > began else f"step {ended}"
        facts.append((result.suite, number(after), since))
    steps, seconds = series(metrics, "time/step_s")
    if steps:
        facts.append(("a step", duration(sum(seconds) / len(seconds)), f"{duration(sum(seconds))} in all"))
    _, speed = series(metrics, "throughput/tokens_per_s")
    if speed:
        facts.append(("tokens a second", number(sum(speed) / len(speed)), "of responses, mean over steps"))
    return facts


def _line(config: RunConfig) -> str:
    disturbed = " and ".join(_ref(each) for each in config.noise) or "no noise"
    shape = f"{config.batch.prompts_per_step} prompts x {config.batch.samples_per_prompt} samples a step"
    replayed = f", replayed from {config.replay.run}" if config.replay else ""
    acts = f", acting in {config.environment.kind}" if config.environment else ""
    return (
        f"{config.algo.kind} on {config.data.path}{acts}, model {config.model.path}, {shape}, {disturbed}, "
        f"seed {config.seed}{replayed}"
    )


def _ref(ref: PluginRef) -> str:
    return " ".join([ref.kind, *(f"{key} {value}" for key, value in ref.options.items())])


def _state(metrics: Metrics, steps: int) -> str:
    done = last_step(metrics)
    return f"all {steps} steps are done" if done >= steps else f"{done} of {steps} steps: it goes on, or was stopped"


def _seconds_chart(metrics: Metrics, phases: Sequence[Phase]) -> Chart | None:
    labels = {label: name for name, label in PHASES.items()}
    shown = [
        Series(phase.name, *series(metrics, f"time/{labels[phase.name]}_s"), color=phase.color, marks=phase.color == 5)
        for phase in phases
        if phase.name in labels
    ]
    return Chart("Seconds by phase", shown, y_label="seconds", y_min=0) if shown else None


def _clocks(metrics: Metrics) -> dict[str, Clock]:
    """What the steps took; nothing where it is not known of each of them."""
    steps, seconds = series(metrics, "time/step_s")
    measured, speed = series(metrics, "throughput/tokens_per_s")
    if not steps:
        return {}
    tokens = [a * b for a, b in zip(seconds, speed, strict=True)] if measured == steps else []
    return {"": Clock(steps, list(itertools.accumulate(tokens)), list(itertools.accumulate(seconds)))}


def _spread(steps: Sequence[Step]) -> str | None:
    """The histograms as JSON; None where there are none."""
    made = histograms(steps)
    shown = {"steps": [step.number for step in steps], "histograms": [asdict(each) for each in made]}
    return as_json(shown) if made else None


def _provenance(folder: RunFolder) -> list[tuple[str, str]]:
    """Rows of (what, value); empty where the file is not there."""
    record = folder.read_provenance()
    if not record:
        return []
    git = record["git"]
    rows = [
        ("started", record["time"]),
        ("command", hide(shlex.join(record["command"]))),
        ("git commit", f"{git['commit']}{', with changes' if git['changed'] else ''}" if git else "none"),
        ("platform", f"{record['platform']}, {record['cores']} cores"),
        ("versions", ", ".join(f"{name} {version}" for name, version in record["versions"].items())),
        ("plugins", ", ".join(f"{name} from {source}" for name, source in record["plugins"].items())),
    ]
    rows += [("resumed", f"after step {each['after_step']}, {each['time']}") for each in record["resumed"]]
    return rows
