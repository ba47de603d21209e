"""Where a comparison is not fair: what differs between the arms besides what is compared."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from rlkit.comparison.runs import IRRELEVANT, Read, Run, condition_name, flatten
from rlkit.records import samples
from rlkit.sweeps.labels import is_own, short_key
from rlkit.sweeps.sweep_folder import Tuning

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Finding:
    level: Literal["unfair", "note"]
    """unfair: a difference in results may come from it. note: to be known when reading them."""
    title: str
    detail: str
    """What was found, with names and values."""
    means: str
    """What follows for the reader."""


@dataclass(frozen=True)
class Setting:
    """A setting that is not the same in all runs."""

    key: str
    values: Mapping[str, str]
    """Arm -> value, several with commas between; `-` where the arm has no such setting."""
    own: bool
    """Whether it is the algorithm's own affair."""


@dataclass(frozen=True)
class Examination:
    findings: Sequence[Finding]
    same: Sequence[str]
    """What was looked at and is the same everywhere."""


def examine(read: Read, horizon: Mapping[str, int]) -> Examination:
    """Every check, what is unfair first. `horizon`: condition -> the step up to which it is compared."""
    checks: dict[str, Iterable[Finding]] = {
        "settings besides the algorithm's own": _settings(read),
        "tuning effort": _tuning(read),
        "code": _code(read.runs),
        "library and plugin versions": _versions(read.runs),
        "prompts and golds of the data": _data(read.runs),
        "prompts at each seed": _prompts(read.runs),
        "who sampled": _replays(read.runs),
        "groups drawn": _replaced(read.runs),
        "steps": _steps(read.runs, horizon),
        "seeds": _seeds(read, horizon),
        "machine": _machine(read.runs),
    }
    findings: list[Finding] = []
    same = []
    for what, found in checks.items():
        listed = list(found)
        findings += listed
        # With nothing of it on record, nothing is the same either.
        if not listed and _on_record(what, read):
            same.append(what)
    return Examination(sorted(_merged(findings), key=lambda finding: finding.level != "unfair"), same)


def _merged(findings: Iterable[Finding]) -> list[Finding]:
    """One for what is said of several conditions or runs in the same words."""
    details: dict[tuple[Any, str, str], list[str]] = defaultdict(list)
    for each in findings:
        details[each.level, each.title, each.means].append(each.detail)
    return [Finding(level, title, "; ".join(detail), means) for (level, title, means), detail in details.items()]


def _on_record(what: str, read: Read) -> bool:
    if len({run.arm for run in read.runs}) < 2:
        return False
    needs: dict[str, Callable[[Run], bool]] = {
        "code": lambda run: bool(run.provenance.get("git")),
        "library and plugin versions": lambda run: "versions" in run.provenance,
        "machine": lambda run: "platform" in run.provenance,
        "prompts at each seed": lambda run: bool(run.rollouts),
        "prompts and golds of the data": lambda run: bool(run.provenance.get("data")),
    }
    if what == "tuning effort":
        return bool(read.tuning)
    return all(needs[what](run) for run in read.runs) if what in needs else True


# Settings ----------------------------------------------------------------------------------------------------------


def differing_settings(runs: Sequence[Run]) -> list[Setting]:
    """Settings, the algorithms' own ones among them, that are not the same in all runs."""
    flat = [(run, flatten(run.config)) for run in runs]
    keys = dict.fromkeys(key for _, settings in flat for key in settings if key.partition(".")[0] not in IRRELEVANT)
    found = []
    for key in keys:
        by_arm: dict[str, dict[str, None]] = defaultdict(dict)
        for run, settings in flat:
            by_arm[run.arm][_said(settings[key]) if key in settings else "-"] = None
        if len({value for values in by_arm.values() for value in values}) > 1:
            values = {arm: ", ".join(each) for arm, each in by_arm.items()}
            found.append(Setting(key, values, _is_algorithms(key)))
    return found


def _settings(read: Read) -> Iterator[Finding]:
    tuned = _equally_tuned(read)
    for condition, runs in _by_condition(read.runs):
        for setting in differing_settings(runs):
            key = setting.key
            named = is_own(key) and all(f"{short_key(key)}=" in arm for arm in setting.values)
            # Of replays more is said than that they are some.
            if setting.own or key in tuned or named or key.partition(".")[0] == "replay":
                continue
            values = "; ".join(f"{arm}: {value}" for arm, value in setting.values.items())
            untuned = key.startswith("optimizer.")
            yield Finding(
                "unfair",
                f"{key} differs",
                f"{condition_name(condition)}: {values}",
                "nothing says that it was tuned for each arm with equal effort: an arm may be ahead by it alone. Tune "
                f"it with `rlkit sweep --tune {short_key(key)}=...`"
                if untuned
                else "a difference between the arms may come from it and not from the algorithm",
            )


