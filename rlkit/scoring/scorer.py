"""The rewards of a run, combined: submit samples as they are finished, and fetch their results at the end."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rlkit import registry
from rlkit.config import ScoringConfig
from rlkit.errors import ConfigError, PluginError, RlkitError, TokensUnknownError
from rlkit.interfaces.declarations import EnvironmentDeclaration, reward_declaration
from rlkit.interfaces.names import ENVIRONMENT
from rlkit.interfaces.rewards import RewardFn, RewardResult, Sample
from rlkit.scoring.checks import named, score
from rlkit.scoring.pool import Pool
from rlkit.scoring.worker import Fault, Killed, Outcome, TokensRead


@dataclass(frozen=True, slots=True)
class WeightedReward:
    """A registered reward by name, with its options, and its weight in the sum."""

    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Acted:
    """What an environment said of a sample, which it was given in a trajectory's course."""

    result: RewardResult
    fault: str = ""
    """How it broke its contract; "": it did not."""


def check_judged(rewards: Sequence[object], environment: EnvironmentDeclaration | None) -> None:
    """ConfigError where there is an environment alone, which gives every trajectory the same."""
    if rewards or environment is None or environment.range is None:
        return
    low, high = environment.range
    if low == high:
        raise ConfigError(
            f"nothing judges what the model says: the environment has no reward of its own (it gives {low:g} to every "
            "trajectory), and `reward` names none. Name one (`rlkit list rewards`)"
        )


@dataclass(frozen=True, slots=True)
class _Part:
    name: str
    """The kind; kind_2, kind_3, ... where it comes again."""
    weight: float
    function: RewardFn | None
    """None: an environment's, whose results come with the samples."""
    range: tuple[float, float] | None
    """What it declares."""
    place: int | None
    """In the pool; None: it is called in this process."""

    @property
    def said(self) -> str:
        """In messages."""
        return f"reward {self.name!r}" if self.function is not None else "the environment"


@dataclass(frozen=True, slots=True)
class _Share:
    """What one rank knows of the samples that went wrong."""

    samples: int = 0
    faults: dict[str, list[str]] = field(default_factory=dict)
    """By part, what is said of each sample that its function failed on."""
    killed: dict[str, list[str]] = field(default_factory=dict)
    """By part, of each that its worker was killed on."""
    lost: list[str] = field(default_factory=list)
    """Names of the samples without a value."""
    causes: dict[str, Counter[str]] = field(default_factory=dict)
    """By part, how often each status."""
    said: list[str] = field(default_factory=list)
    """The first error, if there is any."""


_Said = tuple[RlkitError | None, _Share]


def _alone(said: _Said) -> list[_Said]:
    return [said]


