"""The charts of a run's page, from its metrics. What a run has no numbers for has no chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rlkit.pages import Chart, Series
from rlkit.records.metrics import Metrics, held_out_names, series
from rlkit.records.statistics import drawing_window, running_mean
from rlkit.report.curve import suite_of
from rlkit.report.warnings import ACTOR_RATIO, CLIPPED, CUT_TURNS, EQUAL_GROUPS, GAP_MEAN, KL_HIGH, TRUNCATED
from rlkit.wording import number


@dataclass(frozen=True)
class Panel:
    """Metrics that share a chart."""

    title: str
    curves: Mapping[str, str]
    """Metric -> what it is called beside the others."""
    unit: str = ""
    y_min: float | None = None
    log: bool = False
    line: float | None = None
    """The level that is warned of, drawn where the curves come near it."""


SECTIONS: Mapping[str, Sequence[Panel]] = {
    "Policy": (
        Panel("KL to the reference", {"policy/kl": "KL"}, "nats a token", line=KL_HIGH),
        Panel("Entropy", {"policy/entropy": "entropy"}, "nats a token", y_min=0),
        Panel("Gradient norm, before clipping", {"policy/grad_norm": "policy", "critic/grad_norm": "critic"}, y_min=0),
        Panel("KL from the weights that sampled", {"policy/approx_kl": "approximate KL"}, "nats a token", y_min=0),
        Panel("Ratio to the weights that sampled", {"policy/ratio_mean": "mean", "policy/ratio_max": "largest"}),
        Panel("Clip share", {"policy/clip_share": "clipped"}, "share of tokens", y_min=0, line=CLIPPED),
        Panel(
            "Weights of the correction", {"correction/weight_mean": "mean", "correction/weight_max": "largest"}, y_min=0
        ),
        Panel("Tokens that met the correction's limit", {"correction/limited": "share"}, "share of tokens", y_min=0),
        Panel("Policy loss", {"policy/loss": "loss"}),
        Panel("Learning rate", {"policy/lr": "policy", "critic/lr": "critic"}, y_min=0),
        Panel(
            "Gap between sampler and trainer",
            {"sampler/gap_mean": "mean", "sampler/gap_max": "largest"},
            "nats",
            log=True,
        ),
        Panel(
            "Gap between the weights that sampled what is replayed and those that learn",
            {"replay/gap_mean": "mean", "replay/gap_max": "largest"},
            "nats",
            log=True,
        ),
        Panel(
            "Updates left out",
            {"updates/skipped": "no valid sample", "updates/not_finite": "not finite"},
            "updates",
            y_min=0,
        ),
    ),
    "Conversations": (
        Panel("Turns", {"environment/turns": "turns"}, "a trajectory", y_min=0),
        Panel(
            "Cut before the environment has ended them",
            {"environment/cut": "cut", "environment/cut_turns": "at conversation.max_turns"},
            "share of trajectories",
            y_min=0,
            line=CUT_TURNS,
        ),
        Panel(
            "Tool calls",
            {"environment/tool_calls": "calls", "environment/tool_errors": "answered with an error"},
            "a trajectory",
            y_min=0,
        ),
        Panel("Waiting for the environment", {"time/environment_s": "seconds"}, "seconds a trajectory", y_min=0),
    ),
    "Responses": (
        Panel("Length", {"response/length": "mean", "response/length_max": "longest"}, "tokens", y_min=0),
        Panel("Truncated", {"response/truncated": "truncated"}, "share of responses", y_min=0, line=TRUNCATED),
        Panel(
            "Groups with equal rewards",
            {"groups/equal_rewards": "equal"},
            "share of groups",
            y_min=0,
            line=EQUAL_GROUPS,
        ),
        Panel(
            "Groups drawn and learnt from",
            {"refill/groups_drawn": "drawn", "refill/groups": "learnt from"},
            "groups",
            y_min=0,
        ),
        Panel(
            "Samples left out",
            {"samples/no_value": "without a value", "samples/invalid": "left out of the loss"},
            "samples",
            y_min=0,
        ),
    ),
    "Machine": (
        Panel("Throughput", {"throughput/tokens_per_s": "tokens"}, "response tokens a second", y_min=0),
        Panel(
            "Model FLOPs utilisation", {"throughput/mfu": "updates and measuring"}, "share of the GPU's peak", y_min=0
        ),
        Panel("Peak memory", {"memory/peak_gib": "memory"}, "GiB", y_min=0),
    ),
}

OWN_LINES = {"vimpo/actor_ratio": ACTOR_RATIO}
COMMON = [
    "correction",
    "eval",
    "groups",
    "memory",
    "policy",
    "refill",
    "response",
    "reward",
    "sampler",
    "samples",
    "throughput",
    "time",
    "updates",
]
"""Prefixes of what every run logs; other names are the algorithm's."""


@dataclass(frozen=True)
class Section:
    title: str
    charts: Sequence[Chart]
    constant: Sequence[str]
    """What never changed, in words, in place of a chart."""


