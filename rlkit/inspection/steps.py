"""A step of a run, read back: its groups, their responses, and what is known of each token. Needs no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from rlkit.errors import ConfigError, RlkitError
from rlkit.interfaces.names import ENVIRONMENT, STATS
from rlkit.interfaces.rewards import VALUELESS
from rlkit.records.folder import RunFolder
from rlkit.records.samples import read, step_files
from rlkit.wording import ranges, visible

FACTS = (
    *("prompt_id", "occurrence", "index", "prompt", "answer", "response", "tokens", "mask"),
    *("reward", "clean_reward", "status", "correct", "parts", "info", "valid", "truncated"),
)
"""Columns of a step's samples that are shown."""

TURNS = "turns"
"""The column of the policy's turns; runs of before lack it."""

SAMPLED = (*STATS, "sampler_logprobs", "token_reward")
"""Columns of numbers of a token, as far as the run has kept them. A critic's `values` are shown as `value`."""

SERIES = ("credit", "advantages", "value", *(name for name in SAMPLED if name != "values"))
"""Numbers of a token that are known by name, in the order in which they are shown; others follow."""

Numbers = list[float | None]
"""One a token; None where the token does not count (not the policy's, an invalid sample) or is not finite."""


@dataclass(frozen=True)
class Piece:
    """A token's share of the response's text."""

    text: str
    """The texts of a response's tokens, joined, are the response."""
    shown: str | None = None
    """What to show for a token without a text of its own: an end token's name, a part of a character."""


@dataclass(frozen=True)
class Stretch:
    """A part of a trajectory: a turn of the model, or what the environment said to it."""

    start: int
    end: int
    """Tokens [start, end)."""
    turn: int | None
    """1, 2, ... of the model's; None: it is the environment's."""
    reward: float | None = None
    """What the environment gave for the turn."""
    credit: float | None = None
    """The sum of what its tokens were credited."""


@dataclass(kw_only=True)
class Response:
    """One response, or a trajectory, and what is known of it."""

    row: int
    """In the step's files."""
    index: int
    """0 .. G-1 within its group."""
    text: str
    reward: float | None
    """What the loss saw; None: it had no value, before noise or after."""
    clean_reward: float | None
    """Before noise."""
    status: str
    correct: bool | None
    parts: dict[str, float]
    info: dict[str, Any]
    valid: bool
    """False: it is left out of loss and baseline."""
    truncated: bool
    tokens: list[int]
    mask: list[bool]
    """Of each token: the policy chose it, and the sample counts."""
    series: dict[str, Numbers]
    """Name -> a number for each token; what was not kept is absent."""
    decode: Callable[[Sequence[int], str], list[Piece]] = field(repr=False)
    turns: list[tuple[int, int]] = field(default_factory=list)
    """The model's turns in an environment, each the tokens [start, end); empty: it answered once."""

    @property
    def stretches(self) -> list[Stretch]:
        """A trajectory, turn by turn; empty for a response."""
        found: list[Stretch] = []
        said = self.info.get(ENVIRONMENT, {}).get("turns", [])
        credits = self.series.get("credit")
        for number, (start, end) in enumerate(self.turns, 1):
            if found and start > found[-1].end:
                found.append(Stretch(found[-1].end, start, None))
            credit = math.fsum(c or 0.0 for c in credits[start:end]) if credits is not None else None
            reward = said[number - 1].get("reward") if number <= len(said) else None
            found.append(Stretch(start, end, number, reward, credit))
        return found

    @property
    def last_words(self) -> str:
        """What the environment said to the last turn, which no model has read."""
        return str(self.info.get(ENVIRONMENT, {}).get("last", ""))

    @property
    def noted(self) -> dict[str, Any]:
        """`info`, without what the turns show."""
        acted = self.info.get(ENVIRONMENT)
        if not self.turns or not isinstance(acted, dict):
            return self.info
        shown = {name: value for name, value in acted.items() if name not in ("turns", "last") and value != {}}
        return {**{name: value for name, value in self.info.items() if name != ENVIRONMENT}, ENVIRONMENT: shown}

    @cached_property
    def pieces(self) -> list[Piece]:
        """The texts of the tokens."""
        return self.decode(self.tokens, self.text)

    @property
    def credited(self) -> str | None:
        """The series that says what a token earned: `credit`, else `advantages`; None: neither was kept."""
        return next((name for name in ("credit", "advantages") if name in self.series), None)

    @property
    def one_number(self) -> float | None:
        """The advantage that all tokens share, where they do."""
        numbers = {number for number in self.series.get("advantages", []) if number is not None}
        return numbers.pop() if len(numbers) == 1 and self.credited == "advantages" else None


