"""Conversations: trajectories of several turns, whose next request follows from what an environment said to the last.

Tokens in, tokens out: what the model says is kept as sampled, what the environment says is encoded once and put behind
it. Nothing is decoded and encoded again.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rlkit.config import ConversationConfig
from rlkit.data import Problem
from rlkit.environments.glue import Glue
from rlkit.environments.pool import Answer, Environments, Lost
from rlkit.errors import RlkitError
from rlkit.generation.sampled import Draw, Sampled
from rlkit.generation.stops import Stops
from rlkit.interfaces.declarations import EnvironmentDeclaration
from rlkit.interfaces.environments import Said, Task
from rlkit.interfaces.generation import Completion, Request, Sampler, SamplingParams
from rlkit.interfaces.rewards import RewardResult, Status
from rlkit.scoring import Acted, Decoder
from rlkit.scoring.checks import checked, named

COHORTS = 2
"""Into so many parts conversations are cut where a sampler takes them turn by turn: while one waits for its
environments, another is sampled."""
_POLL_S = 0.005

Ended = Literal["done", "max_turns", "tokens", "lost"]
"""done: the environment said so. max_turns, tokens: the trajectory was cut. lost: its environment was."""


@dataclass(frozen=True)
class Setting:
    """What conversations are held with."""

    name: str
    """Of the environment."""
    environments: Environments
    glue: Glue
    config: ConversationConfig
    declared: EnvironmentDeclaration
    context: int
    """Tokens of a whole trajectory, its first prompt included, that the sampler has room for."""
    numbers: Iterator[int] = field(default_factory=itertools.count)
    """Of environments, each once in a run."""


@dataclass(eq=False)
class _Trajectory:
    draw: Draw
    problem: Problem
    """With what the environment has said at the start in its prompt."""
    tokens: array[int] = field(default_factory=lambda: array("i"))
    logprobs: array[float] = field(default_factory=lambda: array("f"))
    turns: list[tuple[int, int]] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    """A number a turn."""
    infos: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    last: str = ""
    """What the model has said in its last turn."""
    heard: str = ""
    """What the environment has answered to it."""
    version: int = 0
    seconds: float = 0.0
    """Waited for its environment."""
    acting: bool = True
    """Its environment is at work; else the sampler is."""
    cut: Ended | None = None
    """How it is, where its environment is told of that."""


class Conversations:
    """Those of one rank's share, from their starts to their ends: `Requests`, as a sampler's `stream` takes them, or
    turn by turn.

    `take` may be called from another thread than the rest.
    """

    def __init__(
        self,
        wanted: Sequence[Draw],
        setting: Setting,
        params: SamplingParams,
        seed: Callable[[Draw, str], int],
        tokenizer: Decoder,
        stops: Stops | None,
    ) -> None:
        """`seed`: of a draw, for a purpose's part."""
        self._setting = setting
        self._params = params
        self._seed = seed
        self._tokenizer = tokenizer
        self._stops = stops
        self._unbegun = deque(wanted)
        self._live: dict[int, _Trajectory] = {}
        """By the numbers of their environments."""
        self._asked: list[int] = []
        """Of each request, its trajectory."""
        self._over: deque[Sampled] = deque()
        self._seconds: list[float] = []
        self._lock = threading.RLock()
        self._closed = False

    def all(self, sampler: Sampler) -> Iterator[Sampled]:
        """Hold them all. Yields them as they end."""
        stream = getattr(sampler, "stream", None)
        if stream is None:
            yield from self._in_turns(sampler.generate)
            return
        for index, completion in stream(self):
            self._hear(index, completion)
            yield from self._ended()
        yield from self._ended()

    def take(self, *, wait: bool) -> Sequence[Request] | None:
        """See `Requests`."""
        while True:
            with self._lock:
                self._begin(self._setting.config.at_once - len(self._live))
                ready = self._requests(self._listen(wait=False))
                if ready:
                    return ready
                # What has ended just now has made room for others.
                if self._closed or not (self._live or self._unbegun):
                    return None
            if not wait:
                return []
            time.sleep(_POLL_S)

    def _in_turns(self, generate: Callable[[Sequence[Request]], Iterator[tuple[int, Completion]]]) -> Iterator[Sampled]:
        """Sample all by `generate`, in parts that do not depend on how long environments take: so a seed gives the same
        batches, and with them the same samples to the last bit."""
        while self._unbegun:
            begun = self._begin(self._setting.config.at_once)
            size = math.ceil(len(begun) / COHORTS)
            cohorts = [begun[at : at + size] for at in range(0, len(begun), size)]
            while self._live:
                for cohort in cohorts:
                    while any(number in self._live and self._live[number].acting for number in cohort):
                        self._listen(wait=True)
                    first = len(self._asked)
                    requests = self._requests([number for number in cohort if number in self._live])
                    for at, completion in generate(requests) if requests else ():
                        self._hear(first + at, completion)
                        yield from self._ended()
                    yield from self._ended()

    def _hear(self, index: int, completion: Completion) -> None:
        """What the sampler answered to the request of that number."""
        with self._lock:
            number = self._asked[index]
            if (one := self._live.get(number)) is None:
                return
            if self._stops is not None:
                completion = self._stops.cut(completion)
            start = len(one.tokens)
            one.tokens.extend(completion.tokens)
            one.logprobs.extend(completion.logprobs)
            one.turns.append((start, len(one.tokens)))
            one.rewards.append(0.0)
            one.infos.append({})
            one.version = completion.version
            one.last, one.heard = self._tokenizer.decode(completion.tokens, skip_special_tokens=True), ""
            if completion.truncated:
                self._cut(number, "tokens", one.last)
            else:
                one.acting = True
                self._setting.environments.step(number, one.last)

    def _ended(self) -> Iterator[Sampled]:
        """Those that have ended since it was last called."""
        while self._over:
            yield self._over.popleft()

    @property
    def seconds(self) -> float:
        """Mean time that a trajectory has waited for its environment."""
        return sum(self._seconds) / max(len(self._seconds), 1)

    def close(self) -> None:
        """Give up what has not ended."""
        with self._lock:
            self._closed = True
            for number in self._live:
                self._setting.environments.end(number)
            self._live.clear()
            self._unbegun.clear()

    def _begin(self, most: int) -> list[int]:
        """Let so many more begin. Returns their numbers."""
        begun = []
        for _ in range(min(most, len(self._unbegun))):
            draw, number = self._unbegun.popleft(), next(self._setting.numbers)
            problem = draw.problem
            self._live[number] = _Trajectory(draw, problem)
            task = Task(question=problem.question, answer=problem.answer, gold=problem.gold, columns=problem.columns)
            alike = replace(draw, key=replace(draw.key, index=0))
            self._setting.environments.start(number, task, self._seed(alike, "environment"))
            begun.append(number)
        return begun

    def _listen(self, *, wait: bool) -> list[int]:
        """Take what environments have answered. Returns the trajectories that go on."""
        goes_on = []
        for number, answer in self._setting.environments.answered(wait=wait):
            if number in self._live:
                self._live[number].acting = False
                self._answered(number, answer)
                goes_on += [number] if number in self._live and not self._live[number].acting else []
        return goes_on

    def _answered(self, number: int, answer: Answer) -> None:
        one = self._live[number]
        if isinstance(answer, Lost):
            one.seconds += answer.seconds
            self._lose(number, answer.status, answer.said, broken=answer.broken)
            return
        one.seconds += answer.seconds
        said = answer.observation
        one.counts.update(said.counts)
        if one.turns:
            one.rewards[-1] += said.reward or 0.0
            one.infos[-1] |= said.info
            one.heard = as_text(said.text) or one.heard
            if one.cut is not None:
                self._end(number, one.cut, said.correct)
            elif said.done:
                self._end(number, "done", said.correct)
            elif len(one.turns) == self._setting.config.max_turns:
                self._cut(number, "max_turns")
            else:
                start, end = one.turns[-1]
                between = self._setting.glue.between(one.tokens[start:end], said.text)
                if len(between) >= self._room(one):
                    self._cut(number, "tokens")
                else:
                    one.tokens.extend(between)
                    one.logprobs.extend([0.0] * len(between))
        elif said.text:
            text, tokens = self._setting.glue.opening(one.problem.question, said.text)
            one.problem = replace(one.problem, text=text, tokens=tokens)
            if self._room(one) < 1:
                said_is = f"{self._named(one)}: the prompt, with what its start says, has {len(tokens)} tokens"
                self._lose(
                    number, "error", f"{said_is} and leaves no room to answer: raise sampling.max_tokens", broken=False
                )
        elif not one.problem.text:
            nothing = f"{self._named(one)}: the row's prompt is empty, and its start says nothing: there is no question"
            self._lose(number, "error", nothing, broken=False)

    def _room(self, one: _Trajectory) -> int:
        """Tokens that it may still have. What is said at the start counts as said on the way."""
        opening = len(one.problem.tokens) - len(one.draw.problem.tokens)
        behind = min(self._params.max_tokens - opening, self._setting.context - len(one.problem.tokens))
        return behind - len(one.tokens)

    def _requests(self, numbers: Sequence[int]) -> list[Request]:
        """The next turns of these, each with a seed of its own."""
        found = []
        for number in numbers:
            one = self._live[number]
            room, turn = self._room(one), len(one.turns)
            found.append(
                Request(
                    prompt_tokens=[*one.problem.tokens, *one.tokens],
                    seed=self._seed(one.draw, f"turn {turn}" if turn else ""),
                    params=replace(self._params, max_tokens=min(room, self._setting.config.turn_tokens or room)),
                )
            )
        self._asked += numbers
        return found

    def _lose(self, number: int, status: Status, said: str, *, broken: bool) -> None:
        one = self._live[number]
        result = RewardResult(value=None, status=status, info={**self._info(one, "lost"), "error": said})
        self._leave(number, one, Acted(result, said if broken else ""))

    def _cut(self, number: int, ended: Ended, unheard: str = "") -> None:
        """End it; where its environment has a method for that, once it has answered. `unheard`: what the model has said
        since it was last asked."""
        if not self._setting.declared.cut:
            self._end(number, ended)
            return
        one = self._live[number]
        one.cut, one.acting = ended, True
        self._setting.environments.cut(number, unheard)

    def _end(self, number: int, ended: Ended, correct: bool | None = None) -> None:
        one = self._live[number]
        values = None
        if any(one.rewards[:-1]):
            values = [0.0] * len(one.tokens)
            for (_, end), reward in zip(one.turns, one.rewards, strict=True):
                values[end - 1] = reward
        result = RewardResult(
            value=math.fsum(one.rewards), correct=correct, token_values=values, info=self._info(one, ended)
        )
        sample = self._sampled(one).sample
        try:
            acted = Acted(checked(result, self._setting.declared.range, self._named(one), sample))
        except RlkitError as error:
            lost = RewardResult(value=None, status="error", info={**result.info, "error": str(error)})
            acted = Acted(lost, str(error))
        self._leave(number, one, acted, cut=ended != "done")

    def _leave(self, number: int, one: _Trajectory, acted: Acted, *, cut: bool = False) -> None:
        self._setting.environments.end(number)
        del self._live[number]
        self._seconds.append(one.seconds)
        self._over.append(replace(self._sampled(one, cut=cut), acted=acted))

    def _named(self, one: _Trajectory) -> str:
        return f"environment {self._setting.name!r} ({named(self._sampled(one).sample)})"

    def _sampled(self, one: _Trajectory, *, cut: bool = False) -> Sampled:
        return Sampled(
            key=one.draw.key,
            problem=one.problem,
            completion=Completion(tokens=one.tokens, logprobs=one.logprobs, truncated=cut, version=one.version),
            text=self._tokenizer.decode(one.tokens, skip_special_tokens=True),
            turns=tuple(one.turns),
            last=one.last,
        )

    def _info(self, one: _Trajectory, ended: Ended) -> dict[str, Any]:
        turns = [{"reward": reward, "info": info} for reward, info in zip(one.rewards, one.infos, strict=True)]
        return {"ended": ended, "counts": dict(one.counts), "last": one.heard, "turns": turns}


def as_text(said: Said) -> str:
    """Messages as their texts, one under the other."""
    return said if isinstance(said, str) else "\n".join(str(message.get("content", "")) for message in said)
