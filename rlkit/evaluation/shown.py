"""An evaluation in words, for people: before it is made, and after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from rlkit.evaluation.settings import EvaluationConfig, fits, samples_of
from rlkit.evaluation.suites import OpenSuite
from rlkit.wording import counted, number, one_line, quoted, visible

SHOWN = 10
"""Bad golds that are named; the others are counted."""


def before(loaded: Sequence[tuple[OpenSuite, EvaluationConfig]], config: EvaluationConfig, limit: int | None) -> str:
    """What will be measured, and how: each suite with its own settings; `limit`: the model's positions."""
    lines = [
        f"{config.model.path} ({config.model.dtype}) by {config.sampler.kind}: temperature {config.temperature:g}, "
        f"top-p {config.top_p:g}, top-k {config.top_k or 'off'}, seed {config.seed}"
        + (f", ended by {quoted(config.stop)}" if config.stop else "")
    ]
    for suite, own in loaded:
        problems, samples = counted(len(suite.problems), "problem"), counted(samples_of(suite, own), "sample")
        environment = suite.acting.ref.kind if suite.acting is not None else None
        judges = [environment] if environment is not None and suite.suite.environment is not None else []
        verifier = " + ".join([*(ref.kind for ref in suite.suite.rewards), *judges])
        acted = f"acted in {environment}, " if environment is not None else ""
        most = f"of at most {own.max_tokens} tokens"
        lines.append(f"{suite.name}: {problems} x {samples} {most}, {acted}verifier {verifier}")
        lines += [f"  {said}" for said in (*_about_data(suite), *_about_room(suite, own, config, limit))]
        lines += [f"  {said}" for said in _about_golds(suite)]
    return "\n".join(lines)


def _about_data(suite: OpenSuite) -> Iterator[str]:
    made = suite.suite
    if made.file is not None:
        golds = f"golds in {made.answer!r}" if made.answer is not None else "no golds"
        around = f", put as {one_line(made.template)!r}" if made.template is not None else ""
        yield f"questions in column {made.prompt!r}, {golds}, of {made.file}{around}"
    if made.count is not None and suite.rows < made.count:
        yield f"the first {len(suite.problems)} of a local copy with {suite.rows} rows; the suite has {made.count}"
    elif len(suite.problems) < suite.rows:
        yield f"the first {len(suite.problems)} of {suite.rows}"


def _about_golds(suite: OpenSuite) -> Iterator[str]:
    if suite.unchecked is not None:
        yield f"golds are not checked: {suite.unchecked}"
    elif suite.suite.file is not None and len(suite.bad_golds) == len(suite.problems):
        first = suite.bad_golds[0]
        yield f"no gold verifies against itself, not even {first}. Where the reward reads none: --answer null"
    else:
        yield from (f"gold does not verify against itself: {bad}" for bad in suite.bad_golds[:SHOWN])
        if len(suite.bad_golds) > SHOWN:
            yield f"and {len(suite.bad_golds) - SHOWN} more, of {len(suite.problems)}"


def _about_room(suite: OpenSuite, own: EvaluationConfig, config: EvaluationConfig, limit: int | None) -> Iterator[str]:
    if own.max_tokens < config.max_tokens:
        yield (
            f"{config.model.path} has {limit} positions: beside the prompts there is room for {own.max_tokens} tokens, "
            f"not for {config.max_tokens}"
        )
    if lost := sum(not fits(problem, own, limit) for problem in suite.problems):
        longest = max(len(problem.tokens) for problem in suite.problems)
        yield (
            f"{lost} of {len(suite.problems)} prompts leave no room for {own.max_tokens} tokens in {limit} positions "
            f"(the longest has {longest}), and count as wrong (too_long)"
        )


def notes(result: Mapping[str, Any]) -> str:
    """What to know about a suite's result."""
    found = []
    if result["no_value"]:
        odd = {s: n for s, n in result["statuses"].items() if s not in ("ok", "no_answer", "refused")}
        said = ", ".join(f"{n} {s}" for s, n in odd.items())
        found.append(f"{result['no_value']} samples without a value count as wrong ({said})")
    if result["error"]:
        found.append(f"the first error:\n{result['error']}")
    if result["reward"] is not None:
        mean, low, high = (number(result["reward"][key]) for key in ("value", "low", "high"))
        found.append(f"the reward is {mean} on average (95 %: {low} to {high}), of the samples with a value")
    if result["bad_golds"]:
        found.append(f"{len(result['bad_golds'])} golds do not verify against themselves")
    return "; ".join(found)


def table(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row for each metric of each suite."""
    made = Table(box=None, pad_edge=False)
    for heading in ("suite", "metric", "%", "95 %", "problems", "no answer", "truncated", "tokens"):
        made.add_column(heading, justify="left" if heading in ("suite", "metric") else "right", no_wrap=True)
    for name, result in results.items():
        n, total = result["samples"], result["problems"] * result["samples"]
        rest = [
            str(result["problems"]),
            f"{result['statuses'].get('no_answer', 0) / total:.0%}",
            f"{result['truncated'] / total:.0%}",
            f"{result['mean_tokens']:.0f}",
        ]
        for metric in (f"mean@{n}", f"pass@{n}", f"maj@{n}"):
            if (e := result["metrics"].get(metric)) is not None:
                made.add_row(
                    Text(visible(name)),
                    metric + ("*" if metric == result["quoted"] else ""),
                    f"{100 * e['value']:.1f}",
                    f"{100 * e['low']:.1f} to {100 * e['high']:.1f}",
                    *rest,
                )
                name, rest = "", [""] * len(rest)
    return made