def sections(metrics: Metrics, dtype: str) -> list[Section]:
    """Everything but the rewards, evaluation and timing, which have places of their own. `dtype`: of the model."""
    gap = GAP_MEAN[dtype]
    known = {name for panels in SECTIONS.values() for panel in panels for name in panel.curves}
    own = {name for row in metrics for name in row if "/" in name and name.partition("/")[0] not in COMMON} - known
    counted = sorted(name for name in own if name.startswith("environment/"))
    counts = {"Conversations": [Panel(name, {name: name}, "a trajectory") for name in counted]}
    made = [
        _section(
            title,
            [
                *(replace(p, line=gap) if "sampler/gap_mean" in p.curves else p for p in panels),
                *counts.get(title, []),
            ],
            metrics,
        )
        for title, panels in SECTIONS.items()
    ]
    panels = [Panel(name, {name: name}, line=OWN_LINES.get(name)) for name in sorted(own - set(counted))]
    made.insert(1, _section("The algorithm's own numbers", panels, metrics))
    return [section for section in made if section.charts or section.constant]


def learning(metrics: Metrics) -> Chart | None:
    """Rewards of training, smoothed, and the held-out pass rates."""
    noisy, clean, passed = (series(metrics, f"reward/{name}") for name in ("mean", "clean", "pass_rate"))
    curves = {"reward the loss sees" if "reward/disturbed" in _names(metrics) else "reward": noisy}
    if clean != noisy:
        curves["clean reward"] = clean
    if passed not in (noisy, clean):
        curves["pass rate"] = passed
    shown = []
    window = drawing_window(len(noisy[0]))
    for color, (name, (steps, values)) in enumerate(curves.items()):
        if steps:
            shown.append(Series(name, steps, running_mean(values, window), color=color))
    for color, name in enumerate(held_out_names(metrics), len(shown)):
        shown.append(Series(suite_of(name), *series(metrics, name), color=color, marks=True, dashed=True))
    low, high = _range(shown)
    rates = low >= 0 and high <= 1
    title = f"Reward in training, mean of {window} steps" if window > 1 else "Reward in training"
    if held_out_names(metrics):
        title += ", and held-out pass rate"
    return Chart(title, shown, y_min=0 if rates else None, y_max=1 if rates else None) if shown else None


def parts(metrics: Metrics) -> Chart | None:
    """The named parts of the reward."""
    names = sorted(name for name in _names(metrics) if name.startswith("reward/part/"))
    shown = [
        Series(name.removeprefix("reward/part/"), *series(metrics, name), color=color)
        for color, name in enumerate(names)
    ]
    return Chart("Parts of the reward", shown, y_label="mean, clean") if shown else None


def noise(metrics: Metrics) -> list[Chart]:
    """How much of the reward was disturbed, and what that did to its mean."""
    steps, values = series(metrics, "reward/disturbed")
    if not steps:
        return []
    charts = [Chart("Disturbed rewards", [Series("disturbed", steps, values)], y_label="share of samples", y_min=0)]
    pairs = [("reward/mean", "noisy: what the loss sees"), ("reward/clean", "clean")]
    curves = [Series(label, *series(metrics, name), color=color) for color, (name, label) in enumerate(pairs)]
    return [*charts, Chart("Reward, noisy and clean", curves)]


def evaluation(metrics: Metrics) -> list[Chart]:
    """Pass rates, response lengths and samples without a value on held-out problems."""
    charts = []
    for ending, title, unit in (
        ("/mean@", "Pass rate", ""),
        ("/length", "Response length", "tokens"),
        ("/no_value", "Without a value", "samples"),
    ):
        names = sorted(name for name in _names(metrics) if name.startswith("eval/") and ending in name)
        shown = [Series(suite_of(name), *series(metrics, name), color=c, marks=True) for c, name in enumerate(names)]
        shown = [one for one in shown if one.x]
        if shown and not (ending == "/no_value" and _range(shown) == (0, 0)):
            charts.append(Chart(title, shown, y_label=unit, y_min=0, y_max=1 if ending == "/mean@" else None))
    return charts


def _section(title: str, panels: Sequence[Panel], metrics: Metrics) -> Section:
    charts, constant = [], []
    for panel in panels:
        curves = {label: series(metrics, name) for name, label in panel.curves.items()}
        curves = {label: curve for label, curve in curves.items() if curve[0]}
        values = [value for _, column in curves.values() for value in column]
        if len(values) > 1 and all(_constant(column) for _, column in curves.values()):
            said = ", ".join(
                number(column[0]) if len(curves) == 1 else f"{label} {number(column[0])}"
                for label, (_, column) in curves.items()
            )
            constant.append(f"{panel.title}: {said}")
        elif values:
            shown = [Series(label, *curve, color=color) for color, (label, curve) in enumerate(curves.items())]
            near = panel.line is not None and max(values) > panel.line / 3
            charts.append(
                Chart(
                    panel.title,
                    shown,
                    y_label=panel.unit,
                    y_min=panel.y_min,
                    log=panel.log and max(values) > 0,
                    line=panel.line if near else None,
                )
            )
    return Section(title, charts, constant)


def _constant(values: Sequence[float]) -> bool:
    """But for rounding."""
    return max(values) - min(values) <= 1e-6 * abs(max(values))


def _names(metrics: Metrics) -> set[str]:
    return {name for row in metrics for name in row}


def _range(shown: Sequence[Series]) -> tuple[float, float]:
    values = [value for one in shown for value in one.y if value is not None]
    return (min(values), max(values)) if values else (0, 1)