def _is_algorithms(key: str) -> bool:
    return is_own(key) and key.partition(".")[0] != "optimizer"


def _equally_tuned(read: Read) -> set[str]:
    """Settings that were tuned for every arm under every condition, with as many trials and seeds."""
    arms = {(run.arm, run.condition) for run in read.runs}
    efforts = {_effort(each) for each in read.tuning}
    if arms - {(each.arm, each.condition) for each in read.tuning} or len(efforts) != 1:
        return set()
    return set.intersection(*({key for trial in each.trials for key in trial.settings} for each in read.tuning))


def _effort(tuning: Tuning) -> tuple[int, int]:
    return len(tuning.trials), len(tuning.seeds)


def _tuning(read: Read) -> Iterator[Finding]:
    tuned = _equally_tuned(read)
    for condition, runs in _by_condition(read.runs):
        kinds = {run.config["algo"]["kind"] for run in runs}
        rates = {run.config.get("optimizer", {}).get("lr") for run in runs}
        if len(kinds) > 1 and len(rates) == 1 and "optimizer.lr" not in tuned:
            yield Finding(
                "note",
                "The learning rate was tuned for none",
                f"{condition_name(condition)}: {', '.join(sorted(kinds))} all have optimizer.lr {_said(*rates)}",
                "what suits one algorithm may be too high or too low for another, and the order can turn when each has "
                "its own. Tune it with `rlkit sweep --tune lr=...`, or say that you did not",
            )
    if not read.tuning:
        return
    efforts: dict[str, dict[str, None]] = defaultdict(dict)
    for each in read.tuning:
        trials, seeds = _effort(each)
        efforts[f"{trials} trials on {seeds} seeds"][f"{each.arm} ({condition_name(each.condition)})"] = None
    for arm, condition in dict.fromkeys((run.arm, run.condition) for run in read.runs):
        if (arm, condition) not in {(each.arm, each.condition) for each in read.tuning}:
            efforts["nothing"][f"{arm} ({condition_name(condition)})"] = None
    if len(efforts) > 1:
        yield Finding(
            "unfair",
            "The arms were not tuned with equal effort",
            "; ".join(f"{effort}: {', '.join(names)}" for effort, names in efforts.items()),
            "more trials find better settings: the arm that had more of them has an advantage",
        )
    for each in read.tuning:
        where = f"{each.arm} ({condition_name(each.condition)})"
        failed = sum(score is None for trial in each.trials for score in trial.scores.values())
        if failed:
            yield Finding(
                "note",
                "Tuning runs failed",
                f"{where}: {failed} of {len(each.trials) * len(each.seeds)}",
                "the choice among the others rests on less",
            )
        for key, end in each.at_the_end.items():
            yield Finding(
                "note",
                f"{short_key(key)} was chosen at the end of what was tried",
                f"{where}: the {end}, {_said((each.chosen or {})[key])}",
                "a still better value may lie beyond, so that the arm may be better than it looks here",
            )


# Where the runs come from ------------------------------------------------------------------------------------------


def _origins(runs: Sequence[Run]) -> list[tuple[Run, Mapping[str, Any]]]:
    """Provenance of each start: a resumed run has several."""
    return [(run, each) for run in runs for each in (run.provenance, *run.provenance.get("resumed", [])) if each]


def _code(runs: Sequence[Run]) -> Iterator[Finding]:
    commits: dict[str, list[Run]] = defaultdict(list)
    changed: list[Run] = []
    for run, origin in _origins(runs):
        git = origin.get("git")
        commits[git["commit"][:12] if git else "no git repository"].append(run)
        if git and git.get("changed"):
            changed.append(run)
    if len(commits) > 1:
        yield Finding(
            "unfair",
            "The runs were made by different code",
            _groups(commits),
            "what has changed may make the difference",
        )
    if changed:
        yield Finding(
            "note",
            "The code had uncommitted changes",
            _who(changed),
            "nobody can tell whether all runs had the same ones; commit before runs that are to be published",
        )