class Scorer:
    """Scores samples by one or several rewards, in worker processes that a hung or dying function cannot outlive.

    Workers build the rewards anew from their names, and start with the first sample. A function with the attribute
    `in_process = True` is called in this process instead, with all samples of a `finish` at once and without a
    deadline; so is one that is defined in `__main__`, which no other process can import. What is slow the first time
    (an import within the function) belongs into an attribute `warm_up()`: a worker calls it before its first sample,
    when no sample's deadline counts yet.

    What comes of a sample: a function that raises leaves it without a value (`error`); one that hangs longer than
    `timeout_s`, dies or runs out of memory twice on it, the second time in a fresh worker, gives it 0 (`refused`).
    With several rewards the value is the sum of weight times value, `parts` holds each one's value by name, and the
    verdict `correct` is the first one's; an environment's rewards come last. A sample that one of them refuses is
    refused; one that has no value from one of them has none, with that one's status.

    Raises ConfigError for rewards or plugins that cannot be, and for declarations of theirs that cannot.
    """

    def __init__(
        self,
        rewards: Sequence[WeightedReward],
        plugins: Sequence[str],
        config: ScoringConfig,
        environment: EnvironmentDeclaration | None = None,
    ) -> None:
        """`environment`: what the environment declares whose rewards come with the samples; None: there is none."""
        check_judged(rewards, environment)
        registry.load(list(plugins))
        self._config = config
        self._samples: list[Sample] = []
        self._acted: list[Acted | None] = []
        self._places: list[list[int]] = []
        self._parts: list[_Part] = []
        pooled: list[tuple[str, dict[str, Any]]] = []
        homes = list(plugins)
        kinds = Counter[str]()
        for reward in rewards:
            function: RewardFn = registry.build("rewards", reward.kind, reward.options)
            kinds[reward.kind] += 1
            name = reward.kind if kinds[reward.kind] == 1 else f"{reward.kind}_{kinds[reward.kind]}"
            found_in = registry.find("rewards", reward.kind).homes
            place: int | None = None
            declared = reward_declaration(function, f"reward {reward.kind!r}")
            if "__main__" in found_in and not declared.in_process:
                warnings.warn(
                    f"reward {reward.kind!r} is defined in __main__, where worker processes cannot import it: it runs "
                    "in the trainer's process, without a deadline. Move it to a file and name that under `plugins`",
                    stacklevel=2,
                )
            elif not declared.in_process:
                place = len(pooled)
                pooled.append((reward.kind, reward.options))
                homes += [home for home in found_in if home not in homes]
            self._parts.append(_Part(name, reward.weight, function, declared.range, place))
        if environment is not None:
            self._parts.append(_Part(ENVIRONMENT, 1.0, None, environment.range, None))
        self._pool = Pool(pooled, homes, config) if pooled else None

    @property
    def range(self) -> tuple[float, float] | None:
        """Lowest and highest value of the weighted sum; None where a reward declares no range."""
        low = high = 0.0
        for part in self._parts:
            if part.range is None:
                return None
            ends = [part.weight * end for end in part.range]
            low, high = low + min(ends), high + max(ends)
        return low, high

    def log_to(self, file: Path) -> None:
        """Append to that file what functions print in worker processes; to be said before the first sample."""
        if self._pool is not None:
            self._pool.log = file

    def submit(self, sample: Sample, acted: Acted | None = None) -> None:
        """Have a sample scored; returns at once. `acted`: what the environment said of it, where there is one."""
        self._samples.append(sample)
        self._acted.append(acted)
        if self._pool is not None and (acted is None or acted.result.value is not None):
            self._places.append([self._pool.submit(p.place, sample) for p in self._parts if p.place is not None])

    def finish(self, *, lenient: bool = False, gather: Callable[[_Said], list[_Said]] = _alone) -> list[RewardResult]:
        """Results of all that was submitted since the last `finish`, in that order.

        Raises RlkitError where a function breaks its contract, or takes its worker down, for every sample, or returns
        another number of results than samples; where workers cannot start; and where more than `max_no_value` of the
        samples, and at least 2, have no value.
        lenient: only where workers cannot start; a sample that a function fails on has no value, were it each of them.
        gather: gives what every rank has given to it. With it, the samples that count are those of all ranks, and what
        goes wrong on one is raised on all of them: call it on all alike.
        TokensUnknownError, lenient or not, where a function reads tokens that are not known.
        """
        results: list[RewardResult] = []
        failure, share = None, _Share()
        try:
            results, share = self._finished(lenient)
        except RlkitError as error:
            failure = error
        everyone = gather((failure, share))
        for failure, _ in everyone:
            if failure is not None:
                raise failure
        if not lenient:
            self._hold_to_limits([share for _, share in everyone])
        return results

    def _finished(self, lenient: bool) -> tuple[list[RewardResult], _Share]:
        samples, self._samples = self._samples, []
        places, self._places = self._places, []
        acted, self._acted = self._acted, []
        if not samples:
            return [], _Share()
        given = [one for one in acted if one is not None]
        there = [i for i, one in enumerate(acted) if one is None or one.result.value is not None]
        own = {
            part.name: _called(part, part.function, [samples[i] for i in there], lenient)
            for part in self._parts
            if part.place is None and part.function is not None
        }
        pooled = self._pool.finish() if self._pool is not None else []
        columns: list[list[RewardResult]] = []
        faults: dict[str, list[str]] = {}
        killed: dict[str, list[str]] = {}
        for part in self._parts:
            if part.function is None:
                columns.append([one.result for one in given if one.result.value is not None])
                faults[part.name] = [one.fault for one in given if one.fault]
            elif part.place is None:
                columns.append(own[part.name])
            else:
                outcomes = [pooled[row[part.place]] for row in places]
                failed = [o for o in outcomes if isinstance(o, Fault)]
                if not lenient and (miscounted := [fault for fault in failed if fault.miscounted]):
                    raise PluginError(miscounted[0].said)
                faults[part.name] = [fault.said for fault in failed]
                killed[part.name] = [outcome.said for outcome in outcomes if isinstance(outcome, Killed)]
                columns.append([_result(outcome) for outcome in outcomes])
        combined = dict(zip(there, map(self._combined, zip(*columns, strict=True)), strict=True))
        results = [combined[i] if i in combined else _lost(acted[i]) for i in range(len(samples))]
        without = {
            part.name: [r for r in column if r.value is None] for part, column in zip(self._parts, columns, strict=True)
        }
        if given:
            without[ENVIRONMENT] = [one.result for one in given if one.result.value is None]
        share = _Share(
            samples=len(samples),
            faults=faults,
            killed=killed,
            lost=[named(sample) for sample, result in zip(samples, results, strict=True) if result.value is None],
            causes={name: Counter(result.status for result in column) for name, column in without.items()},
            said=[str(r.info["error"]) for column in without.values() for r in column if "error" in r.info][:1],
        )
        return results, share

    def score(self, samples: Sequence[Sample], *, lenient: bool = False) -> list[RewardResult]:
        """`submit` all and `finish`."""
        for sample in samples:
            self.submit(sample)
        return self.finish(lenient=lenient)

    def _combined(self, results: Sequence[RewardResult]) -> RewardResult:
        first = results[0]
        if len(results) == 1:
            if self._parts[0].function is None:
                return replace(first, info={ENVIRONMENT: first.info})
            if first.value is None:
                return first
            return replace(
                first, value=self._parts[0].weight * first.value, token_values=self._weighted_token_values(results)
            )
        info = {p.name: r.info for p, r in zip(self._parts, results, strict=True) if r.info}
        parts = {}
        for part, result in zip(self._parts, results, strict=True):
            parts.update({f"{part.name}/{name}": value for name, value in result.parts.items()})
            if result.value is not None:
                parts[part.name] = result.value
        for result in results:
            if result.value is None:
                return RewardResult(value=None, status=result.status, parts=parts, info=info)
        if any(result.status == "refused" for result in results):
            return RewardResult(value=0.0, status="refused", correct=False, parts=parts, info=info)
        value = sum(p.weight * (r.value or 0.0) for p, r in zip(self._parts, results, strict=True))
        status = first.status if value == 0 else "ok"
        return RewardResult(
            value=value,
            status=status,
            correct=first.correct,
            parts=parts,
            info=info,
            token_values=self._weighted_token_values(results),
        )

    def _weighted_token_values(self, results: Sequence[RewardResult]) -> list[float] | None:
        """The weighted sum of what comes on the way; what has no token values comes at the last token."""
        length = max((len(r.token_values) for r in results if r.token_values is not None), default=0)
        if length == 0:
            return None
        total = [0.0] * length
        for part, result in zip(self._parts, results, strict=True):
            values = result.token_values
            if values is None:
                values = [0.0] * (length - 1) + [result.value or 0.0]
            for at, value in enumerate(values):
                total[at] += part.weight * value
        return total

    def _hold_to_limits(self, shares: Sequence[_Share]) -> None:
        """RlkitError where a function failed on every sample, which puts the blame on it, or where too many have no
        value."""
        total = sum(share.samples for share in shares)
        for part in self._parts:
            faults = [said for share in shares for said in share.faults.get(part.name, [])]
            killed = [said for share in shares for said in share.killed.get(part.name, [])]
            if faults and len(faults) == total:
                raise PluginError(faults[0])
            if len(killed) == total > 1:
                raise PluginError(
                    f"reward {part.name!r} scored none of {total} samples. Each {killed[0]}\nWhere it only needs more, "
                    "raise scoring.timeout_s or scoring.memory_gib"
                )
        lost = [name for share in shares for name in share.lost]
        if len(lost) < 2 or len(lost) <= self._config.max_no_value * total:
            return
        causes = []
        for part in self._parts:
            counts = sum((share.causes.get(part.name, Counter[str]()) for share in shares), Counter[str]())
            if counts:
                causes.append(f"{part.said}: " + ", ".join(f"{n} {status}" for status, n in counts.items()))
        said = [said for share in shares for said in share.said]
        raise PluginError(
            f"{len(lost)} of {total} samples have no value, more than scoring.max_no_value "
            f"({self._config.max_no_value:g}) allows. {'; '.join(causes)}. Among them: "
            + "; ".join(lost[:3])
            + "."
            + (f" The first error:\n{said[0]}" if said else "")
        )

    def close(self) -> None:
        """End the worker processes. Calling it twice is harmless."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _called(part: _Part, function: RewardFn, samples: Sequence[Sample], lenient: bool) -> list[RewardResult]:
    """The results of a function that runs in this process. lenient: where the call of all samples fails, each is called
    for itself, as a worker does, so that what fails costs its own sample alone."""
    try:
        return score(function, part.name, samples)
    except TokensUnknownError:
        raise
    except RlkitError as error:
        if not lenient:
            raise
        if len(samples) == 1:
            return [RewardResult(value=None, status="error", info={"error": str(error)})]
        return [_called(part, function, [sample], lenient)[0] for sample in samples]


def _lost(acted: Acted | None) -> RewardResult:
    """Of a trajectory whose environment was lost: no function has seen it."""
    assert acted is not None
    return replace(acted.result, info={ENVIRONMENT: acted.result.info})


def _result(outcome: Outcome) -> RewardResult:
    """What is no result as `error` or `refused`; TokensUnknownError for tokens that are not known."""
    if isinstance(outcome, TokensRead):
        raise TokensUnknownError(outcome.said)
    if isinstance(outcome, Fault):
        return RewardResult(value=None, status="error", info={"error": outcome.said})
    if isinstance(outcome, Killed):
        return RewardResult(value=0.0, status="refused", correct=False, info={"error": outcome.said})
    return outcome