@dataclass(kw_only=True)
class Group:
    """The responses to one prompt in a step."""

    prompt_id: str
    occurrence: int
    """0, or 1, 2, ... where the prompt came again within the step."""
    prompt: str
    gold: str
    responses: list[Response]

    @property
    def key(self) -> tuple[str, int]:
        return self.prompt_id, self.occurrence

    @property
    def baseline(self) -> float | None:
        """Mean reward, as the loss saw it, of the responses that count; None where none does."""
        rewards = [r.reward for r in self.responses if r.valid and r.reward is not None]
        return sum(rewards) / len(rewards) if rewards else None


@dataclass(kw_only=True)
class Step:
    """A step of a run."""

    run: str
    algorithm: str
    """The registered name; with `+ NAME` where advantage or loss were replaced."""
    number: int
    groups: list[Group]
    has_critic: bool
    notes: list[str]
    """What a reader should know of what is missing."""

    @property
    def responses(self) -> list[Response]:
        return [response for group in self.groups for response in group.responses]

    @property
    def one_number(self) -> bool:
        """Every response has one advantage for all of its tokens."""
        kept = [r for r in self.responses if r.credited is not None and any(r.mask)]
        # A single token is no evidence.
        return bool(kept) and all(r.one_number is not None for r in kept) and any(sum(r.mask) > 1 for r in kept)


def choose_step(folders: Sequence[RunFolder], asked: int | None) -> int:
    """The step asked for, or the last that every run has, if possible with what was credited.

    Raises ConfigError where there is none, or not that one.
    """
    there = [list(step_files(folder.rollouts)) for folder in folders]
    for folder, steps in zip(folders, there, strict=True):
        if not steps:
            raise ConfigError(f"{folder.path} holds no samples yet: it has made no step. Look again after its first")
        if asked is not None and asked not in steps:
            raise ConfigError(f"{folder.path} has no samples of step {asked}; it has those of {ranges(steps)}")
    if asked is not None:
        return asked
    common = {*common_steps(folders)}
    if not common:
        held = "; ".join(f"{f.path}: {ranges(s)}" for f, s in zip(folders, there, strict=True))
        raise ConfigError(f"the runs have no step in common: {held}")
    # Of the step in hand the samples are written before, and the credit after, it is learnt from.
    whole = common.intersection(*(step_files(folder.credit) for folder in folders))
    return max(whole or common)


def common_steps(folders: Sequence[RunFolder]) -> list[int]:
    """The steps of which all of the runs have samples, ascending."""
    return sorted(set.intersection(*({*step_files(folder.rollouts)} for folder in folders)))


def load_step(folder: RunFolder, number: int, decode: Callable[[Sequence[int], str], list[Piece]]) -> Step:
    """The samples of a step, in groups. `decode` says the texts of tokens; see texts.py.

    Raises RlkitError for samples that cannot be read; what cannot be read of the credit is left out and noted.
    """
    config = folder.read_config()
    rows = read(folder.rollout_file(number), FACTS, optional=(*SAMPLED, TURNS)).to_pylist()
    credited, damage = _credited(folder, number)
    groups: dict[tuple[str, int], Group] = {}
    for at, row in enumerate(rows):
        key = (row["prompt_id"], row["occurrence"])
        if key not in groups:
            groups[key] = Group(
                prompt_id=key[0], occurrence=key[1], prompt=row["prompt"], gold=row["answer"], responses=[]
            )
        groups[key].responses.append(_response(at, row, credited.get(at, {}), decode))
    replaced = [f"{part} {ref.kind}" for part, ref in (("advantage", config.advantage), ("loss", config.loss)) if ref]
    step = Step(
        run=folder.path.resolve().name,
        algorithm=" + ".join([config.algo.kind, *replaced]),
        number=number,
        groups=list(groups.values()),
        has_critic=any(row.get("values") is not None for row in rows),
        notes=[],
    )
    step.notes = [damage] if damage else _notes(step, credited, len(rows))
    if config.replay is not None:
        step.notes.append(f"{step.run} replays: its responses are those that {config.replay.run.name} has sampled")
    return step