def _versions(runs: Sequence[Run]) -> Iterator[Finding]:
    names = dict.fromkeys(
        (part, name) for _, o in _origins(runs) for part in ("versions", "plugins") for name in o.get(part, {})
    )
    for part, name in names:
        found: dict[str, list[Run]] = defaultdict(list)
        for run, origin in _origins(runs):
            # Each run names only the plugins it uses.
            if part == "versions" or name in origin.get(part, {}):
                found[origin.get(part, {}).get(name, "not installed")].append(run)
        if len(found) > 1:
            yield Finding(
                "unfair",
                f"{name} is not the same version everywhere",
                _groups(found),
                "another version may compute, sample or score differently",
            )


def _machine(runs: Sequence[Run]) -> Iterator[Finding]:
    machines: dict[str, list[Run]] = defaultdict(list)
    for run, origin in _origins(runs):
        if "platform" in origin:
            machines[f"{origin['platform']}, {origin.get('cores')} cores"].append(run)
    if len(machines) > 1:
        yield Finding(
            "note",
            "The runs were made on different machines",
            _groups(machines),
            "seconds and tokens per second cannot be compared; steps can",
        )


# What the runs did -------------------------------------------------------------------------------------------------


def _steps(runs: Sequence[Run], horizon: Mapping[str, int]) -> Iterator[Finding]:
    for condition, group in _by_condition(runs):
        done: dict[str, list[Run]] = defaultdict(list)
        for members in _grouped(group, lambda run: run.arm).values():
            done[f"{max(run.last for run in members)} steps"] += members
        if len(done) > 1:
            yield Finding(
                "unfair",
                "The arms have not made the same number of steps",
                f"{condition_name(condition)}: {_groups(done)}",
                f"all are compared up to step {horizon[condition]}; schedules that end with the run were further along "
                "in a shorter one",
            )
    for run in runs:
        if run.last < run.steps:
            left_out = run.last < horizon[run.condition]
            stopped = run.provenance.get("stopped")
            why = (
                f"a health check stopped it: {str(stopped['said']).rstrip('.')}"
                if stopped
                else "it is still going, was stopped or failed"
            )
            yield Finding(
                "unfair" if left_out else "note",
                "A run has not ended",
                f"{run.name} has done {run.last} of {run.steps} steps: {why}",
                "it counts in no number, and its seed in no pair; if it failed, that flatters its arm"
                if left_out
                else "what is compared is not the end of training",
            )
        for again in run.provenance.get("resumed", []):
            yield Finding(
                "note",
                "A run was resumed",
                f"{run.name}, after step {again.get('after_step')}",
                "steps are as if it had not been; seconds may be of another time and load",
            )


def _seeds(read: Read, horizon: Mapping[str, int]) -> Iterator[Finding]:
    """Of the runs that count: one that has not ended is as good as missing."""
    for condition, group in _by_condition([run for run in read.runs if run.last >= horizon[run.condition]]):
        by_arm = {arm: {run.seed for run in runs} for arm, runs in _grouped(group, lambda run: run.arm).items()}
        for arm in dict.fromkeys(run.arm for run in read.runs):
            lacking = sorted(set().union(*by_arm.values()) - by_arm.get(arm, set()))
            if lacking:
                yield Finding(
                    "unfair",
                    f"{arm} lacks seeds",
                    f"{condition_name(condition)}: {', '.join(map(str, lacking))}",
                    "its mean is over other seeds than the others'; paired differences rest on the common ones alone",
                )
        if max(map(len, by_arm.values())) == 1:
            yield Finding(
                "note",
                "There is one seed only",
                f"{condition_name(condition)}: seed {', '.join(map(str, sorted(set().union(*by_arm.values()))))}",
                "no interval can be given: a difference may be chance. Five or more seeds are common",
            )
    if read.missing:
        yield Finding(
            "note", "Runs are missing", "; ".join(read.missing), "they have logged nothing yet, and are left out"
        )


def _data(runs: Sequence[Run]) -> Iterator[Finding]:
    names = {"training": "training", "held_out": "held-out evaluation"}
    for (condition, group), (name, purpose) in itertools.product(_by_condition(runs), names.items()):
        found: dict[str, list[Run]] = defaultdict(list)
        for run, origin in _origins(group):
            if digest := origin.get("data", {}).get(name):
                found[digest[:8]].append(run)
        if len(found) > 1:
            yield Finding(
                "unfair",
                f"The data for {purpose} are not the same",
                f"{condition_name(condition)}: digests of prompts and golds: {_groups(found)}",
                "an arm may be ahead by easier problems or other golds alone, though the file has the same name",
            )


def _prompts(runs: Sequence[Run]) -> Iterator[Finding]:
    cache: dict[Path, list[str]] = {}
    for (condition, seed), group in _grouped(runs, lambda run: (run.condition, run.seed)).items():
        for a, b in itertools.pairwise(group):
            common = sorted(a.rollouts.keys() & b.rollouts.keys())
            for step in dict.fromkeys(common[:1] + common[-1:]):
                left, right = (_first_draw(run, step, cache) for run in (a, b))
                if left != right:
                    yield Finding(
                        "unfair",
                        "The arms did not see the same prompts",
                        f"{condition_name(condition)}, seed {seed}, step {step}: {a.name} and {b.name}",
                        "their differences are not paired: they hold the luck of the prompts, too",
                    )
                    break


def _replays(runs: Sequence[Run]) -> Iterator[Finding]:
    for condition, group in _by_condition(runs):
        of = {run.name: run.replayed for run in group if run.replayed is not None}
        said = "; ".join(f"{name} learnt from those of {source}" for name, source in of.items())
        if 0 < len(of) < len(group):
            yield Finding(
                "unfair",
                "Some arms learnt from samples of another run",
                f"{condition_name(condition)}: {said}",
                "they are off-policy there, unless algorithm and settings are those of the run that sampled, and "
                "on-policy in that run. A difference is of what is made of these samples, not of what each algorithm "
                "reaches with its own; and the seconds of a replay are without sampling",
            )
        elif of and len({run.arm for run in group}) > 1:
            yield Finding(
                "note",
                "All arms learnt from stored samples",
                f"{condition_name(condition)}: {said}",
                "a difference is of what is made of these samples, and the settings of the run that sampled have an "
                "advantage: with them alone the samples are on-policy",
            )


def _first_draw(run: Run, step: int, cache: dict[Path, list[str]]) -> list[str]:
    """The prompts that a step begins with; those that replace others come after them."""
    return _prompt_ids(run.rollouts[step], cache)[: run.config.get("batch", {}).get("prompts_per_step")]


def _replaced(runs: Sequence[Run]) -> Iterator[Finding]:
    """Dynamic sampling: groups that have no counterpart in the other arms."""
    for condition, group in _by_condition(runs):
        replacing = _grouped([run for run in group if _draw(run) > 1], lambda run: run.arm)
        if 0 < sum(map(len, replacing.values())) < len(group):
            said = ", ".join(
                f"{arm} {sum(map(_draw, each)) / len(each):.2f} times the groups of a step"
                for arm, each in replacing.items()
            )
            yield Finding(
                "note",
                "Some arms replaced groups that teach nothing",
                f"{condition_name(condition)}: {said}",
                "their steps begin with the prompts of the other arms, but what replaced a group has no counterpart "
                "there, and more samples were drawn for the same number of steps: look at the tokens, too",
            )


def _draw(run: Run) -> float:
    """Groups that it drew for each that a step begins with."""
    drawn = run.curves.get("refill/groups_drawn")
    return 1.0 if drawn is None else float(drawn.values.mean()) / int(run.config["batch"]["prompts_per_step"])


def _prompt_ids(file: Path, cache: dict[Path, list[str]]) -> list[str]:
    """The prompts of a step, in the order of its groups, however many samples each has."""
    if file not in cache:
        table = samples.read(file, ["prompt_id", "index"]).to_pydict()
        cache[file] = [prompt for prompt, index in zip(table["prompt_id"], table["index"], strict=True) if index == 0]
    return cache[file]


# In words ----------------------------------------------------------------------------------------------------------


def _grouped(runs: Iterable[Run], key: Callable[[Run], K]) -> dict[K, list[Run]]:
    groups: dict[K, list[Run]] = defaultdict(list)
    for run in runs:
        groups[key(run)].append(run)
    return groups


def _by_condition(runs: Sequence[Run]) -> Iterable[tuple[str, list[Run]]]:
    return _grouped(runs, lambda run: run.condition).items()


def _groups(found: Mapping[str, Sequence[Run]]) -> str:
    return "; ".join(f"{value}: {_who(runs)}" for value, runs in found.items())


def _who(runs: Sequence[Run]) -> str:
    """The runs by name where they are few, by arm where they are many."""
    names = list(dict.fromkeys(run.name for run in runs))
    if len(names) <= 3:
        return ", ".join(names)
    return f"{len(names)} runs of {', '.join(dict.fromkeys(run.arm for run in runs))}"


def _said(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)