def _credited(folder: RunFolder, number: int) -> tuple[dict[int, Any], str]:
    """Row -> name -> a number for each token, and what is wrong with the file; nothing where there is none."""
    file = folder.credit_file(number)
    if not file.is_file():
        return {}, ""
    try:
        return {row.pop("row"): row for row in read(file).to_pylist()}, ""
    except RlkitError as error:
        return {}, str(error)


def _notes(step: Step, credited: dict[int, Any], count: int) -> list[str]:
    if not credited:
        return [
            f"Of step {step.number} of {step.run} there is no record of what the algorithm credited: the run is at "
            "it, had no sample to learn from, or was made by an older rlkit"
        ]
    if not any(credited.values()):
        return [
            f"{step.algorithm}, as set in {step.run}, has measured nothing of the tokens before the update, so nothing "
            "is kept of what it credits them"
        ]
    if len(credited) < count:
        return [f"What each token is credited is kept for the first {len(credited)} of the step's {count} responses"]
    return []


def _response(
    at: int, row: dict[str, Any], credited: dict[str, Any], decode: Callable[[Sequence[int], str], list[Piece]]
) -> Response:
    mask = row["mask"]
    found = {"value" if name == "values" else name: row.get(name) for name in SAMPLED} | credited
    series = {}
    for name in (*(n for n in SERIES if n in found), *(n for n in sorted(found) if n not in SERIES)):
        numbers = found[name]
        if numbers is not None and any(mask):
            series[name] = [v if acts and math.isfinite(v) else None for v, acts in zip(numbers, mask, strict=True)]
    valued = row["status"] not in VALUELESS
    info = json.loads(row["info"])
    return Response(
        row=at,
        index=row["index"],
        text=row["response"],
        reward=row["reward"] if valued else None,
        clean_reward=row["clean_reward"] if valued else None,
        status=row["status"],
        correct=row["correct"],
        parts=dict(row["parts"] or []),
        info=info,
        valid=row["valid"],
        truncated=row["truncated"],
        tokens=row["tokens"],
        mask=mask,
        series=series,
        decode=decode,
        turns=[(start, end) for start, end in row.get(TURNS) or ()] if ENVIRONMENT in info else [],
    )


def find_prompts(groups: Sequence[Group], prefix: str) -> list[Group]:
    """The groups whose prompt_id begins so. ConfigError, naming a few that exist, where there is none."""
    found = [group for group in groups if group.prompt_id.startswith(prefix)]
    if not found or not prefix:
        raise ConfigError(f"no prompt of this step begins with {prefix!r}; among those it has are {_some(groups)}")
    return found


def _some(groups: Iterable[Group], count: int = 3) -> str:
    return ", ".join(f"{g.prompt_id} ({visible(g.prompt[-60:])!r})" for g in list(groups)[:count])


def in_common(first: Step, second: Step) -> list[tuple[Group, Group]]:
    """The groups of the two steps that answer the same prompt. ConfigError where there are none."""
    others = {group.key: group for group in second.groups}
    pairs = [(group, others[group.key]) for group in first.groups if group.key in others]
    if not pairs:
        raise ConfigError(
            f"{first.run} and {second.run} saw other prompts in step {first.number}: they differ in seed, data or "
            f"batch. Only runs that agree in these can be laid side by side. {first.run} saw {_some(first.groups, 2)}, "
            f"{second.run} saw {_some(second.groups, 2)}"
        )
    return pairs
